"""The bytes of the guest protocol: preamble and frames, encoded and decoded without any I/O.

Counterpart of spec/guest-protocol.md §2 and §3 and of the agent's own codec; the golden frames hold
both to the same bytes. The peer is hostile: each length is checked before memory is taken for it,
and each violation raises GuestProtocolError. This module must not know what operations mean
or what a connection is (link.py).
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from hutch.guest.messages import GuestProtocolError, decode_map, encode_map

MAGIC: Final = bytes.fromhex("f44855544348f5f691e2b89dc7a3d68b")
VERSION: Final = 1
NONCE_SIZE: Final = 16
WINDOW: Final = 1 << 20
"""Bytes of one channel that may be unacknowledged."""
DATA_SIZE: Final = 64 << 10
"""The most that one DATA frame carries."""

_PREAMBLE: Final = struct.Struct("<16sBBH16sI")
_HEADER: Final = struct.Struct("<BBHII")
PREAMBLE_SIZE: Final = _PREAMBLE.size
HEADER_SIZE: Final = _HEADER.size


class PreambleKind(IntEnum):
    """The two preambles."""

    HELLO = 1
    WELCOME = 2


class FrameType(IntEnum):
    """The types of frame, as in §3 of the specification."""

    REQUEST = 1
    REPLY = 2
    ERROR = 3
    DATA = 4
    END = 5
    CREDIT = 6
    RESULT = 7
    CLOSE = 8
    CONTROL = 9
    EVENT = 10
    GAP = 11


class Direction(IntEnum):
    """Where a frame goes; the value is the largest payload that may go there, in bytes."""

    TO_GUEST = 1 << 20
    TO_HOST = 256 << 10


_ALLOWED: Final[Mapping[Direction, frozenset[int]]] = {
    Direction.TO_GUEST: frozenset(
        {
            FrameType.REQUEST,
            FrameType.DATA,
            FrameType.END,
            FrameType.CREDIT,
            FrameType.CLOSE,
            FrameType.CONTROL,
        }
    ),
    Direction.TO_HOST: frozenset(
        {
            FrameType.REPLY,
            FrameType.ERROR,
            FrameType.DATA,
            FrameType.END,
            FrameType.CREDIT,
            FrameType.RESULT,
            FrameType.EVENT,
            FrameType.GAP,
        }
    ),
}

_FIXED_SIZES: Final[Mapping[int, int]] = {
    FrameType.END: 0,
    FrameType.CREDIT: 4,
    FrameType.CLOSE: 0,
    FrameType.GAP: 8,
}

_DATA_CHANNELS: Final[Mapping[Direction, frozenset[int]]] = {
    Direction.TO_GUEST: frozenset({0}),
    Direction.TO_HOST: frozenset({1, 2}),
}


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame; `payload` is a copy of its own, valid for ever."""

    type: FrameType
    channel: int
    stream: int
    payload: bytes

    def message(self) -> dict[str, Any]:
        """Return the payload as a map. Raises GuestProtocolError when it is none, or exceeds the
        bounds.
        """
        return decode_map(self.payload)

    def credit(self) -> int:
        """Return the bytes that a CREDIT frame gives back."""
        return int.from_bytes(self.payload, "little")

    def gap(self) -> int:
        """Return the bytes that a GAP frame reports as dropped."""
        return int.from_bytes(self.payload, "little")


@dataclass(frozen=True, slots=True)
class Preamble:
    """A HELLO or a WELCOME."""

    kind: PreambleKind
    version: int
    nonce: bytes

    def encode(self) -> bytes:
        """Return its 40 bytes."""
        body = _PREAMBLE.pack(MAGIC, self.kind, self.version, 0, self.nonce, 0)[:-4]
        return body + zlib.crc32(body).to_bytes(4, "little")


class PreambleScanner:
    """Finds preambles of one kind in a stream of anything, in time linear in its bytes.

    Feed it bytes, then call `next` until it returns None; of those bytes it keeps less than one
    preamble when it is fed again.
    """

    def __init__(self, kind: PreambleKind) -> None:
        self._kind = kind
        self._buffer = b""
        self._after = 0
        """Where the last preamble of this buffer ended."""
        self._from = 0
        """Where the next one may begin."""

    def feed(self, data: bytes) -> None:
        """Take bytes in."""
        self._buffer = self._buffer[self._from :] + data
        self._after = self._from = 0

    def next(self) -> Preamble | None:
        """Return the next valid preamble, or None when more bytes are needed."""
        while (found := self._buffer.find(MAGIC, self._from)) >= 0:
            self._from = found
            end = found + PREAMBLE_SIZE
            if end > len(self._buffer):
                return None
            preamble = self._parse(self._buffer[found:end])
            if preamble is not None:
                self._after = self._from = end
                return preamble
            self._from = found + 1
        self._from = max(self._from, len(self._buffer) - len(MAGIC) + 1)
        return None

    def rest(self) -> bytes:
        """Return what was fed after the last preamble; all of it when there was none."""
        return self._buffer[self._after :]

    def _parse(self, raw: bytes) -> Preamble | None:
        _, kind, version, reserved, nonce, crc = _PREAMBLE.unpack(raw)
        if kind != self._kind or reserved or crc != zlib.crc32(raw[:-4]):
            return None
        return Preamble(PreambleKind(kind), version, nonce)


