"""Layers and archives as plain bytes: gzip, zstd and uncompressed, told apart by content, within
bounds.

Each read gives bounded memory, whatever the input claims. What ends early, or does not decompress,
is an ImageError.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

import zstandard

from hutch.images.config import bad_image

_GZIP = b"\x1f\x8b"
_ZSTD = (b"\x28\xb5\x2f\xfd", *(bytes([n]) + b"\x2a\x4d\x18" for n in range(0x50, 0x60)))
_CHUNK = 256 << 10
_ZSTD_WINDOW = 128 << 20

_BOMB_RATIO = 400  # honest layers of zeros stay below
_BOMB_FLOOR = 1 << 30


def bomb_limit(compressed: int, free: int) -> int:
    """Return how many bytes `compressed` bytes may become, where the store's disk has `free` bytes
    left.
    """
    return min(max(_BOMB_FLOOR, compressed * _BOMB_RATIO), max(free, _BOMB_FLOOR // 16))


class Decompressed:
    """A file's decompressed content as a stream: `read(n)` gives n bytes, fewer only at the end.

    `limit` bounds what comes out (`total`); `consumed` counts what was read; `digest` (hex sha256)
    is for diff_ids; `advance` is told how many input bytes were used. Raises ImageError
    (bad_image).
    """

    def __init__(
        self,
        path: Path,
        *,
        limit: int,
        hashed: bool = False,
        advance: Callable[[int], None] | None = None,
    ) -> None:
        self._path = path
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        self._advance = advance
        self._limit = limit
        self._hash = hashlib.sha256() if hashed else None
        self._buffer = b""
        self._at = 0
        self.total = 0
        self.consumed = 0
        self._chunks = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def digest(self) -> str:
        """The hex sha256 of what has been decompressed so far."""
        assert self._hash is not None
        return self._hash.hexdigest()

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer only at the end."""
        while len(self._buffer) - self._at < size:
            chunk = self._next()
            if not chunk:
                break
            self._buffer = self._buffer[self._at :] + chunk
            self._at = 0
        piece = self._buffer[self._at : self._at + size]
        self._at += len(piece)
        self.consumed += len(piece)
        return piece

    def drain(self) -> None:
        """Read to the end."""
        self._buffer, self._at = b"", 0
        while self._next():
            pass

    def _next(self) -> bytes:
        try:
            chunk = next(self._chunks, b"")
        except (zlib.error, zstandard.ZstdError, EOFError) as cause:
            raise bad_image(f"{self._path.name} cannot be decompressed: {cause}") from cause
        self.total += len(chunk)
        if self.total > self._limit:
            raise bad_image(
                f"{self._path.name} decompresses to more than {self._limit} bytes: it is a "
                "decompression bomb, or larger than the free space of the store's disk"
            )
        if self._hash:
            self._hash.update(chunk)
        return chunk

    def _open(self) -> Iterator[bytes]:
        magic = self._file.read(4)
        self._file.seek(0)
        if magic.startswith(_GZIP):
            return _gunzip(self._raw)
        if magic in _ZSTD:
            return self._unzstd()
        return iter(lambda: self._raw(_CHUNK), b"")

    def _raw(self, size: int) -> bytes:
        chunk = self._file.read(size)
        if self._advance and chunk:
            self._advance(len(chunk))
        return chunk

    def _unzstd(self) -> Iterator[bytes]:
        # The reader, unlike decompressobj, bounds its output. It takes a missing end for the end,
        # which the tar reader and the layer's digest notice.
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        with decompressor.stream_reader(
            cast(IO[bytes], _Reader(self._raw)),
            read_size=_CHUNK,
            read_across_frames=True,
            closefd=False,
        ) as reader:
            while chunk := reader.read(_CHUNK):
                yield chunk


class _Reader:
    """The one method that zstandard wants of a file."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def read(self, size: int = -1) -> bytes:
        return self._read(size if size > 0 else _CHUNK)


def _gunzip(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yield the content of all members; zeros after the last are padding, as gzip has it."""
    waiting = b""
    while True:
        waiting = waiting or read(_CHUNK)
        waiting = waiting.lstrip(b"\0") if not waiting.startswith(_GZIP[:1]) else waiting
        if not waiting:
            if not (waiting := read(_CHUNK)):
                return
            continue
        member = zlib.decompressobj(31)
        while not member.eof:
            source = member.unconsumed_tail or waiting or read(_CHUNK)
            waiting = b""
            if not source:
                raise EOFError("it ends in the middle")
            if chunk := member.decompress(source, _CHUNK):
                yield chunk
        waiting = member.unused_data


def copy_stream(source: Decompressed, target: IO[bytes], size: int) -> None:
    """Copy exactly `size` bytes. Raises ImageError (bad_image) when the source ends before."""
    while size:
        chunk = source.read(min(size, _CHUNK))
        if not chunk:
            raise bad_image("a tar archive ends in the middle of a file")
        target.write(chunk)
        size -= len(chunk)
