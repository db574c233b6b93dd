"""One program's output on disk: binary-exact records in numbered files of a capped size.

A record says when its bytes came and at which offset of their channel, so that a daemon that was
killed goes on exactly where the files end, and a reader sees what is missing. Files are named
`NAME.NUMBER.log`; the oldest go when there are too many. Everything here blocks: callers use a
thread. It must not know where the bytes come from; `output.py` does.
"""

import contextlib
import itertools
import os
import shutil
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from hutch.service.values import LogRecord

_MAGIC: Final = b"HUTCHLG1"
_HEAD: Final = struct.Struct("<8sQQ")
"""What a file begins with: the magic and the offsets of channels 1 and 2 at which it begins."""

_RECORD: Final = struct.Struct("<BBHIqQ")
"""Kind, channel, 0, size, Unix time in ns, offset; then the bytes."""

PIECE: Final = 64 << 10
"""Bytes of one record at most."""

_OFFSETS: Final = struct.Struct("<QQ")
"""The offsets of channels 1 and 2, as the data of a record."""

_BATCH: Final = 4 * PIECE


class _Kind(IntEnum):
    DATA = 1
    RUN = 2  # a new run of the program: its offsets begin at 0 again
    BACK = 3  # the program was put back in time: its offsets go on at those in the data


_KINDS: Final = frozenset(_Kind)


@dataclass(frozen=True, slots=True)
class _Record:
    kind: int
    channel: int
    time_ns: int
    offset: int
    data: bytes


def _starts(kind: int, data: bytes) -> dict[int, int] | None:
    """Return the offsets at which a program's channels begin after a record; None: as before."""
    if kind == _Kind.RUN:
        return {1: 0, 2: 0}
    if kind == _Kind.BACK:
        one, two = _OFFSETS.unpack(data)
        return {1: one, 2: two}
    return None


def log_files(directory: Path, name: str) -> list[tuple[int, Path]]:
    """Return the numbered files of a log, oldest first."""
    found = []
    for path in directory.glob(f"{name}.*.log"):
        number = path.name[len(name) + 1 : -len(".log")]
        if number.isdigit():
            found.append((int(number), path))
    return sorted(found)


def remove_log(directory: Path, name: str) -> None:
    """Delete a log with all its files."""
    for _, path in log_files(directory, name):
        path.unlink(missing_ok=True)


