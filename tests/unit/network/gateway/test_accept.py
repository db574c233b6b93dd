import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.network.gateway import accept
from hutch.network.gateway.accept import (
    Acceptor,
    Endpoint,
    arm,
    bound_to,
    drain,
    finish,
    reset,
)

LO = socket.if_nametoindex("lo")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        listening.setblocking(False)
        yield listening


class Guests:
    def __init__(self, limit: int = 1000) -> None:
        self.taken: list[tuple[socket.socket, Endpoint]] = []
        self.limit = limit
        self.came = asyncio.Event()
        self.exhausted = asyncio.Event()

    def admit(self, guest: socket.socket, destination: Endpoint) -> bool:
        self.taken.append((guest, destination))
        self.came.set()
        return len(self.taken) < self.limit

    async def count(self, number: int) -> None:
        async with asyncio.timeout(30):
            while len(self.taken) < number:
                self.came.clear()
                await self.came.wait()

    def close(self) -> None:
        for guest, _ in self.taken:
            guest.close()


def call(listener: socket.socket) -> socket.socket:
    return socket.create_connection(listener.getsockname(), timeout=30)


async def turns() -> None:
    """Let the loop look at its descriptors a few times."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_connections_are_taken_with_their_destination(listener: socket.socket) -> None:
    guests = Guests()
    acceptor = Acceptor(listener, LO, guests.admit, guests.exhausted.set)
    with call(listener) as client:
        await turns()
        assert guests.taken == []  # nothing before it is told to
        acceptor.resume()
        await guests.count(1)
        guest, destination = guests.taken[0]
        assert destination == client.getpeername()
        assert guest.getpeername() == client.getsockname()
        assert not guest.getblocking()
        assert guest.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert guest.getsockopt(socket.IPPROTO_TCP, accept._TCP_NOTSENT_LOWAT) == accept.UNSENT
        most = int(Path("/proc/sys/net/core/rmem_max").read_text())
        room = guest.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert room == 2 * min(most, accept.RECEIVE_ROOM)
        assert not guest.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        with contextlib.suppress(OSError):  # before Linux 6.15
            assert guest.getsockopt(socket.IPPROTO_TCP, 44) == 2000
    guests.close()
    acceptor.close()


async def test_a_listener_of_another_interface_is_refused(listener: socket.socket) -> None:
    guests = Guests()
    with pytest.raises(OSError, match="no listener"):
        Acceptor(listener, LO + 1, guests.admit, guests.exhausted.set)
    with socket.socket() as unbound:
        unbound.bind(("127.0.0.1", 0))
        unbound.listen()
        with pytest.raises(OSError, match="no listener"):
            Acceptor(unbound, LO, guests.admit, guests.exhausted.set)
    with socket.socket() as no_listener:
        no_listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        with pytest.raises(OSError, match="no listener"):
            Acceptor(no_listener, LO, guests.admit, guests.exhausted.set)


async def test_a_connection_of_another_interface_is_reset(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    guests = Guests()
    acceptor = Acceptor(listener, LO, guests.admit, guests.exhausted.set)
    monkeypatch.setattr(
        "hutch.network.gateway.accept.bound_to", lambda sock: LO + (sock is not listener)
    )
    acceptor.resume()
    with call(listener) as client:
        client.setblocking(False)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1), 30)
    assert guests.taken == []
    acceptor.close()


async def test_one_at_its_limit_pauses_until_it_is_resumed(listener: socket.socket) -> None:
    guests = Guests(limit=3)
    acceptor = Acceptor(listener, LO, guests.admit, guests.exhausted.set)
    acceptor.resume()
    clients = [call(listener) for _ in range(5)]
    await guests.count(3)
    await turns()
    assert len(guests.taken) == 3
    assert not acceptor.accepting
    guests.limit = 1000
    acceptor.resume()
    await guests.count(5)
    for client in clients:
        client.close()
    guests.close()
    acceptor.close()


async def test_what_waits_is_reset_when_it_is_drained(listener: socket.socket) -> None:
    clients = [call(listener) for _ in range(4)]
    assert drain(listener) == 4
    for client in clients:
        with client, pytest.raises(ConnectionResetError):
            client.recv(1)


async def test_closing_resets_what_waits(listener: socket.socket) -> None:
    guests = Guests()
    acceptor = Acceptor(listener, LO, guests.admit, guests.exhausted.set)
    address = listener.getsockname()
    with call(listener) as client:
        acceptor.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=30)
    acceptor.resume()  # never again
    assert not acceptor.accepting


async def test_without_descriptors_it_tells_and_tries_again(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """The listener, as it is when the process has no descriptor left."""

        full = True

        def __getattr__(self, name: str) -> object:
            return getattr(listener, name)

        def accept(self) -> tuple[socket.socket, Endpoint]:
            if self.full:
                raise OSError(24, "Too many open files")
            return listener.accept()

    monkeypatch.setattr("hutch.network.gateway.accept.RETRY", 0.01)
    guests = Guests()
    full = Full()
    acceptor = Acceptor(full, LO, guests.admit, guests.exhausted.set)  # type: ignore[arg-type]
    acceptor.resume()
    with call(listener):
        await asyncio.wait_for(guests.exhausted.wait(), 30)
        assert guests.taken == []
        full.full = False
        await guests.count(1)
    guests.close()
    acceptor.close()


def test_a_reset_is_no_end(listener: socket.socket) -> None:
    client = call(listener)
    listener.setblocking(True)
    accepted, _ = listener.accept()
    assert bound_to(accepted) == LO
    reset(accepted)
    with client, pytest.raises(ConnectionResetError):
        client.recv(1)


async def test_the_last_descriptors_are_not_for_guests(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hutch.network.gateway.accept.SPARE", 1 << 30)
    monkeypatch.setattr("hutch.network.gateway.accept.RETRY", 0.01)
    guests = Guests()
    acceptor = Acceptor(listener, LO, guests.admit, guests.exhausted.set)
    acceptor.resume()
    with call(listener) as caller:
        await asyncio.wait_for(guests.exhausted.wait(), 30)
        with pytest.raises(ConnectionResetError):
            caller.recv(1)
    assert guests.taken == []
    monkeypatch.setattr("hutch.network.gateway.accept.SPARE", 0)
    with call(listener):
        await guests.count(1)
    guests.close()
    acceptor.close()


def test_our_death_is_no_end_either(listener: socket.socket) -> None:
    listener.setblocking(True)
    for end, said in ((finish, b"all"), (socket.socket.close, None)):
        client = call(listener)
        accepted, _ = listener.accept()
        arm(accepted)
        accepted.sendall(b"all")
        with client:
            if said is None:
                assert client.recv(10) == b"all"
            end(accepted)
            if said is None:
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            else:
                assert client.recv(10) == b"all"
                assert client.recv(10) == b""
