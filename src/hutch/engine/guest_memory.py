"""The memory of a running guest, seen from outside: where its process has it, and a copy of it.

A clone maps a file that never changes, privately: what it has written to are pages of its own,
which the kernel tells from the file's (/proc/PID/pagemap). A machine that booted shares its file,
which is its memory. Everything is found through /proc alone, so that it is found after a restart of
the daemon, too; what a process says there is believed of its own guest's memory and of no other's.
Knows processes and files, not machines. Blocking throughout.
"""

import bisect
import contextlib
import ctypes
import errno
import functools
import mmap
import os
import re
import stat
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from hutch.engine.differences import extents
from hutch.errors import error

T = TypeVar("T")

_PAGE = mmap.PAGESIZE
_MAPPING = re.compile(
    rb"([0-9a-f]+)-([0-9a-f]+) rw-([ps]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) +"
    rb"/memfd:(?:hutch-memory|memory-backend-memfd) \(deleted\)"
)
_MAP_LIMIT = 4 << 20
_CHUNK = 4 << 20
_SCAN = 1 << 30
"""Bytes of a guest whose page map is read at once: 2 MiB of it."""
_PIECE, _PIECES = 1 << 20, 512
"""Bytes of a part and parts of one call: the kernel takes 1024 of them, and less than 2 GiB."""

# The top byte of a page's entry: present, swapped, of a file. A page on its way between two places
# counts as swapped, whosever it is; to copy a file's page as well does no harm.
_PRESENT, _SWAPPED, _FILE = 0x80, 0x40, 0x20
_OWN = bytes(
    int(bool(top & _SWAPPED or (top & _PRESENT and not top & _FILE))) for top in range(256)
)
_RUN = re.compile(rb"\x01+")

_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE, which Python has no name for."""

_SHARES = 2
"""Shares that are copied at once while a guest stands still."""
_NOWHERE = ctypes.c_char()

_libc = ctypes.CDLL(None, use_errno=True)
_madvise = _libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_process_vm_readv = _libc.process_vm_readv
_process_vm_readv.restype = ctypes.c_ssize_t
_process_vm_readv.argtypes = (
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_ulong,
)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a guest's memory: where the process has it, and where it is in the file."""

    address: int
    offset: int
    size: int


class GuestMemory:
    """The memory of a process's guest, to be found by `find` first. `with` closes what it opened.

    `size` is its bytes; `private` tells whether it is a clone's.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.size = 0
        self.private = False
        self._parts: Sequence[Part] = ()
        self._file: int | None = None
        self._copy: mmap.mmap | None = None
        self._anchor = _NOWHERE
        self._own: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all: the copy is nobody's to write to any more. Idempotent."""
        if self._copy is not None:
            self._anchor = _NOWHERE  # a mapping cannot be undone while someone points into it
            self._copy.close()
            self._copy = None
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def find(self) -> None:
        """Find where the process has it, and open the file that it maps.

        Raises engine_failed: when we may not look, and when there is none to be found.
        """
        with _failing(self.pid):
            shared, inode, self._parts = _mappings(self.pid)
            self._file = _open(self.pid, inode)
            self.size, self.private = os.fstat(self._file).st_size, not shared
        # What the process says of itself may be its guest's word by now: each page of the copy has
        # its one place in it, or there is no copy.
        self._parts = sorted(self._parts, key=lambda part: part.offset)
        end = 0
        for part in self._parts:
            if part.offset != end:
                break
            end += part.size
        if end != self.size or end != sum(part.size for part in self._parts):
            raise error(
                "engine_failed", f"the memory of QEMU (pid {self.pid}) is not all mapped once"
            )

    def begin_copy(self, target: int) -> None:
        """Begin a copy into an empty file while the guest still runs.

        What it cannot change is copied, but for what it has a page of its own of by now, and room
        is made for the rest. Raises engine_failed.
        """
        assert self._file is not None
        with _failing(self.pid):
            os.ftruncate(target, self.size)
            self._own = list(self._pieces())
            self._copy = mmap.mmap(target, self.size)
            self._anchor = ctypes.c_char.from_buffer(self._copy)
            _at_once(functools.partial(self._copy_rest, target), self._make_room)

    def _copy_rest(self, target: int) -> None:
        """Copy what the guest has no page of its own of."""
        assert self._file is not None
        if self.private:
            rest = _less(extents(self._file, self.size), self._own)
            _copy(self._file, target, self.size, rest)

    def _make_room(self) -> None:
        """Have the pages there that the guest's own will be copied into."""
        base = ctypes.addressof(self._anchor)
        for offset, size in self._own:
            # Saves the pause a third of its time. What cannot do it yet (Linux before 5.14) makes
            # the room when it is needed.
            _madvise(base + offset, size, _POPULATE_WRITE)

    def finish_copy(self) -> int:
        """Copy the rest, of a guest that stands still: what may have changed.

        Returns how many bytes that was. Raises engine_failed.
        """
        base = ctypes.addressof(self._anchor)

        def copy(pieces: Sequence[tuple[int, int]]) -> int:
            return _read(
                self.pid,
                ((self._address(offset), base + offset, size) for offset, size in pieces),
            )

        with _failing(self.pid):
            own = list(self._pieces())
            # What was left out before has to be here, even if it is the file's again.
            own += _less(self._own, own)
            return sum(
                _at_once(*(functools.partial(copy, own[at::_SHARES]) for at in range(_SHARES)))
            )

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """Yield offset and length of all that is the guest's own, in order and in small pieces."""
        assert self._file is not None
        with open(f"/proc/{self.pid}/pagemap", "rb", buffering=0) as pagemap:
            for part in self._parts:
                if self.private:
                    runs = _private_runs(pagemap.fileno(), part)
                else:
                    runs = _shared_runs(self._file, part)
                for offset, size in runs:
                    for at in range(offset, offset + size, _PIECE):
                        yield at, min(_PIECE, offset + size - at)

    def _address(self, offset: int) -> int:
        """Return where the process has what is there in its file."""
        part = self._parts[bisect.bisect(self._parts, offset, key=lambda part: part.offset) - 1]
        return part.address + offset - part.offset


