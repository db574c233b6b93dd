"""What a VM's process takes of the host's memory, by the kernel's own account.

Guest memory is always a memfd of a known name, so its mappings are told from all else by it. Knows
`/proc` and nothing of machines. A process that is gone takes nothing.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from hutch.engine.base import MemoryUse

PROC = Path("/proc")
GUEST_MEMORY = (b"/memfd:hutch-memory", b"/memfd:memory-backend-memfd")
"""How the paths of guest memory begin: ours, and the one that QEMU makes by itself."""

_Mapping = tuple[bytes, bytes, Mapping[bytes, int]]


def proportional(pid: int, proc: Path = PROC) -> int:
    """Return a process's proportional set size in bytes; 0 when it is gone. Blocking, 1 ms."""
    with contextlib.suppress(OSError):
        with open(proc / str(pid) / "smaps_rollup", "rb") as rollup:
            for line in rollup:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
    return 0


def memory_use(pid: int, proc: Path = PROC) -> MemoryUse:
    """Return what a process takes, guest memory apart; nothing when it is gone. Blocking, 3 ms."""
    try:
        text = (proc / str(pid) / "smaps").read_bytes()
    except OSError:
        return MemoryUse()
    private = shared = frozen = engine = 0
    for path, permissions, sizes in _mappings(text):
        part = sizes.get(b"Pss:", 0)
        if not path.startswith(GUEST_MEMORY):
            engine += part
        elif permissions.endswith(b"s"):
            # Not a clone's: what it maps of its memory nobody else does.
            private += part
        else:
            # In a private mapping of a file the anonymous pages are those that were written to.
            # What the kernel calls private besides is what no other clone maps just now.
            copied = sizes.get(b"Anonymous:", 0)
            private += copied
            shared += max(0, part - copied)
            frozen += max(0, sizes.get(b"Rss:", 0) - copied)
    return MemoryUse(private, shared, frozen, engine)


def _mappings(text: bytes) -> Iterator[_Mapping]:
    """Yield each mapping's path, permissions and sizes in bytes."""
    path, permissions, sizes = b"", b"", dict[bytes, int]()
    for line in text.splitlines():
        fields = line.split(maxsplit=5)
        if not fields:
            continue
        if fields[0].endswith(b":"):
            if len(fields) == 3 and fields[2] == b"kB":
                sizes[fields[0]] = int(fields[1]) << 10
        else:
            if sizes:
                yield path, permissions, sizes
            permissions = fields[1]
            path, sizes = fields[5] if len(fields) > 5 else b"", {}
    if sizes:
        yield path, permissions, sizes
