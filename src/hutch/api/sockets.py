"""A client's WebSocket as handlers see it: objects and bytes, errors told, its loss noticed.

Knows nothing of what is asked for (streams.py, run.py).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from hutch.api.responses import encode, error_body
from hutch.errors import error

ERROR_CODE = 1011
"""The close code after an error."""
START_TIMEOUT = 30.0
"""Seconds in which a client must say what it wants."""


class ClientLost(Exception):
    """The client's end of the connection is gone."""


class Client:
    """A client's WebSocket: JSON and bytes both ways.

    Sending waits until the kernel has room. `receive` and `send_*` raise ClientLost when the other
    side is gone.
    """

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def receive(self) -> dict[str, Any] | bytes:
        """Return the next message: an object, or bytes. Raises InvalidInput for other text."""
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise ClientLost
        data = message.get("bytes")
        if data is not None:
            return bytes(data)
        try:
            value = json.loads(message["text"])
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise error("bad_request", "a text message must be a JSON object")
        return value

    async def send(self, value: dict[str, Any]) -> None:
        """Send an object."""
        await self._send({"type": "websocket.send", "text": encode(value).decode("ascii")})

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes."""
        await self._send({"type": "websocket.send", "bytes": data})

    async def close(self, code: int = 1000) -> None:
        """End the connection."""
        await self._send({"type": "websocket.close", "code": code})

    async def _send(self, message: dict[str, Any]) -> None:
        try:
            await self._socket.send(message)
        except (RuntimeError, OSError, WebSocketDisconnect) as cause:
            # Starlette and the server each have their own way of saying that the peer is gone.
            raise ClientLost from cause


Handler = Callable[[Client, WebSocket], Awaitable[None]]


async def serve(socket: WebSocket, handler: Handler) -> None:
    """Accept a WebSocket and run its handler; its errors are told to the client."""
    await socket.accept()
    client = Client(socket)
    try:
        try:
            await handler(client, socket)
            await client.close()
        except ExceptionGroup as failures:
            raise first_failure(failures) from None
    except ClientLost:
        return
    except Exception as failure:  # noqa: BLE001 - told to the client, and logged when it is a bug
        await _tell(client, failure)


async def _tell(client: Client, failure: Exception) -> None:
    try:
        await client.send(error_body(failure))
        await client.close(ERROR_CODE)
    except ClientLost:
        return


def first_failure(failures: ExceptionGroup[Exception]) -> Exception:
    """Return what counts of several failures: the client's loss, else the first."""
    flat: list[Exception] = []
    for failure in failures.exceptions:
        nested = isinstance(failure, ExceptionGroup)
        flat.append(first_failure(failure) if nested else failure)  # type: ignore[arg-type]
    return next((failure for failure in flat if isinstance(failure, ClientLost)), flat[0])


async def first_message(client: Client) -> dict[str, Any]:
    """Return the object that says what the client wants. Raises InvalidInput (bad_request)."""
    try:
        async with asyncio.timeout(START_TIMEOUT):
            message = await client.receive()
    except TimeoutError:
        raise error("bad_request", f"no first message within {START_TIMEOUT:g} s") from None
    if isinstance(message, bytes):
        raise error("bad_request", "the first message must be a JSON object")
    return message


async def until_lost(client: Client, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work`; cancel it when the client goes away. What the client says is ignored."""

    async def watch() -> None:
        while True:
            await client.receive()

    async with asyncio.TaskGroup() as group:
        watcher = group.create_task(watch())
        await work()
        watcher.cancel()
