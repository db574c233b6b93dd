"""One connection to a published port, carried to the port of the guest and back.

Ends are passed on as ends, resets as resets: a connection that is broken off, the daemon's own end
included, is never taken for one that is complete. It must not know how the guest is reached.
"""

import asyncio
import contextlib
import socket
import struct
from typing import Final

from hutch.errors import HutchError
from hutch.guest.base import TunnelStream

CHUNK: Final = 64 << 10
HALF_CLOSED_SECONDS: Final = 900.0
"""How long a connection of which one half has ended may be without any bytes on the other."""

_RESET: Final = struct.pack("ii", 1, 0)
_NO_LINGER: Final = struct.pack("ii", 0, 0)
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}


def prepare(client: socket.socket) -> None:
    """Set up a connection that was just accepted: from now on to close it is to reset it."""
    client.setblocking(False)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        client.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class PortConnection:
    """A prepared connection and the tunnel that it goes through. `carry` is called once."""

    def __init__(self, client: socket.socket, stream: TunnelStream) -> None:
        self._client = client
        self._stream = stream
        self._moved = 0

    async def carry(self) -> None:
        """Carry bytes both ways until both have ended, or one of them is broken off.

        Both are their owner's to close, which resets the client unless all has come to its end.
        Holds one chunk each way: who does not read stops who writes.
        """
        with contextlib.suppress(OSError, HutchError):
            try:
                async with asyncio.TaskGroup() as group:
                    halves = {group.create_task(self._up()), group.create_task(self._down())}
                    await self._watch(halves)
                await self._finish()
            except BaseExceptionGroup as failures:
                # Both halves may fail at once, and for one reason.
                raise failures.exceptions[0] from None

    async def _up(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self._client, CHUNK):
            self._moved += 1
            await self._stream.write(data)
        await self._stream.write_eof()

    async def _down(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await self._stream.read():
            self._moved += 1
            await loop.sock_sendall(self._client, data)
        self._client.shutdown(socket.SHUT_WR)

    async def _watch(self, halves: set["asyncio.Task[None]"]) -> None:
        """Wait for both halves; for the second one not without limit. Raises TimeoutError."""
        _, rest = await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
        while rest:
            before = self._moved
            _, rest = await asyncio.wait(rest, timeout=HALF_CLOSED_SECONDS)
            if rest and self._moved == before:
                raise TimeoutError

    async def _finish(self) -> None:
        """Let the guest take all that was sent to it, then close without a reset."""
        async with asyncio.timeout(HALF_CLOSED_SECONDS):
            await self._stream.finished()
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