class FrameDecoder:
    """Turns bytes into frames, however they are split; holds at most one frame's worth and one read
    ahead.

    Reading straight into `space()` and calling `advance` costs one copy per payload; `feed` is for
    everyone else. After GuestProtocolError the decoder is of no more use.
    """

    _READ_AHEAD: Final = 256 << 10

    def __init__(self, direction: Direction) -> None:
        self._limit = int(direction)
        self._allowed = _ALLOWED[direction]
        self._channels = _DATA_CHANNELS[direction]
        self._view = memoryview(bytearray(HEADER_SIZE + self._limit + self._READ_AHEAD))
        self._start = 0
        self._end = 0

    @property
    def pending(self) -> int:
        """Bytes taken in that do not yet make a frame."""
        return self._end - self._start

    def space(self) -> memoryview:
        """Return where the next bytes go; never empty once all frames of the last `advance` were
        taken.
        """
        return self._view[self._end :]

    def advance(self, size: int) -> Iterator[Frame]:
        """Account for `size` bytes written to `space()` and yield the frames that are now whole.

        The iterator must be run to its end before `space` is called again.
        """
        self._end += size
        while (frame := self._next()) is not None:
            yield frame
        self._compact()

    def feed(self, data: bytes | memoryview) -> Iterator[Frame]:
        """Take bytes of any number and yield the frames that are now whole."""
        rest = memoryview(data)
        while rest:
            room = self.space()
            size = min(len(room), len(rest))
            room[:size] = rest[:size]
            rest = rest[size:]
            yield from self.advance(size)

    def _next(self) -> Frame | None:
        start, end = self._start, self._end
        if end - start < HEADER_SIZE:
            return None
        kind, channel, reserved, stream, size = _HEADER.unpack_from(self._view, start)
        # Checked on the header alone, so that a lie about the length costs nothing.
        if kind not in self._allowed:
            raise GuestProtocolError(
                f"frame type {kind} is unknown or not allowed in this direction"
            )
        if reserved:
            raise GuestProtocolError("reserved bits of a frame header are set")
        if size > self._limit:
            raise GuestProtocolError(f"a frame of {size} bytes, allowed are {self._limit}")
        if size != _FIXED_SIZES.get(kind, size):
            raise GuestProtocolError(f"a {FrameType(kind).name} frame of {size} bytes")
        if kind == FrameType.DATA and size > DATA_SIZE:
            raise GuestProtocolError(f"a DATA frame of {size} bytes, allowed are {DATA_SIZE}")
        self._check_channel(kind, channel)
        if end - start < HEADER_SIZE + size:
            return None
        body = start + HEADER_SIZE
        self._start = body + size
        return Frame(FrameType(kind), channel, stream, bytes(self._view[body : body + size]))

    def _check_channel(self, kind: int, channel: int) -> None:
        if kind in (FrameType.DATA, FrameType.END, FrameType.GAP):
            if channel not in self._channels:
                raise GuestProtocolError(f"{FrameType(kind).name} on channel {channel}")
        elif kind == FrameType.CREDIT:
            # Credit flows against the data, so it names the other side's channels.
            if channel > 2 or channel in self._channels:
                raise GuestProtocolError(f"CREDIT on channel {channel}")
        elif channel:
            raise GuestProtocolError(f"{FrameType(kind).name} on channel {channel}")

    def _compact(self) -> None:
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start > self._READ_AHEAD // 2 or self._end == len(self._view):
            kept = self.pending
            self._view[:kept] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, kept


def encode_frame(kind: FrameType, stream: int, payload: bytes = b"", channel: int = 0) -> bytes:
    """Return one frame. The caller keeps to the limits and keeps the magic out of the payload."""
    return _HEADER.pack(kind, channel, 0, stream, len(payload)) + payload


def encode_message(kind: FrameType, stream: int, message: Mapping[str, Any]) -> bytes:
    """Return one frame with a map. Raises ValueError when it is too large or would contain the
    magic.
    """
    payload = encode_map(message)
    if MAGIC in payload:
        raise ValueError("it contains the byte sequence that is reserved for starting a connection")
    if len(payload) > Direction.TO_GUEST:
        raise ValueError(f"it has {len(payload)} bytes, allowed are {int(Direction.TO_GUEST)}")
    return encode_frame(kind, stream, payload)


def encode_credit(stream: int, channel: int, size: int) -> bytes:
    """Return a CREDIT frame that gives back `size` bytes."""
    return encode_frame(FrameType.CREDIT, stream, size.to_bytes(4, "little"), channel)


def encode_gap(stream: int, channel: int, size: int) -> bytes:
    """Return a GAP frame."""
    return encode_frame(FrameType.GAP, stream, size.to_bytes(8, "little"), channel)


def split_data(data: bytes) -> Iterator[memoryview]:
    """Yield `data` in parts that each fit a DATA frame and none of which contains the magic.

    A magic is cut in its middle: two frames have a header between them, whose zero bytes the magic
    does not have.
    """
    view = memoryview(data)
    start = 0
    magic = data.find(MAGIC)
    while start < len(data):
        end = min(start + DATA_SIZE, len(data))
        if 0 <= magic < end:
            if magic + len(MAGIC) <= end:
                end = magic + len(MAGIC) // 2
            magic = data.find(MAGIC, end)
        yield view[start:end]
        start = end


def encode_data(
    stream: int, channel: int, part: bytes | memoryview
) -> tuple[bytes, bytes | memoryview]:
    """Return a DATA frame as two buffers, uncopied. `part` is one of `split_data`, or a piece of
    it.
    """
    return _HEADER.pack(FrameType.DATA, channel, 0, stream, len(part)), part
