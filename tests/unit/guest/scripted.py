"""A guest whose every byte the test chooses, over a real socket."""

import asyncio
from pathlib import Path
from typing import Any, Self

from hutch.guest.base import Guest
from hutch.guest.frames import (
    VERSION,
    Direction,
    Frame,
    FrameDecoder,
    FrameType,
    Preamble,
    PreambleKind,
    PreambleScanner,
    encode_frame,
)
from hutch.guest.messages import encode_map
from hutch.guest.session import connect_guest

HELLO_EVENT = {
    "event": "hello",
    "agent_version": "1",
    "protocol": 1,
    "kernel": "k",
    "boot_id": "b",
    "uptime_ns": 1,
    "stage": "ready",
    "cpus": 1,
    "memory_bytes": 1,
    "generation": 0,
}


def message(kind: FrameType, stream: int, body: dict[str, Any]) -> bytes:
    return encode_frame(kind, stream, encode_map(body))


class ScriptedGuest:
    """Listens, collects the bytes of its one host, and sends what it is told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._decoder = FrameDecoder(Direction.TO_GUEST)
        self._scanner = PreambleScanner(PreambleKind.HELLO)
        self._connected = asyncio.Event()
        self._frames: list[Frame] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._accept, self.path)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        if self._connected.is_set():
            self._writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._connected.set()

    async def hello(self) -> Preamble:
        """Return the next HELLO."""
        await self._connected.wait()
        while (found := self._scanner.next()) is None:
            self._scanner.feed(await self._read())
        return found

    async def welcome(self) -> None:
        """Take part in the greeting as the protocol wants it."""
        hello = await self.hello()
        self.send(Preamble(PreambleKind.WELCOME, VERSION, hello.nonce).encode())
        self.send(message(FrameType.EVENT, 0, HELLO_EVENT))

    async def connect(self) -> Guest:
        """Return the host's session after a good greeting."""
        async with asyncio.TaskGroup() as group:
            session = group.create_task(connect_guest(self.path, timeout=60))
            group.create_task(self.welcome())
        return session.result()

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def drain(self) -> None:
        await self._writer.drain()

    def hang_up(self) -> None:
        self._writer.close()

    async def frame(self) -> Frame:
        """Return the next frame of the host."""
        while not self._frames:
            self._frames += self._decoder.feed(await self._read())
        return self._frames.pop(0)

    async def request(self, operation: str) -> Frame:
        """Return the next frame, which must be the request of an operation."""
        frame = await self.frame()
        assert frame.type == FrameType.REQUEST
        assert frame.message()["op"] == operation
        return frame

    async def _read(self) -> bytes:
        data = await asyncio.wait_for(self._reader.read(1 << 16), 60)
        if not data:
            raise ConnectionResetError
        return data
