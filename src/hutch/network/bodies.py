"""Bodies of HTTP/1 messages, taken out of the framing that they came in.

A reader takes what it can off the front of a buffer; nobody here holds a body, or writes one. Pure.
"""

import re
from typing import Final, Protocol

from hutch.network.heads import BadHead, HeadReader, read_fields

EXTENSION_LIMIT: Final = 256
"""Bytes of what a chunk may say besides its size. It is dropped: nobody uses it but attackers."""
TRAILER_LIMIT: Final = 8 * 1024
"""Bytes of the fields after a chunked body. They are dropped, as RFC 9110, 6.5.1 allows."""

CHUNKS: Final = 32
"""Chunks that are read at once: 64 KiB in chunks of 2 KiB, as real servers write them. Of one byte
each there could be eleven thousand, and all other connections would wait for them."""

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]{0,16}(;[\t\x20-\x7e\x80-\xff]{0,255})?\r\n")
_LINE_LIMIT = 16 + 16 + EXTENSION_LIMIT + 2


class Body(Protocol):
    """Reads one body. `done` tells that it had its last byte."""

    @property
    def done(self) -> bool:
        """Whether all of it was read."""

    @property
    def stopped(self) -> bool:
        """Whether `read` left something unread for now, because it is much work."""

    def read(self, buffer: bytearray) -> bytes:
        """Take off `buffer` what belongs to the body and return what was in it.

        Raises BadHead for a framing that can be understood in two ways.
        """

    def pass_by(self, count: int) -> bool:
        """Count so many bytes as read, if all of them are in the body, and more will be.

        So large bodies are not copied. False if they are to be read.
        """


class Counted:
    """A body of so many bytes, 0 among them."""

    stopped = False

    def __init__(self, length: int) -> None:
        self._left = length

    @property
    def done(self) -> bool:
        """Whether all of it was read."""
        return not self._left

    def read(self, buffer: bytearray) -> bytes:
        """Take off `buffer` what belongs to the body."""
        data = bytes(buffer[: self._left])
        del buffer[: len(data)]
        self._left -= len(data)
        return data

    def pass_by(self, count: int) -> bool:
        """Count so many bytes as read."""
        if count >= self._left:
            return False
        self._left -= count
        return True


class Endless:
    """A body that ends with its connection."""

    done = stopped = False

    def read(self, buffer: bytearray) -> bytes:
        """Take all of `buffer`."""
        data = bytes(buffer)
        buffer.clear()
        return data

    def pass_by(self, count: int) -> bool:
        """Do nothing: all bytes are in the body."""
        return True


class Chunked:
    """A body in chunks, after the last of which trailers may stand."""

    def __init__(self) -> None:
        self._left = 0  # of the chunk
        self._ending = False  # the line end after a chunk is due
        self._trailers: HeadReader | None = None
        self._done = False
        self.stopped = False

    @property
    def done(self) -> bool:
        """Whether all of it was read."""
        return self._done

    def read(self, buffer: bytearray) -> bytes:
        """Take off `buffer` what belongs to the body and return what was in its chunks."""
        parts = []
        begun = 0
        self.stopped = False
        while not self._done:
            if self._left:
                if not buffer:
                    break
                parts.append(bytes(buffer[: self._left]))
                del buffer[: len(parts[-1])]
                self._left -= len(parts[-1])
                self._ending = not self._left
            elif self._ending:
                if not b"\r\n".startswith(buffer[:2]):
                    raise BadHead("a chunk of its body is longer than it said")
                if len(buffer) < 2:
                    break
                del buffer[:2]
                self._ending = False
            elif self._trailers is not None:
                if not self._end(buffer, self._trailers):
                    break
            elif begun == CHUNKS:
                self.stopped = True
                break
            elif self._begin(buffer):
                begun += 1
            else:
                break
        return b"".join(parts)

    def pass_by(self, count: int) -> bool:
        """Count so many bytes as read, if they are all within a chunk."""
        if count >= self._left:
            return False
        self._left -= count
        return True

    def _begin(self, buffer: bytearray) -> bool:
        """Read the line before a chunk; False if it is not whole."""
        end = buffer.find(b"\n", 0, _LINE_LIMIT) + 1
        if not end:
            if len(buffer) >= _LINE_LIMIT:
                raise BadHead("a chunk of its body says too much about itself")
            return False
        found = _SIZE.fullmatch(buffer, 0, end)
        if not found:
            raise BadHead("a chunk of its body has no sound size")
        self._left = int(found[1], 16)
        del buffer[:end]
        if not self._left:
            self._trailers = HeadReader(TRAILER_LIMIT)
        return True

    def _end(self, buffer: bytearray, trailers: HeadReader) -> bool:
        """Read what is after the last chunk; False if it is not whole."""
        if buffer.startswith(b"\r\n"):
            del buffer[:2]
        elif (lines := trailers.read(buffer)) is not None:
            read_fields(lines)
        else:
            return False
        self._done = True
        return True


def chunk(data: bytes) -> bytes:
    """Write a chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def taken(parts: list[bytes]) -> bytes:
    """Take all parts of something off their list."""
    data = b"".join(parts)
    parts.clear()
    return data
