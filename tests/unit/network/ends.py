"""A carry between two real TCP connections, and what a test does with their far ends."""

import asyncio
import contextlib
import socket
import struct

from hutch.network import carry as carrying
from hutch.network.carry import Between, Bucket, Carry
from hutch.tasks import Scope


def connected(small: bool = False) -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection; `small`: with as little room in the kernel as there may be."""
    with socket.socket() as listener:
        one = socket.socket()
        if small:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        one.connect(listener.getsockname())
        other, _ = listener.accept()
    for end in (one, other):
        end.setblocking(False)
        if small:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return one, other


class Ends:
    """A carry that runs, and the far ends of its two connections."""

    def __init__(
        self,
        *,
        small: bool = False,
        alone: bool = False,
        first: bytes = b"",
        between: Between | None = None,
        up: Bucket | None = None,
        down: Bucket | None = None,
    ) -> None:
        self.guest, near = connected(small)
        self.server, far = connected(small)
        if alone:
            far.close()
        self.carry = Carry(
            near, None if alone else far, first=first, between=between, up=up, down=down
        )
        self.scope = Scope("carry")
        self.task = self.scope.start("run", self.carry.run())

    async def __aenter__(self) -> "Ends":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.scope.close()
        self.guest.close()
        self.server.close()


async def send(end: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(end, data)


async def take(end: socket.socket, count: int) -> bytes:
    """Receive exactly that many bytes."""
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < count:
        more = await loop.sock_recv(end, count - len(data))
        assert more, f"it ended after {len(data)} bytes"
        data += more
    return data


async def rest(end: socket.socket) -> bytes:
    """Receive all to the FIN. Raises ConnectionResetError if it ends with a reset."""
    loop, parts = asyncio.get_running_loop(), []
    while more := await loop.sock_recv(end, 1 << 16):
        parts.append(more)
    return b"".join(parts)


def reset(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


async def is_reset(end: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        await rest(end)
        return False
    return True


async def stall(end: socket.socket, other: carrying._Side) -> int:
    """Send until the carry keeps some of it. Returns how many bytes were sent."""
    sent = 0
    while not other.pending:
        with contextlib.suppress(BlockingIOError):
            sent += end.send(bytes(4096))
        await asyncio.sleep(0)
    return sent