class LogWriter:
    """The one writer of a log.

    Invariant: all files together are at most (`files` + 1) * `size` bytes (and a record's header).
    A full disk loses bytes, visibly, never the program.
    """

    def __init__(self, directory: Path, name: str, *, size: int, files: int) -> None:
        self._directory = directory
        self._name = name
        self._size = max(size, 2 * PIECE)
        self._files = max(files, 0)
        self._fd = -1
        self._number = 0
        self._position = 0
        self._lock = threading.Lock()
        self.ends = {1: 0, 2: 0}
        """For each channel the offset after the last byte that is on record."""

    def open(self, begin: Mapping[int, int] | None = None) -> None:
        """Go on where the newest file ends, cutting off a record that was not written whole.

        A log that is new begins at the offsets `begin`.
        """
        with self._lock:
            self._open(begin or {})

    def _open(self, begin: Mapping[int, int]) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = log_files(self._directory, self._name)
        self.ends |= dict(begin)
        for number, path in reversed(found):
            self._number = max(self._number, number)
            if self._take_up(path):
                if number < self._number:
                    self._start_file()  # the newer ones were cut short when they were begun
                return
        self._start_file()

    def _take_up(self, path: Path) -> bool:
        """Go on in a file, if it is one of ours."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        head = os.pread(fd, _HEAD.size, 0)
        if len(head) < _HEAD.size or not head.startswith(_MAGIC):
            os.close(fd)
            return False
        self._fd, self._position = fd, _HEAD.size
        _, self.ends[1], self.ends[2] = _HEAD.unpack(head)
        for record, end in _scan(fd, _HEAD.size):
            self._position = end
            self._count(record.kind, record.channel, record.offset, record.data)
        os.ftruncate(fd, self._position)
        return True

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def begin_run(self) -> None:
        """Note that the program starts anew: offsets begin at 0."""
        with self._lock:
            self._write(_Kind.RUN, 0, 0, 0, b"")

    def put_back(self, ends: Mapping[int, int]) -> None:
        """Note that the program was put back to when its channels had come to `ends`."""
        with self._lock:
            if self.ends != ends:
                self._write(_Kind.BACK, 0, 0, time.time_ns(), _OFFSETS.pack(ends[1], ends[2]))

    def append(self, channel: int, offset: int, data: bytes, time_ns: int) -> None:
        """Write bytes that begin at `offset`; those that are on record already are left out."""
        with self._lock:
            known = max(0, min(self.ends[channel] - offset, len(data)))
            for start in range(known, len(data), PIECE):
                piece = data[start : start + PIECE]
                self._write(_Kind.DATA, channel, offset + start, time_ns, piece)

    def _write(self, kind: _Kind, channel: int, offset: int, time_ns: int, data: bytes) -> None:
        record = _RECORD.pack(kind, channel, 0, len(data), time_ns, offset) + data
        if self._position + len(record) > self._size and self._position > _HEAD.size:
            self._start_file()
        try:
            if self._fd < 0 or os.pwrite(self._fd, record, self._position) != len(record):
                raise OSError("a record was not written whole")
        except OSError:
            # The hole shows in the offsets of the next record that can be written.
            self._cut()
            return
        self._position += len(record)
        self._count(kind, channel, offset, data)

    def _cut(self) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._position)

    def _count(self, kind: int, channel: int, offset: int, data: bytes) -> None:
        if (starts := _starts(kind, data)) is not None:
            self.ends = starts
        elif channel in self.ends:
            self.ends[channel] = offset + len(data)

    def _start_file(self) -> None:
        self._close()
        self._number += 1
        path = self._directory / f"{self._name}.{self._number:06d}.log"
        self._position = _HEAD.size
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(path, flags, 0o600)
            os.write(self._fd, _HEAD.pack(_MAGIC, self.ends[1], self.ends[2]))
        except OSError:
            self._close()
            path.unlink(missing_ok=True)
        for _, old in log_files(self._directory, self._name)[: -self._files - 1]:
            old.unlink(missing_ok=True)


class LogReader:
    """A place in a log. `batch` returns what comes next and survives the rotation of the files."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self._number = -1
        self._fd = -1
        self._position = 0
        self._skip = 0
        self._expected: dict[int, int] = {}

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def seek_tail(self, lines: int) -> None:
        """Begin at the last `lines` lines of what is there now."""
        files = log_files(self._directory, self._name)
        last = True
        for number, path in reversed(files):
            with open(path, "rb") as file:
                places = list(_scan(file.fileno(), _HEAD.size))
            for record, end in reversed(places):
                if record.kind != _Kind.DATA:
                    continue
                start = end - _RECORD.size - len(record.data)
                stop = len(record.data) - (1 if last else 0)
                last = False
                while lines > 0 and (found := record.data.rfind(b"\n", 0, stop)) >= 0:
                    lines -= 1
                    stop = found
                if lines <= 0:
                    self._open(number, path)
                    self._position, self._skip = start, min(stop + 1, len(record.data))
                    self._expected = {}
                    return

    def seek_offset(self, offsets: dict[int, int]) -> None:
        """Begin at these offsets of the newest run; bytes before them are left out."""
        for number, path in reversed(log_files(self._directory, self._name)):
            if not self._open(number, path):
                continue
            start = _HEAD.size
            for record, end in _scan(self._fd, _HEAD.size):
                if record.kind != _Kind.DATA:
                    start = end
            self._position = start
            head = os.pread(self._fd, _HEAD.size, 0)
            _, first, second = _HEAD.unpack(head)
            covered = first <= offsets.get(1, 0) and second <= offsets.get(2, 0)
            if start > _HEAD.size or covered:
                break
        self._expected = dict(offsets)

    def batch(self) -> list[tuple[LogRecord, int]]:
        """Return the next records, each with the offset of its first byte; none at the end.

        A record with `missing` > 0 stands where bytes are not on record.
        """
        while True:
            if self._fd < 0 and not self._next_file():
                return []
            newer = any(n > self._number for n, _ in log_files(self._directory, self._name))
            found: list[tuple[LogRecord, int]] = []
            size = 0
            for record, end in _scan(self._fd, self._position):
                self._position = end
                found += self._shown(record)
                size += len(record.data)
                if size >= _BATCH:
                    break
            if found:
                return found
            if not newer:
                return []
            # The next file was there before this one was read to its end: nothing more comes here.
            self.close()

    def _shown(self, record: _Record) -> Iterator[tuple[LogRecord, int]]:
        if (starts := _starts(record.kind, record.data)) is not None:
            self._expected = starts
            return
        skip, self._skip = self._skip, 0
        expected = self._expected.get(record.channel, record.offset)
        if expected < record.offset:
            gap = LogRecord(record.channel, record.time_ns, b"", record.offset - expected)
            yield gap, expected
        skip = max(skip, min(expected - record.offset, len(record.data)), 0)
        self._expected[record.channel] = max(expected, record.offset + len(record.data))
        if data := record.data[skip:]:
            yield LogRecord(record.channel, record.time_ns, data), record.offset + skip

    def _next_file(self) -> bool:
        for number, path in log_files(self._directory, self._name):
            if number > self._number:
                first = self._number < 0
                if not self._open(number, path):
                    continue
                if first:
                    _, one, two = _HEAD.unpack(os.pread(self._fd, _HEAD.size, 0))
                    self._expected = {1: one, 2: two} | self._expected
                return True
        return False

    def _open(self, number: int, path: Path) -> bool:
        self.close()
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False  # rotated away in this moment
        head = os.pread(fd, _HEAD.size, 0)
        if len(head) < _HEAD.size or not head.startswith(_MAGIC):
            os.close(fd)
            return False
        self._fd, self._number, self._position = fd, number, _HEAD.size
        return True


