"""The pump, when something stands between its two sides."""

import asyncio
import socket

import pytest

from hutch.network import carry as carrying
from hutch.network.bodies import Chunked
from hutch.network.http import Gate
from hutch.networking import Decision, Reason
from tests.unit.network.ends import Ends, is_reset, reset, rest, send, take


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer than any guest should."""
    monkeypatch.setattr(carrying, "LINGER_TIME", 600.0)


class Shouting:
    """Sends all in capitals; the guest's `.` is answered at once, and ends it all."""

    def __init__(self) -> None:
        self.up = self.down = b""
        self.guest_gone = self.upstream_gone = self.over = self.broken = False
        self.was_reset: bool | None = None
        self.hears_guest = self.hears_upstream = True
        self.unread = False

    def from_guest(self, data: bytes) -> None:
        if b"." in data:
            self.down, self.over = b"bye", True
        elif b"!" in data:
            self.broken = True
        elif b"?" in data:
            raise RuntimeError("a bug")
        else:
            self.up += data.upper()

    def from_upstream(self, data: bytes) -> None:
        self.down += data.upper()

    def read_on(self) -> None:
        raise AssertionError("it leaves nothing unread")

    def guest_ended(self) -> None:
        self.guest_gone = True

    def upstream_ended(self, reset: bool) -> None:
        self.upstream_gone, self.was_reset = True, reset

    def for_guest(self) -> bytes:
        data, self.down = self.down, b""
        return data

    def for_upstream(self) -> bytes:
        data, self.up = self.up, b""
        return data

    @property
    def fin_guest(self) -> bool:
        return self.upstream_gone

    @property
    def fin_upstream(self) -> bool:
        return self.guest_gone


async def test_what_stands_between_sees_and_says_all() -> None:
    async with Ends(between=Shouting(), first=b"a") as ends:
        await send(ends.guest, b"b")
        assert await take(ends.server, 2) == b"AB"
        await send(ends.server, b"cd")
        assert await take(ends.guest, 2) == b"CD"
        ends.guest.shutdown(socket.SHUT_WR)
        assert await rest(ends.server) == b""
        await send(ends.server, b"e")
        ends.server.close()
        assert await rest(ends.guest) == b"E"
        await ends.task
        assert (ends.carry.sent, ends.carry.received) == (2, 3)


async def test_much_goes_through_what_stands_between() -> None:
    async with Ends(between=Shouting(), small=True) as ends:
        async with asyncio.TaskGroup() as group:
            group.create_task(send(ends.guest, b"x" * 300_000))
            group.create_task(send(ends.server, b"y" * 300_000))
            up = group.create_task(take(ends.server, 300_000))
            down = group.create_task(take(ends.guest, 300_000))
        assert set(up.result()) == set(b"X")
        assert set(down.result()) == set(b"Y")


