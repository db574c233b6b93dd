"""One connection to one agent: greets it, sorts its frames into streams, and ends cleanly.

Bytes are read straight into the decoder's buffer. Whatever the guest does, memory is bounded and a
violation of the protocol closes the connection and fails everyone who waits. It must not know what
operations mean.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar, cast

from hutch.errors import HutchError, error
from hutch.guest import failures
from hutch.guest.events import EventQueue
from hutch.guest.frames import (
    NONCE_SIZE,
    VERSION,
    Direction,
    Frame,
    FrameDecoder,
    FrameType,
    Preamble,
    PreambleKind,
    PreambleScanner,
    encode_message,
)
from hutch.guest.messages import GuestProtocolError
from hutch.guest.streams import Stream

T = TypeVar("T")
Message = dict[str, Any]

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 0.25
_ALIVE_PAUSE: Final = 1.0
"""Seconds between HELLOs: at first, at most, and once the guest has answered an earlier one."""

_WRITE_HIGH: Final = 256 << 10
_READ_SIZE: Final = 128 << 10
"""Bytes taken in per turn of the event loop: a flood of tiny frames must not starve the others."""

_LAST_STREAM: Final = (1 << 32) - 1


class Link(asyncio.BufferedProtocol):
    """The host's end of the byte stream, made by `loop.create_unix_connection(Link, path)`."""

    def __init__(self) -> None:
        self.events = EventQueue()
        self._transport: asyncio.Transport | None = None
        self._decoder = FrameDecoder(Direction.TO_HOST)
        self._scanner: PreambleScanner | None = PreambleScanner(PreambleKind.WELCOME)
        self._nonces: dict[bytes, float] = {}
        self._round_trip = 0.0
        self._alive = False
        self._greeted = asyncio.Event()
        self._streams: dict[int, Stream] = {}
        self._last_stream = 0
        self._writable = asyncio.Event()
        self._writable.set()
        self._failure: HutchError | None = None
        self._closed = asyncio.Event()

    # ---- life

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, for whatever reason."""
        return self._failure is not None

    @property
    def failure(self) -> HutchError | None:
        """Why the connection has ended."""
        return self._failure

    async def wait_closed(self) -> None:
        """Wait until the connection has ended."""
        await self._closed.wait()

    def close(self) -> None:
        """End the connection: everyone who waits gets sandbox_died."""
        self.fail(failures.lost("it was closed by the host"))

    def fail(self, failure: HutchError) -> None:
        """End the connection with an error for everyone who waits; only the first counts."""
        if self._failure is not None:
            return
        self._failure = failure
        if self._transport is not None:
            # Not close(): that would wait for a guest that may never read what is still to be
            # written.
            self._transport.abort()
        for stream in list(self._streams.values()):
            stream.fail(failure)
        self._streams.clear()
        self.events.close()
        self._writable.set()
        self._greeted.set()
        self._closed.set()

    # ---- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go."""
        return self._decoder.space()[:_READ_SIZE]

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes in."""
        try:
            if self._scanner is None:
                for frame in self._decoder.advance(nbytes):
                    self._accept(frame)
            else:
                self._greet(self._scanner, bytes(self._decoder.space()[:nbytes]))
        except GuestProtocolError as failure:
            self.fail(failure)

    def eof_received(self) -> bool:
        """Take the other side's end for the end of all."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the other side has gone."""
        self.fail(failures.lost(str(exc) if exc else "the other side has closed it"))

    def pause_writing(self) -> None:
        """Hold data back: the guest reads slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let data go again."""
        self._writable.set()

    # ---- greeting

    async def greet(self, seconds: float) -> float:
        """Send HELLO until the guest answers; return the round trip in seconds.

        The guest may still be booting, and bytes be lost until it opens its port, so HELLO is
        repeated, each time with a new nonce: only the answer to the last one is followed by nothing
        but this connection's frames. Raises guest_timeout, sandbox_died, or guest_failed when the
        two speak no common version.
        """
        pause = _FIRST_PAUSE
        try:
            async with asyncio.timeout(seconds):
                while not self._greeted.is_set():
                    self._say_hello()
                    await self._wait_greeted(pause)
                    if self._alive:
                        # It reads: the answer to the last HELLO is on its way, and another would
                        # start anew.
                        await self._wait_greeted(_ALIVE_PAUSE)
                    pause = min(pause * 1.5, _LONGEST_PAUSE)
        except TimeoutError:
            raise failures.timed_out("the guest agent", seconds) from None
        if self._failure is not None:
            raise self._failure
        return self._round_trip

    def _say_hello(self) -> None:
        nonce = secrets.token_bytes(NONCE_SIZE)
        self._nonces[nonce] = time.monotonic()
        self.send([Preamble(PreambleKind.HELLO, VERSION, nonce).encode()])

    async def _wait_greeted(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._greeted.wait()

    def _greet(self, scanner: PreambleScanner, data: bytes) -> None:
        scanner.feed(data)
        while (welcome := scanner.next()) is not None:
            sent = self._nonces.get(welcome.nonce)
            if sent is None:
                continue
            self._alive = True
            if welcome.nonce != next(reversed(self._nonces)):
                continue
            if welcome.version != VERSION:
                self.fail(_no_common_version())
                return
            self._round_trip = time.monotonic() - sent
            self._nonces.clear()
            self._scanner = None
            self._greeted.set()
            for frame in self._decoder.feed(scanner.rest()):
                self._accept(frame)
            return

    # ---- frames

    def _accept(self, frame: Frame) -> None:
        if frame.stream == 0:
            if frame.type != FrameType.EVENT:
                raise GuestProtocolError(f"{frame.type.name} on stream 0")
            self.events.put(frame.payload)
        elif frame.type == FrameType.EVENT:
            raise GuestProtocolError("EVENT on a stream other than 0")
        elif (stream := self._streams.get(frame.stream)) is not None:
            stream.accept(frame)
        elif frame.stream > self._last_stream:
            raise GuestProtocolError(f"{frame.type.name} on a stream that was never opened")

    def send(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Queue bytes for the guest; nothing happens on a closed connection."""
        if self._transport is not None and self._failure is None:
            self._transport.writelines(buffers)

    async def drained(self) -> None:
        """Wait until the connection takes more (or has ended)."""
        if not self._writable.is_set():
            await self._writable.wait()

    def forget(self, stream: int) -> None:
        """Ignore what else comes for a stream."""
        self._streams.pop(stream, None)

    # ---- operations

    async def open(
        self, operation: str, subject: str, request: Message, *, seconds: float, unary: bool = False
    ) -> Stream:
        """Send a request and return its stream, whose reply is still to come.

        `subject` names the object in errors. Raises bad_request when the request cannot be sent at
        all, guest_timeout when the connection takes nothing for `seconds`, and why the connection
        has ended.
        """
        try:
            async with asyncio.timeout(seconds):
                await self.drained()
        except TimeoutError:
            raise failures.timed_out(subject, seconds) from None
        if self._failure is not None:
            raise self._failure
        if self._last_stream >= _LAST_STREAM:
            self.fail(failures.lost("its stream numbers are used up"))
            raise failures.lost("its stream numbers are used up")
        number = self._last_stream + 1
        try:
            frame = encode_message(FrameType.REQUEST, number, {"op": operation, **request})
        except (ValueError, OverflowError) as problem:
            raise error(
                "bad_request", f"{subject}: the request cannot be sent: {problem}"
            ) from None
        self._last_stream = number
        stream = Stream(self, number, operation, subject, unary=unary)
        self._streams[number] = stream
        self.send([frame])
        return stream

    async def call(
        self,
        operation: str,
        subject: str,
        request: Message,
        parse: Callable[[Message], T],
        *,
        seconds: float,
    ) -> T:
        """Run a unary operation and return what `parse` makes of its reply."""
        stream = await self.open(operation, subject, request, seconds=seconds, unary=True)
        try:
            reply = await stream.reply(seconds)
        finally:
            stream.close()
        with self.strict():
            return parse(reply)

    @contextlib.contextmanager
    def strict(self) -> Iterator[None]:
        """Close the connection when the block finds the guest breaking the protocol."""
        try:
            yield
        except GuestProtocolError as failure:
            self.fail(failure)
            raise


def _no_common_version() -> HutchError:
    return error(
        "guest_failed",
        f"the guest agent speaks no version of the protocol that Hutch does (up to {VERSION})",
        hint="start the sandbox anew, so that it boots with this version's agent",
    )
