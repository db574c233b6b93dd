"""The ports of one sandbox: who is accepted, who waits, and what is given up."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hutch.errors import error
from hutch.networking import PublishedPort
from hutch.service import publication as module
from hutch.service.hostports import listen_anywhere
from hutch.service.publication import Listener, Publication, Reserved
from tests.unit.service.test_portconnection import Peer
from tests.waiting import until


class Guests:
    """What answers: a peer for each connection, unless it is to fail."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.asked: list[int] = []
        self.fail = False

    async def connect(self, port: int) -> Any:
        self.asked.append(port)
        if self.fail:
            raise error("guest_refused", "told to")
        self.peers.append(Peer())
        return self.peers[-1]


@pytest.fixture
def guests() -> Guests:
    return Guests()


@pytest.fixture
async def publication(guests: Guests) -> AsyncIterator[Publication]:
    made = Publication("web", guests.connect, 2)
    yield made
    await made.close()


def taken(guest_port: int = 80) -> tuple[PublishedPort, socket.socket]:
    listener = listen_anywhere(PublishedPort(guest_port), ())
    return PublishedPort(guest_port, listener.getsockname()[1]), listener


def connect(port: PublishedPort) -> socket.socket:
    """Connect; whoever is not accepted yet is connected all the same."""
    client = socket.create_connection((port.address, port.host_port))
    client.setblocking(False)
    return client


async def end(client: socket.socket) -> bytes:
    async with asyncio.timeout(60):
        return await asyncio.get_running_loop().sock_recv(client, 100)


async def test_who_comes_early_waits(publication: Publication, guests: Guests) -> None:
    port, listener = taken()
    publication.add(port, listener)
    assert publication.has(port)
    assert publication.holds(PublishedPort(1, port.host_port, "0.0.0.0"))
    assert not publication.holds(PublishedPort(1, port.host_port, "::"))
    with connect(port):
        assert guests.asked == []
        publication.serve()
        publication.serve()
        await until(lambda: guests.asked == [80], what="it is accepted")


async def test_one_more_than_allowed_waits(publication: Publication, guests: Guests) -> None:
    publication.serve()
    one, two = taken(80), taken(81)
    publication.add(*one)
    publication.add(*two)
    with contextlib.ExitStack() as stack:
        first, _, _ = [stack.enter_context(connect(port)) for port, _ in (one, two, one)]
        await until(lambda: publication.connections == 2, what="two are accepted")
        assert len(guests.peers) <= 2
        third = taken(82)
        publication.add(*third)  # which does not listen, either
        stack.enter_context(connect(third[0]))
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        first.close()
        await until(lambda: len(guests.asked) == 3, what="another one is accepted")
        assert publication.connections == 2


async def test_a_refused_one_is_reset_and_makes_room(
    publication: Publication, guests: Guests
) -> None:
    guests.fail = True
    port, listener = taken()
    publication.add(port, listener)
    publication.serve()
    for _ in range(5):
        with connect(port) as client, pytest.raises(ConnectionResetError):
            await end(client)
    await until(lambda: publication.connections == 0, what="all have ended")


async def test_to_give_a_port_up_breaks_its_connections_off_and_no_others(
    publication: Publication, guests: Guests
) -> None:
    publication.serve()
    one, two = taken(80), taken(81)
    publication.add(*one)
    publication.add(*two)
    with connect(one[0]) as first, connect(two[0]) as second:
        await until(lambda: len(guests.peers) == 2, what="both are accepted")
        await publication.remove(one[0])
        with pytest.raises(ConnectionResetError):
            await end(first)
        guests.peers[guests.asked.index(81)].to_host.put_nowait(b"on")
        assert await end(second) == b"on"
        with pytest.raises(ConnectionRefusedError):
            connect(one[0])
        await publication.remove(one[0])
        await publication.close()
        with pytest.raises(ConnectionResetError):
            await end(second)


async def test_a_host_without_descriptors_accepts_later(
    guests: Guests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BREATH_SECONDS", 0.02)
    port, real = taken()
    failures = [errno.EMFILE, errno.ECONNABORTED, errno.ENFILE]

    class Short:
        """The listener, but it cannot accept at first."""

        def fileno(self) -> int:
            return real.fileno()

        def accept(self) -> Any:
            if failures:
                number = failures.pop()
                raise OSError(number, "told to")
            return real.accept()

        def close(self) -> None:
            real.close()

    listener: Any = Short()
    publication = Publication("web", guests.connect, 2)
    publication.add(port, listener)
    publication.serve()
    with connect(port):
        await until(lambda: guests.asked == [80], what="it is accepted")
    assert failures == []
    await publication.close()
    assert publication.closed


async def test_the_last_descriptors_are_left_to_others(
    publication: Publication, guests: Guests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BREATH_SECONDS", 0.02)
    spare, asked = [True], list[int]()

    def is_spare(fd: int) -> bool:
        asked.append(fd)
        return spare[0]

    monkeypatch.setattr(module, "is_spare", is_spare)
    port, listener = taken()
    publication.add(port, listener)
    publication.serve()
    with connect(port) as client:
        await until(lambda: len(asked) > 1, what="there is none, twice")
        assert guests.asked == []
        with pytest.raises(BlockingIOError):  # it waits: it is not turned away
            client.recv(1)
        spare[0] = False
        await until(lambda: guests.asked == [80], what="it is accepted")


async def test_one_that_takes_a_breath_can_be_closed(guests: Guests) -> None:
    port, real = taken()
    listener = Listener(port, real)
    listener.open(lambda port, client: None)
    listener._take_breath()
    listener.open(lambda port, client: None)
    listener.close()
    listener.close()
    assert real.fileno() < 0


async def test_what_is_reserved_is_handed_over_or_given_up(
    publication: Publication, guests: Guests
) -> None:
    one, two = taken(80), taken(81)
    reserved = Reserved("web")
    with reserved.until_kept():
        reserved.note(*one)
        reserved.note(PublishedPort(82, 8082), None)
        assert reserved.holds(PublishedPort(1, one[0].host_port, "0.0.0.0"))
        assert not reserved.holds(PublishedPort(82, 8082))
        reserved.hand_over(publication)
    assert reserved.ports == [one[0], PublishedPort(82, 8082)]
    assert publication.has(one[0])
    other = Reserved("web")
    with other.until_kept():
        other.note(*two)
        publication.shut()
        other.hand_over(publication)
    assert one[1].fileno() < 0
    assert two[1].fileno() < 0


async def test_why_a_port_is_not_published(publication: Publication) -> None:
    port, listener = taken()
    publication.failed[module.key_of(port)] = error("port_taken", "told to")
    assert publication.noted(port).error == "told to"
    publication.add(port, listener)
    assert publication.noted(port) == port