class Slow(Shouting):
    """Reads one byte at a time, and notes at which turn of the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.left = b""
        self.turn = 0
        self.turns: list[int] = []

    def from_guest(self, data: bytes) -> None:
        self.left += data
        self.read_on()

    def read_on(self) -> None:
        super().from_guest(self.left[:1])
        self.left = self.left[1:]
        self.unread, self.hears_guest = bool(self.left), not self.left
        self.turns.append(self.turn)

    def count(self) -> None:
        self.turn += 1
        asyncio.get_running_loop().call_soon(self.count)


@pytest.mark.parametrize("early", [True, False])
async def test_what_is_left_unread_is_read_when_the_others_had_their_turn(early: bool) -> None:
    between = Slow()
    between.count()
    async with Ends(between=between, first=b"a" * 50 if early else b"") as ends:
        if not early:
            await send(ends.guest, b"a" * 50)
        ends.guest.shutdown(socket.SHUT_WR)
        assert await rest(ends.server) == b"A" * 50
        assert len(set(between.turns)) == len(between.turns) == 50
        ends.server.close()
        assert await rest(ends.guest) == b""
        await ends.task


async def test_what_is_left_unread_dies_with_the_connection() -> None:
    between = Slow()
    async with Ends(between=between, first=b"a!" + b"a" * 50) as ends:
        assert await is_reset(ends.guest)
        await ends.task
        await asyncio.sleep(0)
    assert len(between.turns) == 2


async def test_a_gate_carries_bodies_of_very_many_chunks_both_ways() -> None:
    gate = Gate(80, lambda request: Decision(True, Reason.ALLOWED))
    head, chunks = b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n"
    async with Ends(between=gate, small=True) as ends:
        async with asyncio.TaskGroup() as group:
            ask = b"POST / HTTP/1.1\r\nHost: a.com\r\n" + head + chunks
            group.create_task(send(ends.guest, ask))
            up = group.create_task(_chunks_of(ends.server))
        assert up.result() == b"x" * 5000
        async with asyncio.TaskGroup() as group:
            answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + head + chunks
            group.create_task(send(ends.server, answer))
            down = group.create_task(_chunks_of(ends.guest))
        assert down.result() == b"x" * 5000
        ends.guest.close()
        await ends.task


async def _chunks_of(end: socket.socket) -> bytes:
    """Receive a message with a chunked body, and return that."""
    loop, data = asyncio.get_running_loop(), b""
    while not data.endswith(b"\r\n0\r\n\r\n"):
        data += await loop.sock_recv(end, 1 << 16)
    body, buffer = Chunked(), bytearray(data.partition(b"\r\n\r\n")[2])
    inside = b""
    while not body.done:
        inside += body.read(buffer)
    return inside


async def test_when_all_is_said_the_guest_has_its_answer_whatever_it_goes_on_to_send() -> None:
    async with Ends(between=Shouting()) as ends:
        await send(ends.guest, b"one.")
        assert await rest(ends.server) == b""
        await send(ends.guest, b"still talking" * 1000)
        assert await rest(ends.guest) == b"bye"
        ends.guest.close()
        await ends.task


async def test_an_answer_needs_no_upstream() -> None:
    async with Ends(between=Shouting(), first=b"one.", alone=True) as ends:
        assert await rest(ends.guest) == b"bye"
        ends.guest.close()
        await ends.task


async def test_a_guest_that_does_not_stop_talking_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(carrying, "LINGER_BYTES", 10_000)
    async with Ends(between=Shouting()) as ends:
        await send(ends.guest, b"one.")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await talk(ends.guest)
        await ends.task


async def talk(end: socket.socket) -> None:
    while True:
        await send(end, bytes(10_000))


async def test_a_guest_that_does_not_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "LINGER_TIME", 0.01)
    async with Ends(between=Shouting()) as ends:
        await send(ends.guest, b"one.")
        await ends.task


async def test_a_failure_of_what_stands_between_ends_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Ends(between=Shouting()) as ends:
        await send(ends.guest, b"?")
        assert await is_reset(ends.guest)
        assert await is_reset(ends.server)
        await ends.task
    assert "a connection cannot be carried on" in caplog.text


async def test_what_stands_between_may_break_it_off() -> None:
    async with Ends(between=Shouting()) as ends:
        await send(ends.guest, b"!")
        assert await is_reset(ends.guest)
        assert await is_reset(ends.server)
        await ends.task


@pytest.mark.parametrize("ended", ["fin", "reset"])
async def test_what_stands_between_learns_how_the_upstream_ended(ended: str) -> None:
    between = Shouting()
    async with Ends(between=between) as ends:
        await send(ends.guest, b"a")
        await take(ends.server, 1)
        if ended == "fin":
            ends.server.shutdown(socket.SHUT_WR)
        else:
            reset(ends.server)
        assert await rest(ends.guest) == b""
        assert between.was_reset == (ended == "reset")


async def test_a_guest_that_breaks_off_breaks_off_the_upstream() -> None:
    async with Ends(between=Shouting()) as ends:
        await send(ends.guest, b"a")
        await take(ends.server, 1)
        reset(ends.guest)
        assert await is_reset(ends.server)
        await ends.task
