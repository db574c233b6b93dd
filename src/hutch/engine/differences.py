"""Sparse memories: what of one is no hole, and what of it others do not have.

Files are only read, never mapped: one that somebody cuts off meanwhile is an error, not a signal.
Knows descriptors alone. Blocking throughout.
"""

import errno
import hashlib
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

PAGE: Final = mmap.PAGESIZE
_CHUNK: Final = 16 << 20
_LOOK: Final = 256 << 10
"""Bytes that are compared at once: they fit into a processor's own cache."""
_ZEROS: Final = bytes(_LOOK)

_HERE: Final = 0x80
"""The bit of a page that is no hole of the memory; the others number the file that has it."""
FILES_MAX: Final = _HERE - 1
_HOLE: Final = 0
_RUN: Final = re.compile(rb"([^\x00])\1*", re.DOTALL)

Extents = Sequence[tuple[int, int]]
"""The parts of a file that are no holes: where they begin, and their lengths."""


def extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of `size` bytes of a file that are no holes, as whole pages.

    Raises OSError.
    """
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as cause:
            if cause.errno == errno.ENXIO:  # no data is left
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        # The blocks of a file system may be smaller than pages.
        start, end = start // PAGE * PAGE, min(-(-end // PAGE) * PAGE, size)
        yield start, end - start


def length_of(parts: Extents) -> int:
    """Return how many bytes these parts are."""
    return sum(length for _, length in parts)


def digest_of_parts(fd: int, parts: Extents) -> str:
    """Return the digest of these parts of a memory. Raises OSError."""
    digest, buffer = hashlib.sha256(), bytearray(_LOOK)
    for start, length in parts:
        for at in range(start, start + length, _LOOK):
            count = min(_LOOK, start + length - at)
            _read(fd, buffer, count, at)
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def copy_sparse(source: int, target: int, size: int, parts: Extents | None = None) -> None:
    """Copy `size` bytes into a file, but for the holes. Raises OSError.

    `parts` are what is copied where the file no longer tells its holes, or of what it has.
    """
    os.ftruncate(target, size)
    for start, length in extents(source, size) if parts is None else parts:
        end = start + length
        os.lseek(target, start, os.SEEK_SET)
        while start < end:
            sent = os.sendfile(target, source, start, min(end - start, _CHUNK))
            if sent == 0:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            start += sent


def differing(
    memory: int, size: int, below: Sequence[tuple[int, Extents]]
) -> list[tuple[int, int]]:
    """Return the parts of a memory that are not what the files `below` say together.

    Of each file these are its descriptor and the parts that count, in which it hides those before
    it; what none has is zero. Raises OSError.
    """
    pages = bytearray(-(-size // PAGE))
    for number, (_, parts) in enumerate(below, 1):
        for first, last in _pages_of(parts):
            pages[first:last] = bytes([number]) * (last - first)
    for first, last in _pages_of(extents(memory, size)):
        pages[first:last] = pages[first:last].translate(_MARKED)
    looks = [
        (run.group(1)[0] & ~_HERE, at, min(_LOOK, run.end() * PAGE - at, size - at))
        for run in _RUN.finditer(pages)
        for at in range(run.start() * PAGE, run.end() * PAGE, _LOOK)
    ]
    return _compare(memory, [fd for fd, _ in below], looks)


def _compare(
    memory: int, files: Sequence[int], looks: Sequence[tuple[int, int, int]]
) -> list[tuple[int, int]]:
    """Return what differs of these: the number of the file that has it, where, and how much."""
    found: list[tuple[int, int]] = []
    whole = bytearray(_LOOK), bytearray(_LOOK)
    for number, at, count in looks:
        # Memories that have been in use for long have thousands of single pages: their cost counts.
        ours, theirs = whole if count == _LOOK else (bytearray(count), bytearray(count))
        _read(memory, ours, count, at)
        if number:
            _read(files[number - 1], theirs, count, at)
        elif theirs is whole[1]:
            theirs[:] = _ZEROS
        if ours != theirs:
            _note_pages(found, ours, theirs, at, count)
    return found


_MARKED: Final = bytes(value | _HERE for value in range(256))


def _pages_of(parts: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for start, length in parts:
        yield start // PAGE, -(-(start + length) // PAGE)


def _note_pages(
    found: list[tuple[int, int]], ours: bytearray, theirs: bytearray, at: int, count: int
) -> None:
    for offset in range(0, count, PAGE):
        if ours[offset : offset + PAGE] != theirs[offset : offset + PAGE]:
            start, length = at + offset, min(PAGE, count - offset)
            if found and sum(found[-1]) == start:
                start, length = found[-1][0], found[-1][1] + length
                found.pop()
            found.append((start, length))


def _read(fd: int, buffer: bytearray, count: int, offset: int) -> None:
    with memoryview(buffer) as view, view[:count] as wanted:
        if os.preadv(fd, [wanted], offset) != count:
            raise OSError(errno.EIO, "the file is shorter than it was")
