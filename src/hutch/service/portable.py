"""The format of a snapshot in one file, written and read as a stream.

After a magic word and the format's number comes one zstd frame; the last 32 bytes are the SHA-256
of all before them. In the frame: the manifest as JSON, then each member as pieces of data with
their offsets, so that holes take nothing. What is read is trusted in nothing: sizes are bounded by
what the manifest declares, and that by its caller. It must not know what the members are.
"""

import hashlib
import io
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import zstandard

from hutch.engine.differences import extents
from hutch.errors import HutchError, error
from hutch.service.manifest import digest_of, open_source

MAGIC: Final = b"hutch-snapshot\n"
FORMAT: Final = 1

_HEAD: Final = struct.Struct(">15sB")
_LENGTH: Final = struct.Struct(">I")
_PIECE: Final = struct.Struct(">QI")
"""Offset and length of a piece; one of length 0 at the member's size ends it."""

_CHUNK: Final = 1 << 20
_MANIFEST_MAX: Final = 4 << 20
_WINDOW_MAX: Final = 32 << 20
_SEAL: Final = hashlib.sha256().digest_size
_LEVEL: Final = 1


@dataclass(frozen=True, slots=True)
class Member:
    """A file in the stream: its name, its whole size with holes, and its `digest_of`."""

    name: str
    size: int
    digest: str


Source = Path | int
"""A file, by its path or as a descriptor."""


def member_of(name: str, source: Source) -> Member:
    """Describe a file as a member. Blocking. Raises OSError."""
    return Member(name, os.stat(source).st_size, digest_of(source))


def write(manifest: Mapping[str, Any], members: Sequence[tuple[Member, Source]]) -> Iterator[bytes]:
    """Yield the stream, piece by piece. Blocking. Raises OSError.

    `manifest` are JSON values, to which the members are added. A file that is shorter than its
    member says raises OSError; other changes show when the stream is read.
    """
    seal = hashlib.sha256()
    packer = zstandard.ZstdCompressor(level=_LEVEL).compressobj()

    def sealed(data: bytes) -> bytes:
        seal.update(data)
        return data

    yield sealed(_HEAD.pack(MAGIC, FORMAT))
    listed = [{"name": m.name, "size": m.size, "digest": m.digest} for m, _ in members]
    text = json.dumps({**manifest, "members": listed}).encode()
    for data in (_LENGTH.pack(len(text)), text):
        yield sealed(packer.compress(data))
    for member, source in members:
        for data in _pieces(member, source):
            if packed := packer.compress(data):
                yield sealed(packed)
    yield sealed(packer.flush())
    yield seal.digest()


def _pieces(member: Member, source: Source) -> Iterator[bytes]:
    fd = open_source(source)
    try:
        for start, length in extents(fd, member.size):
            for at in range(start, start + length, _CHUNK):
                data = os.pread(fd, min(_CHUNK, start + length - at), at)
                if data.count(0) != len(data):
                    yield _PIECE.pack(at, len(data)) + data
    finally:
        os.close(fd)
    yield _PIECE.pack(member.size, 0)


