"""One stream of the guest protocol, seen from the host: reply, data both ways, windows, end.

Sans-socket: frames come in through `accept`, bytes leave through an `Outlet` (link.py). What a
stream holds is bounded by the window whatever the guest sends. It must not know which operation it
carries.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from hutch.errors import HutchError
from hutch.guest import failures
from hutch.guest.frames import (
    WINDOW,
    Frame,
    FrameType,
    encode_credit,
    encode_data,
    encode_frame,
    encode_message,
    split_data,
)
from hutch.guest.messages import GuestProtocolError

_ACK_SIZE: Final = WINDOW // 4
_ACK_DELAY: Final = 0.005
"""Acknowledgements are gathered this long, in bytes and seconds: each wakes the guest."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of a channel."""

    channel: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes of a channel that the guest dropped."""

    channel: int
    size: int


@dataclass(frozen=True, slots=True)
class End:
    """The channel has ended."""

    channel: int


@dataclass(frozen=True, slots=True)
class Result:
    """The stream has ended well; always its last item."""

    message: dict[str, Any]


Item = Chunk | Gap | End | Result


class Outlet(Protocol):
    """Where a stream's bytes go."""

    def send(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Queue bytes for the guest; nothing happens on a closed connection."""

    async def drained(self) -> None:
        """Wait until the connection takes more."""

    def forget(self, stream: int) -> None:
        """Pass no more frames to this stream."""


class _Bytes:
    """Bytes that wait in an inbox: the frame's own until more are appended."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data: bytes | bytearray = data


class Inbox:
    """Received items in order, within bounds of bytes (the window) and of number.

    When it holds many items, bytes are appended to the last chunk of their own channel: the order
    within a channel is always kept, that between stdout and stderr only while the reader keeps up.
    """

    _ITEMS: Final = 256
    _GAPS: Final = 1024
    _MERGED: Final = 256 << 10

    def __init__(self) -> None:
        self._queue: deque[tuple[int, _Bytes | Gap | End | Result]] = deque()
        self._tails: dict[int, _Bytes] = {}
        self._gaps = 0

    def __len__(self) -> int:
        return len(self._queue)

    def put_data(self, channel: int, data: bytes) -> None:
        """Add bytes; empty ones leave no trace."""
        tail = self._tails.get(channel)
        if not data:
            return
        if tail is not None and (
            len(self._queue) >= self._ITEMS
            or (tail is self._queue[-1][1] and len(tail.data) + len(data) <= self._MERGED)
        ):
            if isinstance(tail.data, bytes):
                tail.data = bytearray(tail.data)
            tail.data += data
        else:
            self._tails[channel] = tail = _Bytes(data)
            self._queue.append((channel, tail))

    def put(self, channel: int, item: Gap | End | Result) -> None:
        """Add anything else. Raises GuestProtocolError when more gaps wait than an agent makes."""
        if isinstance(item, Gap):
            self._gaps += 1
            if self._gaps > self._GAPS:
                raise GuestProtocolError("a flood of GAP frames")
        self._tails.pop(channel, None)
        self._queue.append((channel, item))

    def pop(self) -> Item | None:
        """Return the oldest item, or None."""
        if not self._queue:
            return None
        channel, item = self._queue.popleft()
        if isinstance(item, _Bytes):
            if self._tails.get(channel) is item:
                del self._tails[channel]
            return Chunk(channel, bytes(item.data))
        if isinstance(item, Gap):
            self._gaps -= 1
        return item


class Stream:
    """The host's end of a stream. One task reads, one task writes.

    `operation` and `subject` name what it is for in errors. All waiting ends with an error when the
    connection does.
    """

    def __init__(
        self, outlet: Outlet, number: int, operation: str, subject: str, *, unary: bool
    ) -> None:
        self.number = number
        self._outlet = outlet
        self._operation = operation
        self._subject = subject
        self._unary = unary
        self._reply: dict[str, Any] | None = None
        self._inbox = Inbox()
        self._unacked = {1: 0, 2: 0}
        self._acks = {1: 0, 2: 0}
        self._ack_timer: asyncio.TimerHandle | None = None
        self._ended: set[int] = set()
        self._credit = WINDOW
        self._input_ended = False
        self._over = False
        self._failure: HutchError | None = None
        self._arrived = asyncio.Event()
        self._credited = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether nothing more can come: it has ended, failed, or was closed."""
        return self._over

    # ---- what the guest sends

    def accept(self, frame: Frame) -> None:
        """Take one frame of this stream. Raises GuestProtocolError."""
        match frame.type:
            case FrameType.REPLY:
                if self._reply is not None:
                    raise GuestProtocolError("a second REPLY on a stream")
                self._reply = frame.message()
                self._over = self._unary
            case FrameType.ERROR:
                self.fail(failures.from_guest(self._operation, self._subject, frame.message()))
            case FrameType.CREDIT:
                self._accept_credit(frame.credit())
            case _ if self._reply is None:
                raise GuestProtocolError(f"{frame.type.name} before REPLY")
            case FrameType.RESULT:
                self._inbox.put(0, Result(frame.message()))
                self._over = True
            case FrameType.DATA | FrameType.END | FrameType.GAP:
                self._accept_data(frame)
            case _:
                raise GuestProtocolError(f"{frame.type.name} on a stream")
        if self._over:
            self._finish()
        self._arrived.set()

    def _accept_data(self, frame: Frame) -> None:
        channel = frame.channel
        if channel in self._ended:
            raise GuestProtocolError(f"{frame.type.name} on a channel that has ended")
        if frame.type == FrameType.DATA:
            self._unacked[channel] += len(frame.payload)
            if self._unacked[channel] > WINDOW:
                raise GuestProtocolError("more data than the window allows")
            self._inbox.put_data(channel, frame.payload)
        elif frame.type == FrameType.END:
            self._ended.add(channel)
            self._inbox.put(channel, End(channel))
        else:
            self._inbox.put(channel, Gap(channel, frame.gap()))

    def _accept_credit(self, size: int) -> None:
        self._credit += size
        if self._credit > WINDOW:
            raise GuestProtocolError("credit for data that was never sent")
        self._credited.set()

    def fail(self, failure: HutchError) -> None:
        """End the stream with an error, which readers get after what has already come."""
        if not self._over:
            self._failure = failure
            self._over = True
            self._finish()
            self._arrived.set()

    # ---- reading

    async def reply(self, seconds: float) -> dict[str, Any]:
        """Return the REPLY. Raises what the guest answered instead, or guest_timeout."""
        try:
            async with asyncio.timeout(seconds):
                while self._reply is None:
                    await self._more()
        except TimeoutError:
            raise failures.timed_out(self._subject, seconds) from None
        return self._reply

    async def next(self, seconds: float | None = None) -> Item:
        """Return the next item; Result is the last. Raises the failure, or guest_timeout."""
        if (item := self._inbox.pop()) is not None:
            return item
        try:
            async with asyncio.timeout(seconds):
                while (item := self._inbox.pop()) is None:
                    await self._more()
        except TimeoutError:
            raise failures.timed_out(self._subject, seconds or 0) from None
        return item

    async def result(self, seconds: float) -> dict[str, Any]:
        """Return the RESULT of a stream that carries no data to the host."""
        item = await self.next(seconds)
        if not isinstance(item, Result):
            raise GuestProtocolError("data on a stream that carries none")
        return item.message

    def ack(self, channel: int, size: int) -> None:
        """Give back `size` consumed bytes of `channel`. Raises ValueError for more than was
        received.
        """
        if not 0 <= size <= self._unacked[channel] - self._acks[channel]:
            raise ValueError(f"{size} bytes were never received on channel {channel}")
        if self._over:
            return
        self._acks[channel] += size
        if self._acks[channel] >= _ACK_SIZE:
            self._send_acks()
        elif self._ack_timer is None:
            loop = asyncio.get_running_loop()
            self._ack_timer = loop.call_later(_ACK_DELAY, self._send_acks)

    def _send_acks(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        for channel, size in self._acks.items():
            if size:
                self._acks[channel] = 0
                self._unacked[channel] -= size
                self._outlet.send([encode_credit(self.number, channel, size)])

    async def _more(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._over:
            raise failures.lost("the stream has already ended")
        self._arrived.clear()
        await self._arrived.wait()

    # ---- writing

    async def write(self, data: bytes, *, seconds: float | None = None) -> None:
        """Send bytes on channel 0; waits while the window or the connection is full.

        `seconds` limits each wait, not the whole. Raises the stream's failure, or guest_timeout.
        Bytes for a stream that has ended well go nowhere: a program need not read its stdin.
        """
        for part in split_data(data):
            rest = part
            while rest and await self._may_send(seconds):
                now, rest = rest[: self._credit], rest[self._credit :]
                self._credit -= len(now)
                self._outlet.send(encode_data(self.number, 0, now))

    async def _may_send(self, seconds: float | None) -> bool:
        try:
            async with asyncio.timeout(seconds):
                while not self._over:
                    await self._outlet.drained()
                    if self._credit or self._over:
                        break
                    self._credited.clear()
                    await self._credited.wait()
        except TimeoutError:
            raise failures.timed_out(self._subject, seconds or 0) from None
        if self._failure is not None:
            raise self._failure
        return not self._over

    async def end(self) -> None:
        """Say that no more data comes on channel 0; doing it twice is harmless."""
        if not self._over and not self._input_ended:
            self._input_ended = True
            self._outlet.send([encode_frame(FrameType.END, self.number)])

    async def control(self, message: dict[str, Any]) -> None:
        """Send a CONTROL frame. Raises the stream's failure; nothing happens when it has ended."""
        if await self._connected():
            self._outlet.send([encode_message(FrameType.CONTROL, self.number, message)])

    async def _connected(self) -> bool:
        if not self._over:
            await self._outlet.drained()
        if self._failure is not None:
            raise self._failure
        return not self._over

    def close(self) -> None:
        """Lose interest: what was acknowledged is sent, then CLOSE. Doing it twice is harmless."""
        if self._over:
            return
        self._send_acks()
        self._outlet.send([encode_frame(FrameType.CLOSE, self.number)])
        self._failure = failures.lost("the stream was closed")
        self._over = True
        self._finish()
        self._arrived.set()

    def _finish(self) -> None:
        self._outlet.forget(self.number)
        self._credited.set()
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
