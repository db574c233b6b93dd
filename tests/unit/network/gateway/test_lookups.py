import asyncio
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from hutch.network.gateway.lookups import Lookups
from hutch.network.sntp import PACKET
from tests.unit.network.gateway.world import LO, TIME, bound


class Answers:
    """Answers with what was asked, in capitals; `hold` makes whoever asks wait."""

    def __init__(self) -> None:
        self.hold = asyncio.Event()
        self.hold.set()
        self.asked: list[tuple[bytes, bool]] = []
        self.came = asyncio.Event()

    async def answer(self, query: bytes, tcp: bool) -> bytes | None:
        self.asked.append((query, tcp))
        self.came.set()
        await self.hold.wait()
        return None if query == b"silence" else query.upper()


class Bench:
    def __init__(self) -> None:
        self.dns, self.clock = bound(socket.SOCK_DGRAM), bound(socket.SOCK_DGRAM)
        self.lookups = Lookups(self.dns, self.clock, LO, limit=2, message_time=TIME)
        self.asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.asking.setblocking(False)
        self.port = self.dns.getsockname()[1]
        self.clock_port = self.clock.getsockname()[1]

    def ask(self, query: bytes) -> None:
        self.asking.sendto(query, ("127.1.1.1", self.port))

    async def heard(self) -> bytes:
        loop = asyncio.get_running_loop()
        return await asyncio.wait_for(loop.sock_recv(self.asking, 512), TIME)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    made.asking.close()
    await made.lookups.close()


async def test_nothing_is_answered_before_and_after(bench: Bench) -> None:
    answers = Answers()
    bench.ask(b"before")
    bench.lookups.resume(answers)  # type: ignore[arg-type]
    bench.ask(b"now")
    assert await bench.heard() == b"NOW"
    answers.hold.clear()
    answers.came.clear()
    bench.ask(b"in flight")
    await asyncio.wait_for(answers.came.wait(), TIME)
    bench.lookups.pause()
    answers.hold.set()
    bench.ask(b"after")
    bench.lookups.resume(answers)  # type: ignore[arg-type]
    bench.ask(b"again")
    assert await bench.heard() == b"AGAIN"
    assert [query for query, _ in answers.asked] == [b"now", b"in flight", b"again"]


async def test_no_more_than_so_many_at_once(bench: Bench) -> None:
    answers = Answers()
    answers.hold.clear()
    bench.lookups.resume(answers)  # type: ignore[arg-type]
    for number in range(5):
        bench.ask(b"q%d" % number)
    await asyncio.wait_for(answers.came.wait(), TIME)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(answers.asked) == 2
    answers.hold.set()
    assert sorted([await bench.heard() for _ in range(5)]) == [b"Q%d" % n for n in range(5)]
    assert bench.lookups.count == 5


async def test_streams_have_questions_one_after_the_other(bench: Bench) -> None:
    bench.lookups.resume(Answers())  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours:
        ours.sendall(b"\0\3one\0\3two")
        ours.shutdown(socket.SHUT_WR)
        await asyncio.wait_for(bench.lookups.stream(theirs), TIME)
        assert ours.recv(100) == b"\0\3ONE\0\3TWO"
        assert ours.recv(100) == b""
    assert theirs.fileno() == -1


@pytest.mark.parametrize("said", [b"\0", b"\0\5ab"])
async def test_a_stream_that_breaks_off_is_ended(bench: Bench, said: bytes) -> None:
    bench.lookups.resume(Answers())  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours:
        ours.sendall(said)
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(bench.lookups.stream(theirs), TIME)
    assert theirs.fileno() == -1


async def test_a_slow_stream_is_ended() -> None:
    lookups = Lookups(
        bound(socket.SOCK_DGRAM), bound(socket.SOCK_DGRAM), LO, limit=2, message_time=0.02
    )
    lookups.resume(Answers())  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours:
        ours.sendall(b"\0\5ab")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(lookups.stream(theirs), TIME)
    await lookups.close()


async def test_a_silent_answer_ends_a_stream(bench: Bench) -> None:
    bench.lookups.resume(Answers())  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours:
        ours.sendall(b"\0\7silence")
        await asyncio.wait_for(bench.lookups.stream(theirs), TIME)
        assert ours.recv(1) == b""


async def test_the_time_is_told(bench: Bench) -> None:
    bench.lookups.resume(Answers())  # type: ignore[arg-type]
    request = PACKET.pack(4 << 3 | 3, *([0] * 14))
    bench.asking.sendto(request, ("127.0.0.1", bench.clock_port))
    reply = await bench.heard()
    assert len(reply) == len(request)
    assert struct.unpack_from("!B", reply)[0] & 7 == 4  # mode: server