def _scan(fd: int, position: int) -> Iterator[tuple[_Record, int]]:
    """Yield each whole record from `position` on, with the position after it."""
    while True:
        block = os.pread(fd, _BATCH + _RECORD.size, position)
        at = 0
        while (parsed := _parse(block, at)) is not None:
            record, at = parsed
            yield record, position + at
        if at == 0:
            return
        position += at


def _parse(block: bytes, at: int) -> tuple[_Record, int] | None:
    if len(block) - at < _RECORD.size:
        return None
    kind, channel, _, size, time_ns, offset = _RECORD.unpack_from(block, at)
    start = at + _RECORD.size
    if kind not in _KINDS or size > PIECE or len(block) - start < size:
        return None
    if kind == _Kind.BACK and size != _OFFSETS.size:
        return None
    return _Record(kind, channel, time_ns, offset, block[start : start + size]), start + size


def tail_lines(data: bytes, lines: int) -> bytes:
    """Return the last `lines` lines of `data`; one without a newline at its end counts."""
    stop = len(data) - 1
    for _ in range(lines):
        stop = data.rfind(b"\n", 0, max(stop, 0))
        if stop < 0:
            return data
    return data[stop + 1 :] if lines else b""


def read_console(path: Path, files: int) -> Sequence[tuple[int, bytes]]:
    """Return the console's kept text, oldest first, each part with the time of its last byte."""
    parts = []
    names = [*(path.with_name(f"{path.name}.{n}") for n in range(files, 0, -1)), path]
    for name in names:
        with contextlib.suppress(FileNotFoundError), open(name, "rb") as file:
            parts.append((os.fstat(file.fileno()).st_mtime_ns, file.read()))
    return parts


def copy_logs(source: Path, target: Path) -> None:
    """Copy all logs of a directory, as far as they are written, into another, new one.

    Whoever goes on with the copies must not touch the originals: those that are still written to
    are copied, the others shared. Raises OSError.
    """
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths = sorted(source.glob("*.log")) if source.is_dir() else []
    for path, following in itertools.zip_longest(paths, paths[1:]):
        with contextlib.suppress(FileNotFoundError):  # it was rotated away
            if following is not None and _name(following) == _name(path):
                os.link(path, target / path.name)
            else:
                shutil.copyfile(path, target / path.name)


def put_back_logs(saved: Path, logs: Path, *, size: int, files: int) -> None:
    """Let the logs in `logs` go on from where they were when `copy_logs` made `saved` of them.

    What was written since stays, but the programs know nothing of it. `size` and `files` are as a
    writer takes them. Raises OSError.
    """
    for name in sorted({_name(path) for path in saved.glob("*.log")}):
        if not log_files(logs, name):
            logs.mkdir(mode=0o700, parents=True, exist_ok=True)
            for _, path in log_files(saved, name):
                shutil.copyfile(path, logs / path.name)
            continue
        then, now = (LogWriter(each, name, size=size, files=files) for each in (saved, logs))
        try:
            then.open()
            now.open()
            now.put_back(then.ends)
        finally:
            then.close()
            now.close()


def _name(path: Path) -> str:
    return path.name.rsplit(".", 2)[0]
