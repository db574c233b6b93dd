"""The wire of the fake agent: a connection that finds HELLOs and frames, and passes them on."""

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol, cast

from hutch.guest import frames
from hutch.guest.fake_exec import FakeSession
from hutch.guest.fake_files import FakeError, FakeFiles
from hutch.guest.frames import Direction, Frame, FrameType, Preamble, PreambleKind
from hutch.guest.messages import GuestProtocolError, encode_map


class Agent(Protocol):
    """What the wire and the streams need of `fake.FakeAgent`."""

    silent: bool
    connection: "FakeConnection | None"
    services: dict[int, bytes]

    def greeting(self) -> dict[str, Any]:
        """Return the event `hello`."""

    def unary(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a unary operation."""

    def ready_files(self) -> FakeFiles:
        """Return the file system, or raise not_ready."""

    def session(self, exec_id: str) -> FakeSession:
        """Return a session, or raise not_found."""

    def start_program(self, request: dict[str, Any]) -> FakeSession:
        """Start a program."""


class FakeConnection(asyncio.Protocol):
    """One connection of a host: finds its HELLOs, decodes its frames, sends ours."""

    def __init__(self, agent: Agent, streams: Mapping[str, type["FakeStream"]]) -> None:
        self.agent = agent
        self._kinds = streams
        self._scanner = frames.PreambleScanner(PreambleKind.HELLO)
        self._decoder: frames.FrameDecoder | None = None
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, FakeStream] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Undo what the connection's streams hold."""
        self._reset()
        if self.agent.connection is self:
            self.agent.connection = None

    def data_received(self, data: bytes) -> None:
        """Take bytes in: a HELLO anywhere begins anew, everything else is frames."""
        if self.agent.silent:
            return
        self._scanner.feed(data)
        greeted = False
        while (hello := self._scanner.next()) is not None:
            self._welcome(hello)
            greeted = True
        if greeted:
            data = self._scanner.rest()
        if self._decoder is None:
            return
        try:
            for frame in self._decoder.feed(data):
                self._accept(frame)
        except GuestProtocolError:
            # Malformed: nothing is believed until the next HELLO.
            self._decoder = None

    def _welcome(self, hello: Preamble) -> None:
        self._reset()
        self.agent.connection = self
        version = min(hello.version, frames.VERSION)
        self.write(Preamble(PreambleKind.WELCOME, version, hello.nonce).encode())
        if version:
            self._decoder = frames.FrameDecoder(Direction.TO_GUEST)
            self.message(FrameType.EVENT, 0, self.agent.greeting())

    def _reset(self) -> None:
        self._decoder = None
        for stream in list(self._streams.values()):
            stream.close()
        self._streams.clear()

    def _accept(self, frame: Frame) -> None:
        stream = self._streams.get(frame.stream)
        if frame.type == FrameType.REQUEST:
            self._request(frame.stream, frame.message())
        elif stream is None:
            return
        elif frame.type == FrameType.DATA:
            stream.data(frame.payload)
        elif frame.type == FrameType.END:
            stream.end()
        elif frame.type == FrameType.CREDIT:
            stream.credit(frame.channel, frame.credit())
        elif frame.type == FrameType.CONTROL:
            stream.control(frame.message())
        else:
            del self._streams[frame.stream]
            stream.close()

    def _request(self, number: int, request: dict[str, Any]) -> None:
        operation = request.pop("op", "")
        try:
            if operation in self._kinds:
                stream = self._kinds[operation](self, number)
                self._streams[number] = stream
                stream.open(request)
            else:
                self.message(FrameType.REPLY, number, self.agent.unary(operation, request))
        except FakeError as failure:
            self.error(number, failure.message)
        except (KeyError, TypeError, AttributeError) as failure:
            self.error(number, FakeError("bad_request", repr(failure)).message)

    # ---- to the host

    def message(self, kind: FrameType, number: int, message: dict[str, Any]) -> None:
        """Send a frame with a map."""
        self.write(frames.encode_frame(kind, number, encode_map(message)))

    def error(self, number: int, message: dict[str, Any]) -> None:
        """End a stream with an error."""
        self._streams.pop(number, None)
        self.message(FrameType.ERROR, number, message)

    def result(self, number: int, message: dict[str, Any]) -> None:
        """End a stream well."""
        self._streams.pop(number, None)
        self.message(FrameType.RESULT, number, message)

    def write(self, data: bytes) -> None:
        """Send bytes."""
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        """End the connection after what is written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()


class FakeStream:
    """The guest's end of a stream; one class for each kind of streaming operation."""

    def __init__(self, connection: FakeConnection, number: int) -> None:
        self.connection = connection
        self.over = False
        self.agent = connection.agent
        self.number = number

    def open(self, request: dict[str, Any]) -> None:
        """Take the request. Raises FakeError."""

    def data(self, part: bytes) -> None:
        """Take data from the host."""

    def end(self) -> None:
        """Take the end of the host's data."""

    def credit(self, channel: int, size: int) -> None:
        """Take credit."""

    def control(self, message: dict[str, Any]) -> None:
        """Take a CONTROL frame."""

    def close(self) -> None:
        """Undo: the host has lost interest."""

    def reply(self, message: dict[str, Any]) -> None:
        """Send the REPLY."""
        self.connection.message(FrameType.REPLY, self.number, message)

    def send(self, channel: int, part: bytes) -> None:
        """Send a DATA frame."""
        self.connection.write(
            frames.encode_frame(FrameType.DATA, self.number, part, channel=channel)
        )

    def send_end(self, channel: int) -> None:
        """Send an END frame."""
        self.connection.write(frames.encode_frame(FrameType.END, self.number, channel=channel))

    def finish(self, result: dict[str, Any]) -> None:
        """Send the RESULT."""
        self.over = True
        self.connection.result(self.number, result)

    def give(self, size: int) -> None:
        """Acknowledge data of channel 0."""
        self.connection.write(frames.encode_credit(self.number, 0, size))
