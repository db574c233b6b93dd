"""What of a memory is not what files below it say."""

import os
from collections.abc import Iterator

import pytest

from hutch.engine.differences import (
    copy_sparse,
    differing,
    digest_of_parts,
    extents,
    length_of,
)
from hutch.engine.memories import create_memory

PAGE = 4096
SIZE = 8 << 20


@pytest.fixture
def files() -> Iterator[list[int]]:
    """Three memories, without anything in them."""
    found = [create_memory(SIZE) for _ in range(3)]
    yield found
    for fd in found:
        os.close(fd)


def put(fd: int, *pages: int, byte: int = 1) -> list[tuple[int, int]]:
    for page in pages:
        os.pwrite(fd, bytes([byte]) * PAGE, page * PAGE)
    return [(page * PAGE, PAGE) for page in pages]


def pages(parts: list[tuple[int, int]]) -> list[range]:
    return [range(start // PAGE, (start + length) // PAGE) for start, length in parts]


def test_parts_are_whole_pages(files: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a file system has smaller blocks."""
    told = iter([PAGE + 1024, PAGE + 2048, 2 * PAGE + 512, 2 * PAGE + 1024, SIZE - 1024, SIZE])
    monkeypatch.setattr(os, "lseek", lambda *_: next(told))
    assert pages(list(extents(files[0], SIZE))) == [
        range(1, 2),
        range(2, 3),
        range(SIZE // PAGE - 1, SIZE // PAGE),
    ]


def test_over_nothing_all_that_is_not_zero_differs(files: list[int]) -> None:
    put(files[0], 3, 4, 7)
    put(files[0], 5, byte=0)
    assert pages(differing(files[0], SIZE, [])) == [range(3, 5), range(7, 8)]


def test_a_file_hides_those_before_it(files: list[int]) -> None:
    memory, low, high = files
    below = [(low, put(low, 1, 2, 3, 9)), (high, put(high, 2, 3, byte=2))]
    put(memory, 1, 2, 9)
    put(memory, 3, byte=2)
    assert pages(differing(memory, SIZE, below)) == [range(2, 3)]
    # What does not count of a file is as if it was not there.
    below = [(low, below[0][1]), (high, [])]
    assert pages(differing(memory, SIZE, below)) == [range(3, 4)]


def test_what_is_gone_differs(files: list[int]) -> None:
    memory, low, _ = files
    parts = put(low, 1, 2)
    put(memory, 1, byte=0)
    assert pages(differing(memory, SIZE, [(low, parts)])) == [range(1, 3)]


def test_long_runs_and_the_last_page(files: list[int]) -> None:
    memory, low, _ = files
    last = SIZE // PAGE - 1
    parts = [(0, SIZE)]
    put(low, *range(last + 1))
    put(memory, *range(last))
    assert pages(differing(memory, SIZE, [(low, parts)])) == [range(last, last + 1)]
    put(memory, last)
    put(memory, 63, 64, 65, byte=5)
    assert pages(differing(memory, SIZE, [(low, parts)])) == [range(63, 66)]


def test_a_file_that_becomes_shorter_is_an_error(files: list[int]) -> None:
    memory, low, _ = files
    parts = put(low, 1, 2)
    os.ftruncate(low, 2 * PAGE)
    with pytest.raises(OSError, match="shorter"):
        differing(memory, SIZE, [(low, parts)])
    with pytest.raises(OSError, match="shorter"):
        digest_of_parts(low, parts)


def test_parts_are_copied_over_what_is_there(files: list[int]) -> None:
    source, target, _ = files
    put(source, 1, 2, byte=3)
    copy_sparse(source, target, SIZE, put(target, 2, 6))
    assert list(extents(target, SIZE)) == [(2 * PAGE, PAGE), (6 * PAGE, PAGE)]
    assert os.pread(target, 1, 2 * PAGE) == b"\3"
    assert os.pread(target, 1, 6 * PAGE) == b"\0"
    assert length_of(list(extents(target, SIZE))) == 2 * PAGE


def test_a_digest_is_that_of_the_parts(files: list[int]) -> None:
    parts = put(files[0], 1, 200)
    assert digest_of_parts(files[0], parts) == digest_of_parts(files[0], parts[:])
    assert digest_of_parts(files[0], parts) != digest_of_parts(files[0], parts[:1])
