"""The asyncio transport: the counterpart of wire.py and of sync/transport.py, name by name.

A pool of connections to the daemon, which is found, or started, at the first request, and again
when it has gone away since. Knows no route (spec/api.md).
"""

import asyncio
import contextlib
import json as jsonlib
import os
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

from hutch.errors import HutchError, error
from hutch.sdk import http1
from hutch.sdk.http1 import LAST_CHUNK, Query, ResponseParser, body_chunk, broken, request_head
from hutch.sdk.start import ensure_daemon
from hutch.sdk.websocket import BINARY, CLOSE, TEXT, Bytes, Decoder, Message, frame_head
from hutch.sdk.websocket import upgrade_request as upgrade
from hutch.sdk.wire import READ_SIZE, check_peer, encode_body
from hutch.settings import Settings, load_settings
from hutch.tasks import in_thread

IDLE_LIMIT = 8
"""Idle connections that are kept."""

Lock = asyncio.Lock


class Link:
    """One connection's two directions; every failure is a DaemonError (daemon_unreachable)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, path: str) -> Self:
        """Connect to the daemon's socket. Raises DaemonError: daemon_unreachable, forbidden."""
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=READ_SIZE * 2)
        except OSError as cause:
            code = "forbidden" if isinstance(cause, PermissionError) else "daemon_unreachable"
            raise error(code, f"no daemon answers at {path}: {cause}") from cause
        try:
            check_peer(writer.get_extra_info("socket"), path)
        except HutchError:
            writer.close()
            raise
        return cls(reader, writer)

    @property
    def stale(self) -> bool:
        """Tell whether the other side has closed while the link was idle."""
        return self._reader.at_eof() or self._writer.is_closing()

    async def read(self) -> bytes:
        """Return the next bytes, none at the end."""
        try:
            return await self._reader.read(READ_SIZE)
        except OSError as cause:
            raise broken(f"the connection to the daemon was lost: {cause}") from cause

    async def write(self, *parts: Bytes) -> None:
        """Send parts; waits while the kernel has no room."""
        try:
            self.write_now(*parts)
            await self._writer.drain()
        except OSError as cause:
            raise broken(f"the connection to the daemon was lost: {cause}") from cause

    def write_now(self, *parts: Bytes) -> None:
        """Queue parts without waiting for room."""
        for part in parts:
            self._writer.write(part)

    @property
    def answered(self) -> bool:
        """Tell whether bytes wait to be read."""
        return bool(self._reader._buffer)  # type: ignore[attr-defined]

    def close(self) -> None:
        """End the connection."""
        self._writer.close()