class Reader:
    """A stream in a file, read from its beginning: first the manifest, then its members in order.

    Blocking. All raises snapshot_damaged for what is not whole or not as declared.
    """

    def __init__(self, file: BinaryIO, *, authentic: bool = False) -> None:
        """Check the seal and read the manifest. Raises snapshot_incompatible for other formats.

        What is `authentic`, because it is decrypted and checked piece by piece as it is read, is
        not read twice for its seal.
        """
        if authentic:
            _check_head(file)
        else:
            check_seal(file)
        unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX)
        body = _Bounded(file, file.seek(0, os.SEEK_END) - _SEAL, _HEAD.size)
        self._body = unpacker.stream_reader(cast("BinaryIO", body), read_size=_CHUNK)
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if length > _MANIFEST_MAX:
            raise unreadable("its manifest is too long")
        try:
            self.manifest = json.loads(self._read(length))
            listed = self.manifest["members"]
            self.members = [Member(str(m["name"]), m["size"], str(m["digest"])) for m in listed]
        except (ValueError, KeyError, TypeError, RecursionError) as cause:
            raise unreadable("its manifest is not readable") from cause
        names = [member.name for member in self.members]
        if len(set(names)) != len(names):
            raise unreadable("it names a member twice")
        if any(type(m.size) is not int or not 0 <= m.size < 1 << 62 for m in self.members):
            raise unreadable("it has a member of an impossible size")

    def extract(self, member: Member, target: Path, room: Callable[[], None]) -> None:
        """Write the next member into a new file, and check its digest.

        `room` is called as it grows, and raises when there is no more room. Raises OSError.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(target, flags, 0o600)
        try:
            self.fill(member, fd, room)
            os.fsync(fd)
        finally:
            os.close(fd)

    def fill(
        self, member: Member, fd: int, room: Callable[[], None], *, most: int | None = None
    ) -> None:
        """Write the next member into an empty file that is open, and check its digest: `extract`.

        `most` is how much of it may be more than holes. Raises OSError.
        """
        os.ftruncate(fd, member.size)
        written = 0
        for start, data in self._pieces(member):
            written += len(data)
            if most is not None and written > most:
                raise unreadable(f"{member.name} takes more than was said")
            room()
            _write_all(fd, data, start)
        if digest_of(fd) != member.digest:
            raise unreadable(f"{member.name} is not what was exported")

    def skip(self, member: Member) -> None:
        """Pass over the next member."""
        for _ in self._pieces(member):
            pass

    def _pieces(self, member: Member) -> Iterator[tuple[int, bytes]]:
        end = 0
        while True:
            start, length = _PIECE.unpack(self._read(_PIECE.size))
            if length > _CHUNK or start < end or start + length > member.size:
                raise unreadable(f"{member.name} is not as it was declared")
            if length == 0:
                break
            yield start, self._read(length)
            end = start + length
        if start != member.size:
            raise unreadable(f"{member.name} is not as long as it was declared")

    def finish(self) -> None:
        """Make sure that nothing comes after the last member."""
        if self._some(1):
            raise unreadable("it goes on after its end")

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._some(size - len(data))
            if not more:
                raise unreadable("it ends too early")
            data += more
        return data

    def _some(self, size: int) -> bytes:
        try:
            return self._body.read(size)
        except (zstandard.ZstdError, MemoryError) as cause:
            raise unreadable("it cannot be decompressed") from cause


class _Bounded(io.RawIOBase):
    """The bytes of a file from `start` up to `end`."""

    def __init__(self, file: BinaryIO, end: int, start: int) -> None:
        super().__init__()
        self._file = file
        self._end = end
        file.seek(start)

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._end - self._file.tell())
        return self._file.read(left if size is None or size < 0 else min(size, left))


class _Watched:
    """See `watched`."""

    def __init__(self, file: BinaryIO, look: Callable[[], None]) -> None:
        self._file = file
        self._look = look

    def read(self, size: int = -1) -> bytes:
        self._look()
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def watched(file: BinaryIO, look: Callable[[], None]) -> BinaryIO:
    """Return a file as this one, to be read and sought in, that calls `look` before each read."""
    return cast("BinaryIO", _Watched(file, look))


def check_seal(file: BinaryIO) -> None:
    """Make sure that a file is whole, and of a format that is known here. Blocking.

    Raises snapshot_damaged, snapshot_incompatible.
    """
    left = file.seek(0, os.SEEK_END) - _SEAL
    head = _check_head(file)
    seal = hashlib.sha256(head)
    left -= len(head)
    while left > 0 and (data := file.read(min(left, _CHUNK))):
        seal.update(data)
        left -= len(data)
    if left != 0 or file.read(_SEAL + 1) != seal.digest():
        raise unreadable("it is not whole, or was changed")


def _check_head(file: BinaryIO) -> bytes:
    """Return the head of a file of a format that is known here, and leave the file behind it."""
    file.seek(0)
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or not head.startswith(MAGIC):
        raise unreadable("it is no snapshot")
    if head[-1] != FORMAT:
        raise error(
            "snapshot_incompatible",
            f"the file has format {head[-1]}, not {FORMAT}",
            hint="import it with the version of Hutch that exported it",
        )
    return head


def create_file(path: Path) -> BinaryIO:
    """Return a new file for its owner alone, open for writing. Raises OSError.

    Quick enough for the event loop: one that a thread opened could be nobody's after a
    cancellation.
    """
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def unreadable(why: str) -> HutchError:
    """Return the error for a file that is not what was exported."""
    return error(
        "snapshot_damaged",
        f"the file cannot be imported: {why}",
        hint="export the snapshot again, and copy the file anew",
    )


def _write_all(fd: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
