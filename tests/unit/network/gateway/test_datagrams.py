import asyncio
import socket
from collections.abc import Iterator

import pytest

from hutch.network.gateway.datagrams import Answer, Datagrams

LO = socket.if_nametoindex("lo")


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        made.bind(("0.0.0.0", 0))
        yield made


class Questions:
    def __init__(self, limit: int = 1000) -> None:
        self.asked: asyncio.Queue[tuple[bytes, Answer]] = asyncio.Queue()
        self.limit = limit
        self.count = 0

    def handle(self, packet: bytes, answer: Answer) -> bool:
        self.asked.put_nowait((packet, answer))
        self.count += 1
        return self.count < self.limit

    async def next(self) -> tuple[bytes, Answer]:
        return await asyncio.wait_for(self.asked.get(), 30)


@pytest.fixture
def client() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.settimeout(30)
        yield made


async def test_answers_come_from_the_address_that_was_asked(
    sock: socket.socket, client: socket.socket
) -> None:
    port = sock.getsockname()[1]
    questions = Questions()
    datagrams = Datagrams(sock, LO, questions.handle)
    client.sendto(b"early", ("127.8.8.8", port))
    for _ in range(5):
        await asyncio.sleep(0)
    assert questions.count == 0
    datagrams.resume()
    packet, answer = await questions.next()
    assert packet == b"early"
    answer(b"late")
    assert client.recvfrom(100) == (b"late", ("127.8.8.8", port))
    datagrams.close()
    answer(b"never")  # its socket is gone, and nothing happens


async def test_one_at_its_limit_lets_the_rest_wait(
    sock: socket.socket, client: socket.socket
) -> None:
    port = sock.getsockname()[1]
    questions = Questions(limit=2)
    datagrams = Datagrams(sock, LO, questions.handle)
    datagrams.resume()
    for number in range(4):
        client.sendto(bytes([number]), ("127.0.0.1", port))
    await questions.next()
    await questions.next()
    for _ in range(5):
        await asyncio.sleep(0)
    assert questions.count == 2
    questions.limit = 1000
    datagrams.resume()
    assert (await questions.next())[0] == b"\2"
    assert (await questions.next())[0] == b"\3"
    datagrams.close()


async def test_what_waits_is_dropped_and_giants_are_not_heard(
    sock: socket.socket, client: socket.socket
) -> None:
    port = sock.getsockname()[1]
    questions = Questions()
    datagrams = Datagrams(sock, LO, questions.handle)
    client.sendto(b"before", ("127.0.0.1", port))
    datagrams.drain()
    client.sendto(b"x" * 5000, ("127.0.0.1", port))
    client.sendto(b"after", ("127.0.0.1", port))
    datagrams.resume()
    assert (await questions.next())[0] == b"after"
    assert questions.count == 1
    datagrams.close()


async def test_a_socket_of_another_interface_is_refused(sock: socket.socket) -> None:
    with pytest.raises(OSError, match="no datagram socket"):
        Datagrams(sock, LO + 1, Questions().handle)
    with socket.socket() as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        with pytest.raises(OSError, match="no datagram socket"):
            Datagrams(stream, LO, Questions().handle)
