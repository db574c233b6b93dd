"""What routes answer with: JSON of our values, errors of the one table, streams of bytes.

A stream, and work that a route waits for, ends when the client goes away.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hutch.errors import HutchError, error
from hutch.models import to_json

log = logging.getLogger(__name__)

T = TypeVar("T")


def encode(value: Any) -> bytes:
    """Return a value of ours as JSON. ASCII, so that names which are no UTF-8 survive."""
    return json.dumps(to_json(value), separators=(",", ":")).encode("ascii")


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a value as the JSON body of a response."""
    return Response(encode(value), status, headers=headers, media_type="application/json")


def error_body(failure: BaseException) -> dict[str, Any]:
    """Return `{"error": …}` for a failure; what is no HutchError is a bug, and logged as one."""
    if not isinstance(failure, HutchError):
        log.error("unexpected failure", exc_info=failure)
        failure = error("internal", f"{type(failure).__name__}: {failure}", hint=INTERNAL_HINT)
    return {"error": failure.to_json()}


INTERNAL_HINT = "the daemon's log has the trace: `hutch daemon logs`"


class ClientGone(Exception):
    """The client closed its connection while its request was under way."""


async def until_gone(request: Request, work: Awaitable[T]) -> T:
    """Return what `work` gives; cancel it when the client goes away.

    The request's body must have been read. Raises HutchError (cancelled) for a client gone.
    """
    try:
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(_watch(request.receive))
            try:
                return await work
            finally:
                watcher.cancel()
    except ExceptionGroup as failures:
        raise _first(failures) from None


def _first(failures: ExceptionGroup[Exception]) -> Exception:
    first = failures.exceptions[0]
    if isinstance(first, ClientGone):
        return error("cancelled", "the client closed the connection")
    return first


async def _watch(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone


class CutOff(Exception):
    """A response ended before its body was whole; the connection must not look finished."""


class ByteStream(Response):
    """A body of pieces, sent as they come; closes its iterator, also when the client goes away.

    A failure after the first piece cannot be told any more: the body is cut off (no last chunk).
    """

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        media_type: str = "application/octet-stream",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._pieces = pieces
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.body = b""
        self.init_headers(headers)
        # init_headers takes the empty body for its length; a stream has none.
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(_watch(receive))
                await self._send(send)
                watcher.cancel()
        except ExceptionGroup as failures:
            first = _first(failures)
            if not isinstance(first, HutchError):
                raise first from None
            log.info("a stream was cut off: %s", first)
            raise CutOff from None

    async def _send(self, send: Send) -> None:
        async with contextlib.AsyncExitStack() as stack:
            if close := getattr(self._pieces, "aclose", None):
                stack.push_async_callback(close)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for piece in self._pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def opened(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Return the same pieces, the first one already fetched, so that its errors are raised here."""
    try:
        first = await anext(pieces)
    except StopAsyncIteration:
        first = b""

    async def chain() -> AsyncIterator[bytes]:
        try:
            if first:
                yield first
            async for piece in pieces:
                yield piece
        finally:
            if close := getattr(pieces, "aclose", None):
                await close()

    return chain()
