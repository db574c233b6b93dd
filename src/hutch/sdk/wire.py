"""The blocking transport: HTTP requests and WebSockets over the daemon's unix socket.

For the CLI's hot path and the synchronous client. Imports nothing of asyncio, httpx or pydantic,
and must stay so: every millisecond here is paid by each `hutch exec`. Knows no route (spec/api.md).
"""

import contextlib
import json as jsonlib
import os
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

from hutch.errors import HutchError, error
from hutch.sdk import http1
from hutch.sdk.http1 import LAST_CHUNK, Query, ResponseParser, body_chunk, broken, request_head
from hutch.sdk.websocket import (
    BINARY,
    CLOSE,
    TEXT,
    Bytes,
    Decoder,
    Message,
    frame_head,
    upgrade_request,
)

READ_SIZE = 256 << 10


class Response:
    """An answer below 400, whose body is read as it comes.

    Take the body in one way only: `read`, `json`, iterate its pieces, or its `lines` of JSON.
    """

    def __init__(
        self, connection: "Connection", parser: ResponseParser, first: list[bytes]
    ) -> None:
        self._connection = connection
        self._parser = parser
        self._pieces = first
        self._ended = False
        self.status = parser.status
        self.headers: Mapping[str, str] = parser.headers

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield from self._pieces
            self._pieces = []
            if self._parser.done:
                self._finish()
                return
            self._pieces = self._parser.feed(self._connection._receive())

    def read(self) -> bytes:
        """Return the whole body."""
        out = bytearray()
        for piece in self:
            out += piece
            if len(out) > http1.BODY_LIMIT:
                raise broken("the daemon's answer is too long")
        return bytes(out)

    def json(self) -> Any:
        """Return the body's JSON value, or None for an empty one."""
        body = self.read()
        return jsonlib.loads(body) if body else None

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the JSON object of each line (long work, events)."""
        rest = bytearray()
        for piece in self:
            rest += piece
            *lines, tail = rest.split(b"\n")
            rest = bytearray(tail)
            for line in lines:
                if line.strip():
                    yield jsonlib.loads(line)

    def close(self) -> None:
        """Let go of the body; when it has not ended, the connection with it."""
        if self._parser.done:
            self._finish()
        else:
            self._connection.close()

    def _finish(self) -> None:
        if not self._ended:  # once: the connection may be another request's by now
            self._ended = True
            self._connection._finished(self._parser)


class WebSocket:
    """A WebSocket. Sending blocks until the kernel has the bytes; receiving as asked.

    In a select loop: `poll` once before the first select, then whenever `fileno` is readable.
    """

    def __init__(self, sock: socket.socket, rest: bytes) -> None:
        self._sock = sock
        self._decoder = Decoder()
        self._queue: deque[Message] = deque()
        self.close_code: int | None = None
        """Why the server closed: 1000, 1011 …; None while it has not."""
        self._take(rest)

    def fileno(self) -> int:
        """Return the descriptor to select on."""
        return self._sock.fileno()

    def send_json(self, value: Any) -> None:
        """Send a value as a text message."""
        self._send(TEXT, jsonlib.dumps(value, separators=(",", ":")).encode())

    def send_binary(self, *parts: Bytes) -> None:
        """Send a binary message of these parts, uncopied."""
        self._send(BINARY, *parts)

    def _send(self, kind: int, *parts: Bytes) -> None:
        head = frame_head(kind, sum(len(part) for part in parts))
        try:
            _send_all(self._sock, (head, *parts))
        except OSError as cause:
            raise broken(f"the connection to the daemon was lost: {cause.strerror}") from cause

    def receive(self, timeout: float | None = None) -> Message | None:
        """Return the next message, None once the server has closed.

        Raises DaemonError (daemon_unreachable) when the connection is lost without a close, and
        GuestError (guest_timeout) after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._queue:
            if self.close_code is not None:
                return None
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([self._sock], [], [], left)[0]:
                    raise error("guest_timeout", f"no message within {timeout:g} s")
            self._read(0)
        return self._queue.popleft()

    def poll(self) -> list[Message]:
        """Return what is there, reading the socket at most once and never waiting."""
        if not self._queue and self.close_code is None:
            self._read(socket.MSG_DONTWAIT)
        messages = list(self._queue)
        self._queue.clear()
        return messages

    def _read(self, flags: int) -> None:
        try:
            data = self._sock.recv(READ_SIZE, flags)
        except BlockingIOError:
            return
        except OSError as cause:
            raise broken(f"the connection to the daemon was lost: {cause.strerror}") from cause
        if not data:
            raise broken("the daemon ended the connection")
        self._take(data)

    def _take(self, data: bytes) -> None:
        messages, replies = self._decoder.feed(data)
        self._queue.extend(messages)
        self.close_code = self._decoder.close_code
        if replies:
            try:
                self._sock.sendall(replies)
            except OSError:
                # The server has gone since: what it said is still ours to read.
                return

    def close(self, last: Any = None) -> None:
        """End the connection without waiting; `last` is a value to send before."""
        if self.close_code is None and self._sock.fileno() >= 0:
            text = b"" if last is None else jsonlib.dumps(last).encode()
            goodbye = frame_head(TEXT, len(text)) + text if text else b""
            goodbye += frame_head(CLOSE, 2) + (1000).to_bytes(2, "big")
            with contextlib.suppress(OSError):  # a full or broken connection ends all the same
                self._sock.send(goodbye, socket.MSG_DONTWAIT)
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Connection:
    """A connection to the daemon: one request at a time, one after the other.

    Invariant: after an answer whose body was not read to its end, the connection is closed, and the
    next request makes a new one.
    """

    def __init__(self, path: str | os.PathLike[str], sock: socket.socket | None) -> None:
        self._path = os.fspath(path)
        self._sock = sock
        self.on_idle: Callable[[Connection], None] | None = None
        """Called, once, when an answer has been read and the connection may carry another."""

    @classmethod
    def connect(cls, path: str | os.PathLike[str], timeout: float = 10.0) -> Self:
        """Connect to the daemon's socket.

        Raises DaemonError: daemon_unreachable when nobody listens, forbidden when it is not ours.
        """
        return cls(path, open_socket(os.fspath(path), timeout))

    def request(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        *,
        json: Any = None,
        body: Iterable[bytes] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Response:
        """Send a request and return its answer once its head is here.

        `path` is percent-encoded (`http1.quote`); `body` is bytes or pieces to send as they come;
        `headers` are sent as they are; `timeout` bounds each wait for the socket, in seconds.
        Raises the error that the daemon answers, and DaemonError (daemon_unreachable) when the
        connection fails.
        """
        sock = self._socket()
        sock.settimeout(timeout)
        pieces = None if isinstance(body, bytes) else body
        own, start = encode_body(
            json, body if isinstance(body, bytes) else None, chunked=pieces is not None
        )
        head = request_head(method, http1.target(path, query), own | dict(headers or {}))
        parser = ResponseParser(method)
        complete = False
        try:
            _send_all(sock, (head, start))
            complete = pieces is None or _send_body(sock, pieces)
        except BrokenPipeError:
            pass  # refused before its end: the reason is waiting to be read
        except OSError as cause:
            self.close()
            raise broken(f"the connection to the daemon was lost: {cause}") from cause
        except BaseException:
            # The body's own failure: only a cut connection tells the daemon that it is not whole.
            self.close()
            raise
        first: list[bytes] = []
        while not parser.status:
            first += parser.feed(self._receive())
        parser.reusable &= complete
        response = Response(self, parser, first)
        if parser.status >= 400:
            raise http1.error_of(parser.status, response.read())
        if parser.done:
            response._finish()
        return response

    def websocket(self, path: str, query: Query | None = None) -> WebSocket:
        """Turn this connection into a WebSocket. Raises the error that the daemon answers."""
        sock = self._socket()
        sock.settimeout(None)
        head, accept = upgrade_request(http1.target(path, query))
        parser = ResponseParser("GET")
        try:
            sock.sendall(head)
        except OSError as cause:
            self.close()
            raise broken(f"the connection to the daemon was lost: {cause}") from cause
        first: list[bytes] = []
        while not parser.status:
            first += parser.feed(self._receive())
        if parser.status != 101:
            raise http1.error_of(parser.status, Response(self, parser, first).read())
        if parser.headers.get("sec-websocket-accept") != accept:
            self.close()
            raise broken("what listens on the daemon's socket speaks no WebSocket")
        self._sock = None
        return WebSocket(sock, parser.rest)

    @property
    def stale(self) -> bool:
        """Tell whether the other side has closed while the connection was idle."""
        return self._sock is None or bool(select.select([self._sock], [], [], 0)[0])

    def close(self) -> None:
        """End the connection; the next request makes a new one."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _socket(self) -> socket.socket:
        if self._sock is None:
            self._sock = open_socket(self._path)
        return self._sock

    def _receive(self) -> bytes:
        if self._sock is None:
            raise broken("the connection was closed before the answer's end")
        try:
            return self._sock.recv(READ_SIZE)
        except TimeoutError:
            self.close()
            raise error("daemon_unreachable", "the daemon did not answer in time") from None
        except OSError as cause:
            self.close()
            raise broken(f"the connection to the daemon was lost: {cause.strerror}") from cause

    def _finished(self, parser: ResponseParser) -> None:
        if not parser.reusable:
            self.close()
        elif self.on_idle is not None:
            idle, self.on_idle = self.on_idle, None
            idle(self)


def open_socket(path: str, timeout: float = 10.0) -> socket.socket:
    """Return a socket connected to the daemon at `path`, whose owner is us or root.

    Raises DaemonError: daemon_unreachable when nobody listens, forbidden when it is not ours.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(path)
        sock.settimeout(None)
        check_peer(sock, path)
    except OSError as cause:
        sock.close()
        if isinstance(cause, PermissionError):
            raise error(
                "forbidden",
                f"the daemon's socket {path} belongs to another user",
                hint="use the account that runs the daemon, or a HUTCH_HOME of your own",
            ) from cause
        raise error(
            "daemon_unreachable",
            f"no daemon answers at {path}: {cause.strerror or cause}",
            hint="start it with `hutch daemon start`",
        ) from cause
    except HutchError:
        sock.close()
        raise
    return sock


def check_peer(sock: socket.socket, path: str) -> None:
    """Make sure that we or root serve a connected socket. Raises DaemonError (forbidden)."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    owner = int.from_bytes(credentials[4:8], sys.byteorder)
    if owner not in (0, os.geteuid()):
        raise error("forbidden", f"the socket {path} is served by the user {owner}, not by you")


def encode_body(json: Any, whole: bytes | None, *, chunked: bool) -> tuple[dict[str, str], bytes]:
    """Return the headers of a request's body, and what of it is known at once."""
    if json is not None:
        text = jsonlib.dumps(json, separators=(",", ":")).encode()
        return {"content-type": "application/json", "content-length": str(len(text))}, text
    if chunked:
        return {"transfer-encoding": "chunked"}, b""
    return {"content-length": str(len(whole or b""))}, whole or b""


def _send_body(sock: socket.socket, body: Iterable[bytes]) -> bool:
    """Send a chunked body; return False when an answer came before its end.

    Such an answer is a refusal: the rest of the body is not wanted, and the connection, being in
    the middle of a request, carries no other.
    """
    for piece in body:
        if piece:
            _send_all(sock, body_chunk(piece))
        if select.select([sock], [], [], 0)[0]:
            return False
    _send_all(sock, (LAST_CHUNK,))
    return True


def _send_all(sock: socket.socket, parts: Iterable[Bytes]) -> None:
    """Send parts as one, without joining them; a blocking sendmsg may still take only some."""
    views = [memoryview(part) for part in parts if len(part)]
    while views:
        sent = sock.sendmsg(views)
        while views and sent >= len(views[0]):
            sent -= len(views[0])
            views.pop(0)
        if sent:
            views[0] = views[0][sent:]
