"""The initramfs: the agent as /init, the modules of the boot and their order, as an uncompressed
newc archive.

Pure. The same input gives the same bytes, so its key can name the file.
"""

import hashlib
import stat
from collections.abc import Sequence

from hutch.images.modules import Module

FORMAT = 1
"""Part of the key: raised when the archive's shape changes."""

_HEADER = b"070701" + b"%08x" * 13
_DIRECTORIES = ("dev", "proc", "sys", "run", "lib", "lib/m")
# QEMU's microvm puts the initrd right below the end of memory, where the ACPI tables are; a size
# just above a page boundary keeps the two apart, whatever the tables' size. Without it some boots
# spin for ever.
_PAGE, _REST = 4096, 16


def key(agent: bytes, modules: Sequence[Module], boot: int) -> str:
    """Return what tells this initramfs from any other, as 16 hex digits."""
    digest = hashlib.sha256(b"hutch-initramfs-%d-%d" % (FORMAT, boot))
    for part in (agent, *(item for m in modules for item in (m.name.encode(), m.body))):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


def build(agent: bytes, modules: Sequence[Module], boot: int) -> bytes:
    """Return the archive.

    `modules` are in the order in which they can be loaded. The agent loads the first `boot` of them
    (/modules.list) at once; the others (/modules.extra) are there for when it needs them.
    """
    archive = _Archive()
    for directory in _DIRECTORIES:
        archive.add(directory, stat.S_IFDIR | 0o755)
    # The kernel opens it as PID 1's stdin, stdout and stderr.
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.add("init", stat.S_IFREG | 0o755, agent)
    paths = []
    for module in modules:
        archive.add(f"lib/m/{module.name}.ko", stat.S_IFREG | 0o644, module.body)
        paths.append(f"/lib/m/{module.name}.ko\n")
    for name, part in (("modules.list", paths[:boot]), ("modules.extra", paths[boot:])):
        archive.add(name, stat.S_IFREG | 0o644, "".join(part).encode())
    return archive.finish()


class _Archive:
    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._inode = 0

    def add(
        self, name: str, mode: int, body: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        path = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        numbers = (self._inode, mode, 0, 0, links, 0, len(body), 0, 0, *device, len(path), 0)
        self._put(_HEADER % numbers + path)
        self._put(body)

    def finish(self) -> bytes:
        self.add("TRAILER!!!", 0)
        self._parts.append(bytes((_REST - self._size) % _PAGE))
        return b"".join(self._parts)

    def _put(self, piece: bytes) -> None:
        padded = piece + bytes(-len(piece) % 4)
        self._parts.append(padded)
        self._size += len(padded)