class Response:
    """An answer below 400, whose body is read as it comes, in one way only.

    A body that is not read to its end costs the connection.
    """

    def __init__(
        self, pool: "Transport", link: Link, parser: ResponseParser, first: list[bytes]
    ) -> None:
        self._pool = pool
        self._link: Link | None = link
        self._parser = parser
        self._pieces = first
        self.status = parser.status
        self.headers = parser.headers

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while True:
                for piece in self._pieces:
                    yield piece
                if self._parser.done or self._link is None:
                    return
                self._pieces = self._parser.feed(await self._link.read())
        finally:
            await self.close()

    async def read(self) -> bytes:
        """Return the whole body."""
        out = bytearray()
        async for piece in self:
            out += piece
            if len(out) > http1.BODY_LIMIT:
                raise broken("the daemon's answer is too long")
        return bytes(out)

    async def json(self) -> Any:
        """Return the body's JSON value, or None for an empty one."""
        body = await self.read()
        return jsonlib.loads(body) if body else None

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the JSON object of each line (long work, events)."""
        rest = bytearray()
        async with contextlib.aclosing(aiter(self)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                rest += piece
                *lines, tail = rest.split(b"\n")
                rest = bytearray(tail)
                for line in lines:
                    if line.strip():
                        yield jsonlib.loads(line)

    async def close(self) -> None:
        """Let go of the body; when it has not ended, the connection with it."""
        link, self._link = self._link, None
        if link is not None:
            self._pool.give_back(link, self._parser.done and self._parser.reusable)


class WebSocket:
    """A WebSocket. One task may receive while another sends."""

    def __init__(self, link: Link, rest: bytes) -> None:
        self._link = link
        self._decoder = Decoder()
        self._queue: deque[Message] = deque()
        self.close_code: int | None = None
        self._take(rest)

    async def send_json(self, value: Any) -> None:
        """Send a value as a text message."""
        text = jsonlib.dumps(value, separators=(",", ":")).encode()
        await self._link.write(frame_head(TEXT, len(text)), text)

    async def send_binary(self, *parts: Bytes) -> None:
        """Send a binary message of these parts."""
        size = sum(len(part) for part in parts)
        await self._link.write(frame_head(BINARY, size), *parts)

    async def receive(self) -> Message | None:
        """Return the next message, None once the server has closed.

        Raises DaemonError (daemon_unreachable) when the connection is lost without a close.
        """
        while not self._queue:
            if self.close_code is not None:
                return None
            data = await self._link.read()
            if not data:
                raise broken("the daemon ended the connection")
            self._take(data)
        return self._queue.popleft()

    def _take(self, data: bytes) -> None:
        messages, replies = self._decoder.feed(data)
        self._queue.extend(messages)
        self.close_code = self._decoder.close_code
        if replies:
            self._link.write_now(replies)

    def close(self, last: Any = None) -> None:
        """End the connection without waiting; `last` is a value to send before."""
        if self.close_code is None:
            if last is not None:
                text = jsonlib.dumps(last).encode()
                self._link.write_now(frame_head(TEXT, len(text)), text)
            self._link.write_now(frame_head(CLOSE, 2), (1000).to_bytes(2, "big"))
        self._link.close()


class Transport:
    """A pool of connections to one home's daemon."""

    def __init__(self, settings: Settings | None = None, socket: str | None = None) -> None:
        """Use the daemon of `settings` (default: those in force), or the one at `socket`."""
        self._settings = settings
        self._given = socket
        self._path = socket
        self._idle: list[Link] = []

    async def request(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        *,
        json: Any = None,
        body: AsyncIterator[bytes] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send a request and return its answer once its head is here.

        `path` is percent-encoded, `headers` are sent as they are. Raises the error that the daemon
        answers, and DaemonError (daemon_unreachable) when the connection fails.
        """
        whole = body if isinstance(body, bytes) else None
        pieces = None if isinstance(body, bytes) else body
        own, start = encode_body(json, whole, chunked=pieces is not None)
        head = request_head(method, http1.target(path, query), own | dict(headers or {}))
        link = await self._take()
        parser = ResponseParser(method)
        try:
            await link.write(head, start)
            complete = pieces is None or await _send_body(link, pieces)
            first: list[bytes] = []
            while not parser.status:
                first += parser.feed(await link.read())
        except BaseException:
            link.close()
            raise
        parser.reusable &= complete
        response = Response(self, link, parser, first)
        if parser.status >= 400:
            raise http1.error_of(parser.status, await response.read())
        if parser.done:
            await response.close()
        return response

    async def websocket(self, path: str, query: Query | None = None) -> WebSocket:
        """Open a WebSocket. Raises the error that the daemon answers."""
        head, accept = upgrade(http1.target(path, query))
        link = await self._take()
        parser = ResponseParser("GET")
        try:
            await link.write(head)
            first: list[bytes] = []
            while not parser.status:
                first += parser.feed(await link.read())
            if parser.status != 101:
                body = await Response(self, link, parser, first).read()
                raise http1.error_of(parser.status, body)
            if parser.headers.get("sec-websocket-accept") != accept:
                raise broken("what listens on the daemon's socket speaks no WebSocket")
        except BaseException:
            link.close()
            raise
        return WebSocket(link, parser.rest)

    async def close(self) -> None:
        """End all idle connections."""
        while self._idle:
            self._idle.pop().close()

    def give_back(self, link: Link, reusable: bool) -> None:
        """Take a link back after its answer."""
        if reusable and len(self._idle) < IDLE_LIMIT:
            self._idle.append(link)
        else:
            link.close()

    async def _take(self) -> Link:
        while self._idle:
            link = self._idle.pop()
            if not link.stale:
                return link
            link.close()
        if self._path is not None:
            try:
                return await Link.open(self._path)
            except HutchError as failure:
                if failure.code != "daemon_unreachable" or self._given is not None:
                    raise
        if self._settings is None:
            self._settings = load_settings()
        self._path = await in_thread(ensure_daemon, self._settings)
        return await Link.open(self._path)


async def _send_body(link: Link, pieces: AsyncIterator[bytes]) -> bool:
    """Send a chunked body; False when an answer, a refusal, came before its end."""
    async for piece in pieces:
        try:
            if piece:
                await link.write(*body_chunk(piece))
        except HutchError:
            return False
        if link.answered:
            return False
    await link.write(LAST_CHUNK)
    return True


async def file_pieces(path: str | os.PathLike[str]) -> AsyncIterator[bytes]:
    """Yield a local file's bytes, read outside the event loop."""
    with await in_thread(Path(path).open, "rb") as file:
        while data := await in_thread(file.read, READ_SIZE):
            yield data


async def write_file(
    path: str | os.PathLike[str], pieces: AsyncIterator[bytes], *, name: str, mode: int = 0o666
) -> int:
    """Write a local file (in a directory: `name` in it); returns its bytes.

    It appears whole or not at all. `mode` are its permissions, less what the umask takes.
    """
    target = await in_thread(_target, Path(path), name)
    part = target.with_name(f".{target.name}.{os.urandom(8).hex()}.part")
    size = 0
    try:
        with await in_thread(open, part, "xb", opener=partial(os.open, mode=mode)) as file:
            async for piece in pieces:
                await in_thread(file.write, piece)
                size += len(piece)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return size


def _target(path: Path, name: str) -> Path:
    return path / name if path.is_dir() else path


async def each(items: Iterable[bytes] | AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the pieces of an iterable of either kind."""
    if isinstance(items, AsyncIterator):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
