"""DNS over TCP for guests: messages with their length before them, one after the other.

Knows nothing of what is in a message.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from hutch.network.dns.message import framed

IDLE_TIME: Final = 10.0
"""Seconds in which a guest must ask, or take an answer."""
MESSAGE_MAX: Final = 4096
"""Bytes of a query; whoever announces more is hung up on."""


async def serve(
    sock: socket.socket,
    answer: Callable[[bytes, bool], Awaitable[bytes | None]],
    idle: float = IDLE_TIME,
) -> None:
    """Answer the queries that come over `sock`, in their order, until the guest ends or idles.

    `sock` does not block, and is the caller's to close. A query that gets no answer ends the
    connection. Raises OSError when the connection breaks.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            async with asyncio.timeout(idle):
                size = int.from_bytes(await _exactly(sock, 2), "big")
                query = await _exactly(sock, size) if 0 < size <= MESSAGE_MAX else b""
        except TimeoutError:
            return
        if not query or (reply := await answer(query, True)) is None:
            return
        try:
            async with asyncio.timeout(idle):
                await loop.sock_sendall(sock, framed(reply))
        except TimeoutError:
            return


async def _exactly(sock: socket.socket, count: int) -> bytes:
    """Return so many bytes; none when the guest ends before."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < count:
        part = await loop.sock_recv(sock, count - len(data))
        if not part:
            return b""
        data += part
    return data