def _mappings(pid: int) -> tuple[bool, tuple[int, int], list[Part]]:
    """Return whether the memory is shared, the identity of its file, and where it is mapped."""
    with open(f"/proc/{pid}/maps", "rb") as maps:
        found = _MAPPING.findall(maps.read(_MAP_LIMIT))
    if not found:
        raise error("engine_failed", f"QEMU (pid {pid}) has no memory of a guest")
    kinds = {(share, major, minor, inode) for _, _, share, _, major, minor, inode in found}
    if len(kinds) > 1:
        raise error("engine_failed", f"QEMU (pid {pid}) has the memory of more than one guest")
    share, major, minor, inode = kinds.pop()
    parts = [
        Part(int(start, 16), int(offset, 16), int(end, 16) - int(start, 16))
        for start, end, _, offset, _, _, _ in found
    ]
    device = os.makedev(int(major, 16), int(minor, 16))
    return share == b"s", (device, int(inode)), parts


def _open(pid: int, identity: tuple[int, int]) -> int:
    """Open the file that a process maps, which it has open, too. Raises OSError."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            info = path.stat()
            if (info.st_dev, info.st_ino) == identity and stat.S_ISREG(info.st_mode):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                opened = os.fstat(fd)
                if (opened.st_dev, opened.st_ino) == identity:
                    return fd
                os.close(fd)  # its owner put another in its place just now
    raise OSError(errno.ENOENT, "its file is not open any more")


def _private_runs(pagemap: int, part: Part) -> Iterator[tuple[int, int]]:
    """Yield offset and length of what a part has of its own."""
    for start in range(part.address, part.address + part.size, _SCAN):
        pages = (min(start + _SCAN, part.address + part.size) - start) // _PAGE
        entries = os.pread(pagemap, pages * 8, start // _PAGE * 8)
        if len(entries) != pages * 8:
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
        for run in _RUN.finditer(entries[7::8].translate(_OWN)):
            offset = part.offset + start - part.address + run.start() * _PAGE
            yield offset, (run.end() - run.start()) * _PAGE


def _shared_runs(file: int, part: Part) -> Iterator[tuple[int, int]]:
    """Yield offset and length of what a part has that is no hole of its file."""
    for start, length in extents(file, part.offset + part.size):
        begin = max(start, part.offset)
        if begin < start + length:
            yield begin, start + length - begin


def _less(
    parts: Iterable[tuple[int, int]], taken: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Yield start and length of what of `parts` is in none of the `taken` ones; all in order."""
    others = deque(taken)
    for start, length in parts:
        end = start + length
        while start < end:
            while others and sum(others[0]) <= start:
                others.popleft()
            first, size = others[0] if others else (end, 0)
            if first > start:
                yield start, min(first, end) - start
            start = first + size


def _copy(source: int, target: int, size: int, parts: Iterable[tuple[int, int]]) -> None:
    """Copy parts of a file, which has `size` bytes, to their places in another one."""
    try:
        mapping = mmap.mmap(source, size, mmap.MAP_SHARED, mmap.PROT_READ)
    except ValueError as cause:
        raise OSError(errno.EIO, "the file became shorter while it was copied") from cause
    # It takes sendfile twice as long. It is the kernel who reads the mapping: where somebody has
    # cut the file off that is an error, not a signal.
    with mapping, memoryview(mapping) as view:
        for start, length in parts:
            end = start + length
            while start < end:
                with view[start : min(end, start + _CHUNK)] as piece:
                    start += os.pwrite(target, piece, start)


def _read(pid: int, pieces: Iterable[tuple[int, int, int]]) -> int:
    """Copy pieces of another process's memory (there, here, length). Returns their length."""
    theirs, ours, wanted, copied = array("Q"), array("Q"), 0, 0

    def transfer() -> int:
        count = len(theirs) // 2
        done: int = _process_vm_readv(
            pid, ours.buffer_info()[0], count, theirs.buffer_info()[0], count, 0
        )
        if done != wanted:
            number = ctypes.get_errno() if done < 0 else errno.EFAULT
            raise OSError(number, os.strerror(number))
        return done

    for there, here, size in pieces:
        theirs.extend((there, size))
        ours.extend((here, size))
        wanted += size
        if len(theirs) == 2 * _PIECES:
            copied += transfer()
            del theirs[:], ours[:]
            wanted = 0
    return copied + (transfer() if theirs else 0)


def _at_once(*calls: Callable[[], T]) -> list[T]:
    """Make calls that do not need the interpreter, each in a thread of its own.

    Raises what the first of them raises, once all have ended.
    """
    with ThreadPoolExecutor(len(calls)) as threads:
        return [made.result() for made in [threads.submit(call) for call in calls]]


@contextlib.contextmanager
def _failing(pid: int) -> Iterator[None]:
    try:
        yield
    except OSError as cause:
        hint = None
        if cause.errno in (errno.EPERM, errno.EACCES):
            hint = "run the daemon as root, or with CAP_SYS_PTRACE"
        raise error(
            "engine_failed",
            f"the memory of QEMU (pid {pid}) cannot be read: {cause.strerror}",
            hint=hint,
        ) from cause
