"""Kernel modules: which ones a boot needs and in which order, read from the modules themselves.

Distribution packages carry no modules.dep (depmod makes it at installation), so dependencies come
from each module's `.modinfo` section. Blocking; knows nothing of the initramfs's format.
"""

import gzip
import lzma
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from hutch.images.config import bad_image

MODULE_LIMIT = 64 << 20

# What a VM needs until its agent answers. Each costs boot time under emulation.
BOOT = (
    "virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng", "virtio_balloon",
    "overlay",
)  # fmt: skip
FILESYSTEMS = ("squashfs", "erofs")
# There for the agent to load when it needs them: closing the connections that a forked sandbox
# inherits.
EXTRA = ("inet_diag", "tcp_diag")

# A softdep may name a service instead of a module.
_ALIASES = {"crc32c": "crc32c_generic"}
_SUFFIX = re.compile(r"\.ko(\.(xz|zst|gz))?$")


@dataclass(frozen=True, slots=True)
class Module:
    """A module, decompressed."""

    name: str
    body: bytes


class ModuleTree:
    """The modules of one kernel, below its `/lib/modules/<version>`."""

    def __init__(self, directory: Path) -> None:
        self._paths: dict[str, Path] = {}
        for path in directory.rglob("*.ko*"):
            if _SUFFIX.search(path.name):
                self._paths[_normal(_SUFFIX.sub("", path.name))] = path
        self._builtin: set[str] = set()
        listed = directory / "modules.builtin"
        if listed.is_file():
            for line in listed.read_text("utf-8", "replace").splitlines():
                self._builtin.add(_normal(_SUFFIX.sub("", line.rpartition("/")[2])))
        self._bodies: dict[str, Module] = {}

    def names(self) -> Sequence[str]:
        """Return the names of all loadable modules."""
        return sorted(self._paths)

    def closure(self, wanted: Iterable[str]) -> list[Module]:
        """Return the wanted modules with all they depend on, each after what it needs.

        One that is built in, or that this kernel does not have, is left out: whether its service is
        there shows when the VM boots. Raises ImageError (bad_image) for a damaged module.
        """
        order: dict[str, Module] = {}
        visiting: set[str] = set()
        for name in wanted:
            self._visit(_normal(name), order, visiting)
        return list(order.values())

    def _visit(self, name: str, order: dict[str, Module], visiting: set[str]) -> None:
        name = _ALIASES.get(name, name)
        if name in order or name in visiting or name in self._builtin or name not in self._paths:
            return
        visiting.add(name)
        module = self._load(name)
        info = modinfo(module.body, name)
        needed = [part for line in info.get("depends", ()) for part in line.split(",")]
        for line in info.get("softdep", ()):
            before = line.partition("post:")[0].removeprefix("pre:")
            needed += before.split()
        for part in needed:
            self._visit(_normal(part), order, visiting)
        order[name] = module

    def _load(self, name: str) -> Module:
        if name not in self._bodies:
            path = self._paths[name]
            self._bodies[name] = Module(name, decompress(path.read_bytes(), path.name))
        return self._bodies[name]


def decompress(body: bytes, name: str) -> bytes:
    """Return a module's ELF from a .ko, .ko.xz, .ko.zst or .ko.gz. Raises bad_image."""
    try:
        if name.endswith(".xz"):
            body = lzma.decompress(body)
        elif name.endswith(".gz"):
            body = gzip.decompress(body)
        elif name.endswith(".zst"):
            with zstandard.ZstdDecompressor().stream_reader(body) as reader:
                body = reader.read(MODULE_LIMIT)
    except (lzma.LZMAError, zstandard.ZstdError, OSError, EOFError) as cause:
        raise bad_image(f"the module {name} cannot be decompressed: {cause}") from cause
    return body


def modinfo(elf: bytes, name: str) -> dict[str, list[str]]:
    """Return the `.modinfo` section of a module. Raises ImageError (bad_image)."""
    try:
        if not elf.startswith(b"\x7fELF\x02"):
            raise ValueError("no 64-bit ELF file")
        (offset,) = struct.unpack_from("<Q", elf, 40)
        size, count, names_at = struct.unpack_from("<HHH", elf, 58)
        sections = [
            struct.unpack_from("<IIQQQQ", elf, offset + index * size) for index in range(count)
        ]
        strings = sections[names_at][4]
        for section in sections:
            start = strings + section[0]
            if elf[start : elf.index(b"\0", start)] == b".modinfo":
                return _fields(elf[section[4] : section[4] + section[5]])
    except (struct.error, ValueError, IndexError) as cause:
        raise bad_image(f"the module {name} is damaged: {cause}") from cause
    return {}


def _fields(section: bytes) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for item in section.split(b"\0"):
        key, equals, value = item.partition(b"=")
        if equals:
            fields.setdefault(key.decode("latin1"), []).append(value.decode("latin1"))
    return fields


def _normal(name: str) -> str:
    return name.strip().replace("-", "_")
