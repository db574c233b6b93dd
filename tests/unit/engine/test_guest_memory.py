"""Another process's memory, with the kernel's own answers."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hutch.engine import guest_memory
from hutch.engine.guest_memory import GuestMemory
from hutch.engine.memories import create_memory
from hutch.errors import EngineError
from tests.unit.descriptors import descriptors

PAGE = 4096
SIZE = 4 << 20

HOLDER = """
import mmap, os, sys
fd, size, shared, parts, own, beyond = (*map(int, sys.argv[1:5]), sys.argv[5], int(sys.argv[6]))
name = "hutch-memory"
flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
step = size // parts
if beyond:
    os.ftruncate(fd, beyond + size)
maps = [mmap.mmap(fd, step, flags, offset=beyond + at) for at in range(0, size, step)]
if beyond:
    os.ftruncate(fd, size)
for page in filter(None, own.split(",")):
    at = int(page) * 4096
    maps[at // step][at % step : at % step + 6] = b"second"
    maps[at // step][at % step + 4095] = 255
print("ready", flush=True)
for line in sys.stdin:
    at = int(line) * 4096
    maps[at // step].madvise(mmap.MADV_DONTNEED, at % step, 4096)
    print("dropped", flush=True)
"""
"""A process that maps a memory, writes to some of its pages, and drops those that it is told."""

Hold = Callable[..., int]
Drop = Callable[[int], None]


@pytest.fixture
def base() -> Iterator[int]:
    """A memory with data in three pages, and holes around them."""
    fd = create_memory(SIZE)
    for page in (1, 2, 700):
        os.pwrite(fd, b"first".ljust(PAGE, b"."), page * PAGE)
    yield fd
    os.close(fd)


@pytest.fixture
def children() -> list["subprocess.Popen[bytes]"]:
    """The processes that were started."""
    return []


@pytest.fixture
def drop(children: list["subprocess.Popen[bytes]"]) -> Drop:
    """Have the last process drop a page of its own, so that it has the file's again."""

    def order(page: int) -> None:
        stdin, stdout = children[-1].stdin, children[-1].stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(b"%d\n" % page)
        stdin.flush()
        assert stdout.readline() == b"dropped\n"

    return order


@pytest.fixture
def hold(base: int, children: list["subprocess.Popen[bytes]"]) -> Iterator[Hold]:
    """Start the process; returns its pid. `own` are the pages that it writes to."""
    with contextlib.ExitStack() as stack:

        def start(
            *own: int, shared: bool = False, parts: int = 1, size: int = SIZE, beyond: int = 0
        ) -> int:
            pages = ",".join(map(str, own))
            argv = [sys.executable, "-S", "-c", HOLDER, str(base), str(size), str(int(shared))]
            child = subprocess.Popen(
                [*argv, str(parts), pages, str(beyond)],
                pass_fds=[base],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            stack.enter_context(child)
            stack.callback(child.kill)
            children.append(child)
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            return child.pid

        yield start


def copy(pid: int) -> tuple[dict[int, bytes], int, int]:
    """Return the pages of a copy that are not zero, the bytes copied last, and those it takes."""
    target = create_memory(SIZE)
    target_size = 0
    try:
        with GuestMemory(pid) as source:
            source.find()
            assert source.size == SIZE
            source.begin_copy(target)
            copied = source.finish_copy()
        data, target_size = os.pread(target, SIZE, 0), os.fstat(target).st_blocks * 512
    finally:
        os.close(target)
    assert len(data) == SIZE
    pages = {at // PAGE: data[at : at + PAGE] for at in range(0, SIZE, PAGE)}
    return {page: text for page, text in pages.items() if any(text)}, copied, target_size


@pytest.mark.parametrize("parts", [1, 2])
def test_a_private_memory_is_the_files_with_its_own_pages(hold: Hold, parts: int) -> None:
    pages, copied, size = copy(hold(2, 3, 5, 1023, parts=parts))
    assert {page: text[:6] for page, text in pages.items()} == {
        1: b"first.",
        2: b"second",  # over what the file has
        3: b"second",  # and where it has nothing
        5: b"second",
        700: b"first.",
        1023: b"second",
    }
    assert pages[2][6:-1] == b"." * (PAGE - 7)
    assert pages[1023][-1] == 255
    assert copied == 4 * PAGE
    assert size == 6 * PAGE  # as sparse as it can be


def test_a_shared_memory_is_the_file(hold: Hold) -> None:
    pages, copied, _ = copy(hold(3, shared=True))
    assert {page: text[:6] for page, text in pages.items()} == {
        1: b"first.",
        2: b"first.",
        3: b"second",
        700: b"first.",
    }
    assert copied == 4 * PAGE


def test_a_memory_in_very_many_pieces(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_memory, "_PIECES", 7)
    monkeypatch.setattr(guest_memory, "_PIECE", 2 * PAGE)
    monkeypatch.setattr(guest_memory, "_SCAN", 64 * PAGE)
    own = [*range(0, 300, 2), *range(400, 500)]
    pages, copied, _ = copy(hold(*own))
    assert {page for page, text in pages.items() if text[:6] == b"second"} == set(own)
    assert copied == len(own) * PAGE
    assert {1, 700} <= pages.keys()


def test_what_is_read_is_not_copied(hold: Hold) -> None:
    # Pages that the process has only looked at are the file's.
    _, copied, _ = copy(hold())
    assert copied == 0


def test_a_page_that_is_the_files_again_by_the_end(hold: Hold, drop: Drop) -> None:
    target = create_memory(SIZE)
    try:
        with GuestMemory(hold(2, 3)) as source:
            source.find()
            source.begin_copy(target)  # which leaves page 2 of the file out
            drop(2)
            assert source.finish_copy() == 2 * PAGE
        assert os.pread(target, 6, 2 * PAGE) == b"first."
        assert os.pread(target, 6, 3 * PAGE) == b"second"
    finally:
        os.close(target)


def test_a_process_without_a_guest() -> None:
    with pytest.raises(EngineError, match="no memory of a guest"):
        GuestMemory(os.getppid()).find()


def test_a_memory_that_is_not_all_there(hold: Hold) -> None:
    before = descriptors()
    pid = hold(size=SIZE // 2)
    pipes = descriptors() - before
    with GuestMemory(pid) as source:
        with pytest.raises(EngineError, match="not all mapped"):
            source.find()
    assert descriptors() == before + pipes


def test_a_process_that_ends_meanwhile(hold: Hold) -> None:
    pid = hold(2)
    target = create_memory(SIZE)
    with GuestMemory(pid) as source:
        source.find()
        source.begin_copy(target)
        os.kill(pid, 9)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(EngineError, match="cannot be read"):
            source.finish_copy()
    os.close(target)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_who_may_not_look_is_told_what_is_missing(hold: Hold, tmp_path: Path) -> None:
    pid = hold(2)
    script = f"""
import os
import hutch.engine.guest_memory
os.setgroups([]); os.setgid(65534); os.setuid(65534)
from hutch.engine.guest_memory import GuestMemory
from hutch.errors import EngineError
try:
    GuestMemory({pid}).find()
except EngineError as failure:
    print(failure.code, "CAP_SYS_PTRACE" in failure.hint)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["engine_failed", "True"]


@pytest.mark.parametrize("shared", [False, True])
def test_a_mapping_beyond_the_file_is_refused(hold: Hold, shared: bool) -> None:
    # It is of the right length, and what is in it would be copied to beyond our own memory.
    with GuestMemory(hold(shared=shared, beyond=1 << 40)) as source:
        with pytest.raises(EngineError, match="not all mapped once") as caught:
            source.find()
    assert caught.value.code == "engine_failed"
