"""One connection to a published port: ends stay ends, and resets resets."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from hutch.errors import error
from hutch.service import portconnection
from hutch.service.portconnection import PortConnection, prepare
from hutch.tasks import Scope


class Peer:
    """The guest's end of a tunnel, which a test plays."""

    def __init__(self) -> None:
        self.to_host: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self.received = bytearray()
        self.ended = asyncio.Event()
        self.taken = asyncio.Event()
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.arrived = asyncio.Event()
        self.asked = asyncio.Event()
        self.writes = 0

    async def read(self) -> bytes:
        item = await self.to_host.get()
        if isinstance(item, Exception):
            raise item
        return item

    async def write(self, data: bytes) -> None:
        self.writes += 1
        self.asked.set()
        await self.may_write.wait()
        self.received += data
        self.arrived.set()

    async def write_eof(self) -> None:
        self.ended.set()

    async def finished(self) -> None:
        await self.taken.wait()

    async def close(self) -> None:
        pass


class Carried:
    """A connection that is carried: the client's end, the guest's, and the task."""

    def __init__(self, client: socket.socket, accepted: socket.socket, scope: Scope) -> None:
        self.client = client
        self.peer = Peer()
        self._accepted = accepted
        self.task = scope.start("carry", self._carry())

    async def _carry(self) -> None:
        with self._accepted:
            await PortConnection(self._accepted, self.peer).carry()

    async def recv(self) -> bytes:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(60):
            return await loop.sock_recv(self.client, 1 << 16)


@pytest.fixture
async def carried() -> AsyncIterator[Carried]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    with client:
        client.setblocking(False)
        prepare(accepted)
        async with Scope("test") as scope:
            yield Carried(client, accepted, scope)


async def test_both_ends_may_end_first(carried: Carried) -> None:
    peer = carried.peer
    for turn in (b"one", b"two"):
        peer.to_host.put_nowait(turn)
        assert await carried.recv() == turn
    peer.to_host.put_nowait(b"")
    assert await carried.recv() == b""
    carried.client.send(b"still here")
    async with asyncio.timeout(60):
        await peer.arrived.wait()
        carried.client.shutdown(socket.SHUT_WR)
        await peer.ended.wait()
        assert bytes(peer.received) == b"still here"
        assert not carried.task.done()  # until the guest has taken all
        peer.taken.set()
        await carried.task
    assert await carried.recv() == b""


async def test_a_client_that_ends_first_gets_the_answer(carried: Carried) -> None:
    carried.client.send(b"question")
    carried.client.shutdown(socket.SHUT_WR)
    async with asyncio.timeout(60):
        await carried.peer.ended.wait()
        carried.peer.to_host.put_nowait(b"answer")
        assert await carried.recv() == b"answer"
        carried.peer.to_host.put_nowait(b"")
        carried.peer.taken.set()
        await carried.task
    assert await carried.recv() == b""


async def test_what_the_guest_breaks_off_is_reset(carried: Carried) -> None:
    carried.peer.to_host.put_nowait(b"half of")
    assert await carried.recv() == b"half of"
    carried.peer.to_host.put_nowait(error("sandbox_died", "told to"))
    with pytest.raises(ConnectionResetError):
        await carried.recv()
    await carried.task


async def test_what_the_client_breaks_off_ends(carried: Carried) -> None:
    carried.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, portconnection._RESET)
    carried.client.close()
    async with asyncio.timeout(60):
        await carried.task
    assert not carried.peer.ended.is_set()


async def test_what_is_cancelled_is_reset(carried: Carried) -> None:
    carried.peer.to_host.put_nowait(b"half of")
    assert await carried.recv() == b"half of"
    carried.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await carried.task
    with pytest.raises(ConnectionResetError):
        await carried.recv()


async def test_who_does_not_read_stops_who_writes(carried: Carried) -> None:
    peer, data = carried.peer, bytes(range(256)) * (1 << 16)
    peer.may_write.clear()
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        sending = group.create_task(loop.sock_sendall(carried.client, data))
        await peer.asked.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        # It holds a chunk that nobody takes, and asks for no other.
        assert peer.writes == 1
        assert not sending.done()
        peer.may_write.set()
        await sending
        carried.client.shutdown(socket.SHUT_WR)
        await peer.ended.wait()
    assert bytes(peer.received) == data


async def test_a_half_that_is_left_over_is_not_waited_for_without_end(
    carried: Carried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portconnection, "HALF_CLOSED_SECONDS", 0.02)
    carried.client.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionResetError):
        await carried.recv()
    await carried.task
