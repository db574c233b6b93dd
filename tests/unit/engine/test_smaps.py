"""The account of a VM's memory, from trees that look like /proc, and from our own process."""

import mmap
import os
from pathlib import Path

from hutch.engine import smaps
from hutch.engine.base import MemoryUse

MIB = 1 << 20
_FIELDS = ("Size", "Rss", "Pss", "Shared_Clean", "Private_Dirty", "Anonymous", "Swap")


def mapping(path: str, permissions: str, **sizes: int) -> str:
    """Return a mapping as smaps shows it; sizes in KiB."""
    lines = [f"7f0000000000-7f0010000000 {permissions} 00000000 00:01 55{' ' * 20}{path}".rstrip()]
    lines += [f"{name}:{sizes.get(name, 0):>15} kB" for name in _FIELDS]
    return "\n".join([*lines, "THPeligible:           0", "VmFlags: rd wr mr mw me sd", ""])


def tree(root: Path, *mappings: str) -> Path:
    (root / "7").mkdir()
    (root / "7/smaps").write_text("".join(mappings))
    return root


ENGINE = (
    mapping("/usr/bin/qemu-system-x86_64", "r-xp", Rss=4000, Pss=1000, Shared_Clean=4000),
    mapping("[heap]", "rw-p", Rss=5000, Pss=5000, Private_Dirty=5000, Anonymous=5000),
    mapping("", "rwxp", Rss=2000, Pss=2000, Anonymous=2000),
    mapping("[vsyscall]", "--xp"),
)


def test_a_clone_among_others(tmp_path: Path) -> None:
    memory = mapping(
        "/memfd:hutch-memory (deleted)", "rw-p", Size=262144, Rss=24000, Pss=9000, Anonymous=4000
    )
    found = smaps.memory_use(7, tree(tmp_path, *ENGINE[:2], memory, *ENGINE[2:]))
    assert found == MemoryUse(4000 << 10, 5000 << 10, 20000 << 10, 8000 << 10)
    assert found.total == 17000 << 10


def test_what_a_lone_clone_only_reads_is_not_its_own(tmp_path: Path) -> None:
    # The kernel calls these pages private and dirty while nobody else maps them.
    memory = mapping(
        "/memfd:hutch-memory (deleted)",
        "rw-p",
        Rss=20192,
        Pss=20192,
        Private_Dirty=20192,
        Anonymous=996,
    )
    found = smaps.memory_use(7, tree(tmp_path, memory))
    assert (found.private, found.shared) == (996 << 10, 19196 << 10)


def test_the_memory_of_a_cold_boot_is_all_its_own(tmp_path: Path) -> None:
    memory = mapping("/memfd:memory-backend-memfd (deleted)", "rw-s", Rss=83644, Pss=83644)
    found = smaps.memory_use(7, tree(tmp_path, memory, ENGINE[1]))
    assert found == MemoryUse(private=83644 << 10, engine=5000 << 10)


def test_a_path_that_only_looks_like_guest_memory(tmp_path: Path) -> None:
    found = smaps.memory_use(7, tree(tmp_path, mapping("/srv/memfd:hutch-memory", "rw-p", Pss=8)))
    assert found == MemoryUse(engine=8 << 10)


def test_a_process_that_is_gone(tmp_path: Path) -> None:
    assert smaps.memory_use(1 << 22, tmp_path) == MemoryUse()
    assert smaps.proportional(1 << 22, tmp_path) == 0


def test_the_kernels_own_words() -> None:
    """Each page written through a private mapping of a memfd becomes the process's own."""
    fd = os.memfd_create("hutch-memory")
    try:
        os.write(fd, b"x" * (8 * MIB))
        before = smaps.memory_use(os.getpid())
        with mmap.mmap(fd, 8 * MIB, flags=mmap.MAP_PRIVATE) as memory:
            read = sum(memory[at] for at in range(0, 8 * MIB, mmap.PAGESIZE))
            assert read == ord("x") * 2048
            looked = smaps.memory_use(os.getpid())
            memory[: 3 * MIB] = b"y" * (3 * MIB)
            wrote = smaps.memory_use(os.getpid())
            assert 0 < smaps.proportional(os.getpid()) <= wrote.total + MIB
    finally:
        os.close(fd)
    assert (before.private, before.frozen) == (0, 0)
    assert (looked.private, looked.shared, looked.frozen) == (0, 8 * MIB, 8 * MIB)
    assert (wrote.private, wrote.shared, wrote.frozen) == (3 * MIB, 5 * MIB, 5 * MIB)
    assert wrote.engine > MIB
