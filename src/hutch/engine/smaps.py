"""What a VM's process takes of the host's memory, by the kernel's own account.

Guest memory is always a memfd of a known name, so its mappings are told from all else by it. Knows
`/proc` and nothing of machines. A process that is gone takes nothing.
"""

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from hutch.engine.base import MemoryUse

PROC = Path("/proc")
GUEST_MEMORY = (b"/memfd:hutch-memory", b"/memfd:memory-backend-memfd")
"""How the paths of guest memory begin: ours, and the one that QEMU makes by itself."""

_MAPPING = re.compile(rb"^[0-9a-f]+-[0-9a-f]+ (\S+) \S+ \S+ \S+ *(.*)$", re.MULTILINE)
_SIZE = re.compile(rb"^(\w+): +(\d+) kB$", re.MULTILINE)
_SHARE = re.compile(rb"^Pss: +(\d+) kB$", re.MULTILINE)


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
    private = shared = frozen = guest = 0
    for permissions, sizes in _guest_mappings(text):
        part = sizes.get(b"Pss", 0)
        guest += part
        if permissions.endswith(b"s"):
            # Not a clone's: what it maps of its memory nobody else does.
            private += part
        else:
            # In a private mapping of a file the anonymous pages are those that were written to.
            # What the kernel calls private besides is what no other clone maps just now.
            copied = sizes.get(b"Anonymous", 0)
            private += copied
            shared += max(0, part - copied)
            frozen += max(0, sizes.get(b"Rss", 0) - copied)
    total = sum(map(int, _SHARE.findall(text))) << 10
    return MemoryUse(private, shared, frozen, engine=total - guest)


def _guest_mappings(text: bytes) -> Iterator[tuple[bytes, Mapping[bytes, int]]]:
    """Yield permissions and sizes in bytes of the mappings that are guest memory."""
    found = list(_MAPPING.finditer(text))
    for mapping, following in itertools.zip_longest(found, found[1:]):
        if mapping[2].startswith(GUEST_MEMORY):
            about = text[mapping.end() : following.start() if following else len(text)]
            yield mapping[1], {name: int(size) << 10 for name, size in _SIZE.findall(about)}
