import asyncio
import contextlib
import fcntl
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from hutch.network.gateway.accept import UNSENT
from hutch.network.gateway.dial import ATTEMPTS, DialError, dial, interleaved
from hutch.networking import Reason
from tests.unit.descriptors import descriptors

LOOPBACK = ip_address("127.0.0.1")
_SIOCOUTQNSD = 0x894B


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def free_port(address: str = "127.0.0.1") -> Iterator[int]:
    """Hold a port that refuses: bound, so that nobody else gets it, and not listening."""
    with socket.socket() as held:
        held.bind((address, 0))
        yield held.getsockname()[1]


@pytest.fixture
def closed_port() -> Iterator[int]:
    yield from free_port()


@contextlib.contextmanager
def deaf() -> Iterator[int]:
    """A port whose backlog is full: a connection to it is answered never."""
    with socket.socket() as listening, contextlib.ExitStack() as stack:
        listening.bind(("127.0.0.2", 0))
        listening.listen(0)
        port: int = listening.getsockname()[1]
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.2", port))
        yield port


def test_addresses_take_turns_and_are_bounded() -> None:
    four = [ip_address(f"192.0.2.{number}") for number in range(1, 9)]
    six = [ip_address(f"2001:db8::{number}") for number in range(1, 3)]
    ordered = interleaved([*four, *six, *four])
    assert ordered == [six[0], four[0], six[1], four[1], four[2], four[3]]
    assert len(ordered) == ATTEMPTS


async def test_the_kernel_holds_little_for_who_takes_nothing(server: socket.socket) -> None:
    connected, _ = await dial([LOOPBACK], server.getsockname()[1], timeout=30)
    with connected, server.accept()[0]:
        with contextlib.suppress(BlockingIOError):
            while True:
                connected.send(bytes(1 << 16))
        unsent = struct.unpack("i", fcntl.ioctl(connected, _SIOCOUTQNSD, bytes(4)))[0]
        assert unsent <= 2 * UNSENT


async def test_the_first_that_answers_is_taken(server: socket.socket) -> None:
    port = server.getsockname()[1]
    connected, address = await dial([LOOPBACK], port, timeout=30)
    with connected:
        assert address == LOOPBACK
        assert not connected.getblocking()
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        accepted, peer = server.accept()
        with accepted:
            assert peer == connected.getsockname()


async def test_a_closed_port_refuses(closed_port: int) -> None:
    before = descriptors()
    with pytest.raises(DialError) as caught:
        await dial([LOOPBACK, ip_address("127.0.0.9")], closed_port, timeout=30)
    assert caught.value.reason is Reason.UPSTREAM_REFUSED
    assert descriptors() == before


async def test_one_that_fails_makes_room_for_the_next_at_once(server: socket.socket) -> None:
    port = server.getsockname()[1]
    # 127.0.0.1 is the last; the delay is longer than the test may take.
    addresses = [ip_address("127.0.0.3"), ip_address("127.0.0.4"), LOOPBACK]
    connected, address = await dial(addresses, port, timeout=60, delay=1000)
    connected.close()
    assert address == LOOPBACK


async def test_one_that_is_deaf_is_overtaken() -> None:
    with deaf() as port, socket.socket() as listening:
        listening.bind(("127.0.0.3", port))
        listening.listen()
        before = descriptors()
        connected, address = await dial(
            [ip_address("127.0.0.2"), ip_address("127.0.0.3")], port, timeout=60, delay=0.01
        )
        connected.close()
        assert address == ip_address("127.0.0.3")
        assert descriptors() == before


async def test_one_that_is_deaf_runs_out_of_time() -> None:
    with deaf() as port:
        before = descriptors()
        with pytest.raises(DialError) as caught:
            await dial([ip_address("127.0.0.2")], port, timeout=0.05)
        assert caught.value.reason is Reason.UPSTREAM_TIMEOUT
        assert descriptors() == before


async def test_a_dial_that_is_cancelled_leaves_nothing() -> None:
    with deaf() as port:
        before = descriptors()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await dial([ip_address("127.0.0.2")], port, timeout=1000)
        assert descriptors() == before


async def test_no_address_at_all_is_unreachable() -> None:
    with pytest.raises(DialError) as caught:
        await dial([], 80, timeout=30)
    assert caught.value.reason is Reason.UPSTREAM_UNREACHABLE


async def test_an_address_without_a_route_is_unreachable() -> None:
    # Of a class that no connection can be made to, whatever the routes of the machine are.
    with pytest.raises(DialError) as caught:
        await dial([ip_address("255.255.255.255")], 80, timeout=30)
    assert caught.value.reason is Reason.UPSTREAM_UNREACHABLE


async def test_being_out_of_descriptors_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socket", none_left)
    with pytest.raises(DialError) as caught:
        await dial([LOOPBACK], 80, timeout=30)
    assert caught.value.reason is Reason.LIMIT


async def test_the_last_descriptors_are_not_for_connections(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hutch.network.gateway.accept.SPARE", 1 << 30)
    before = descriptors()
    with pytest.raises(DialError) as caught:
        await dial([LOOPBACK], server.getsockname()[1], timeout=30)
    assert caught.value.reason is Reason.LIMIT
    assert descriptors() == before
