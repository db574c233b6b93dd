"""The pump, between real TCP connections over loopback."""

import asyncio
import contextlib
import random
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.network import carry as carrying
from hutch.network.carry import BUFFER, Bucket, Carry
from hutch.tasks import Scope
from tests.unit.descriptors import descriptors
from tests.unit.network.ends import Ends, connected, is_reset, reset, rest, send, stall, take
from tests.waiting import until


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer than any guest should."""
    monkeypatch.setattr(carrying, "LINGER_TIME", 600.0)


async def test_bytes_go_both_ways_and_are_counted() -> None:
    async with Ends() as ends:
        await send(ends.guest, b"question")
        assert await take(ends.server, 8) == b"question"
        await send(ends.server, b"the answer")
        assert await take(ends.guest, 10) == b"the answer"
        assert (ends.carry.sent, ends.carry.received) == (8, 10)
        assert not ends.carry.half_closed


@pytest.mark.parametrize("small", [False, True])
async def test_much_goes_both_ways_at_once_and_whole(small: bool) -> None:
    size = 400_000 if small else 8_000_000
    up, down = random.Random(1).randbytes(size), random.Random(2).randbytes(size)

    async def say(end: socket.socket, data: bytes) -> None:
        await send(end, data)
        end.shutdown(socket.SHUT_WR)

    async with Ends(small=small) as ends:
        async with asyncio.TaskGroup() as group:
            group.create_task(say(ends.guest, up))
            group.create_task(say(ends.server, down))
            arrived = group.create_task(rest(ends.server))
            returned = group.create_task(rest(ends.guest))
        assert arrived.result() == up
        assert returned.result() == down
        await ends.task
        assert (ends.carry.sent, ends.carry.received) == (size, size)


async def test_what_was_read_before_goes_first() -> None:
    async with Ends(first=b"hello, ") as ends:
        await send(ends.guest, b"world")
        ends.guest.shutdown(socket.SHUT_WR)
        assert await rest(ends.server) == b"hello, world"
        assert ends.carry.sent == 12


async def test_much_that_was_read_before_goes_first() -> None:
    first = random.Random(3).randbytes(1_000_000)
    async with Ends(first=first, small=True) as ends:
        await send(ends.guest, b"end")
        ends.guest.shutdown(socket.SHUT_WR)
        assert await rest(ends.server) == first + b"end"


async def test_a_side_that_ends_may_still_be_answered() -> None:
    async with Ends() as ends:
        ends.guest.shutdown(socket.SHUT_WR)
        assert await rest(ends.server) == b""
        assert ends.carry.half_closed
        await send(ends.server, b"answer")
        assert await take(ends.guest, 6) == b"answer"
        ends.server.close()
        assert await rest(ends.guest) == b""
        await ends.task
        assert not ends.carry.half_closed


async def test_a_server_may_end_first() -> None:
    async with Ends() as ends:
        ends.server.shutdown(socket.SHUT_WR)
        assert await rest(ends.guest) == b""
        await send(ends.guest, b"more")
        ends.guest.close()
        assert await rest(ends.server) == b"more"
        await ends.task


@pytest.mark.parametrize("guest", [True, False])
async def test_a_reset_is_handed_on_as_one(guest: bool) -> None:
    async with Ends() as ends:
        await send(ends.guest, b"x")
        await take(ends.server, 1)
        one, other = (ends.guest, ends.server) if guest else (ends.server, ends.guest)
        reset(one)
        assert await is_reset(other)
        await ends.task


@pytest.mark.parametrize("guest", [True, False])
async def test_a_reset_after_an_end_is_handed_on_too(guest: bool) -> None:
    async with Ends() as ends:
        one, other = (ends.guest, ends.server) if guest else (ends.server, ends.guest)
        other.shutdown(socket.SHUT_WR)
        assert await rest(one) == b""
        reset(one)
        assert await is_reset(other)
        await ends.task


async def test_what_a_server_says_before_it_resets_arrives() -> None:
    async with Ends() as ends:
        await send(ends.guest, b"much that nobody reads")
        await until(lambda: ends.carry.sent == 22)
        await send(ends.server, b"no")
        await until(lambda: ends.carry.received == 2)
        ends.server.close()  # with bytes unread: a reset
        assert await take(ends.guest, 2) == b"no"
        assert await is_reset(ends.guest)
        await ends.task


async def test_what_is_on_its_way_to_the_guest_arrives_before_a_reset_does() -> None:
    async with Ends(small=True) as ends:
        # The guest reads nothing for now: the carry and the kernel hold much of it.
        said = await stall(ends.server, ends.carry._guest)
        reset(ends.server)
        assert len(await take(ends.guest, said)) == said
        assert await is_reset(ends.guest)
        await ends.task


async def test_what_is_on_its_way_arrives_before_a_reset_after_an_end_too() -> None:
    async with Ends(small=True) as ends:
        said = await stall(ends.server, ends.carry._guest)
        ends.server.close()
        assert len(await take(ends.guest, said - 1)) == said - 1
        await send(ends.guest, b"to nobody")
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while not ends.carry._resetting:
                await send(ends.guest, b"to nobody")
                await asyncio.sleep(0)
        assert len(await take(ends.guest, 1)) == 1
        await ends.task


async def test_a_guest_that_takes_nothing_is_reset_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(carrying, "DRAIN_TIME", 0.05)
    async with Ends(small=True) as ends:
        await stall(ends.server, ends.carry._guest)
        reset(ends.server)
        with contextlib.suppress(ConnectionResetError):
            while not ends.carry._resetting:
                await take(ends.guest, 512)  # until the carry notices
        await ends.task


async def test_an_abort_resets_both_sides_at_once() -> None:
    async with Ends() as ends:
        await send(ends.guest, b"x")
        await take(ends.server, 1)
        ends.carry.abort()
        await ends.task
        assert await is_reset(ends.guest)
        assert await is_reset(ends.server)
        ends.carry.abort()


async def test_an_aborted_carry_does_not_begin() -> None:
    guest, near = connected()
    server, far = connected()
    carry = Carry(near, far)
    carry.abort()
    await carry.run()
    assert await is_reset(guest)
    assert await is_reset(server)
    for end in (guest, server):
        end.close()


async def test_a_cancelled_carry_resets_both_sides_and_leaves_nothing_open() -> None:
    before = descriptors()
    async with Ends() as ends:
        await send(ends.guest, b"x")
        await take(ends.server, 1)
        ends.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ends.task
        assert await is_reset(ends.guest)
        assert await is_reset(ends.server)
    assert descriptors() == before


async def test_nothing_is_left_open_after_many_endings() -> None:
    before = descriptors()
    for ending in range(6):
        async with Ends() as ends:
            await send(ends.guest, b"x")
            await take(ends.server, 1)
            if ending % 3 == 0:
                reset(ends.guest)
            elif ending % 3 == 1:
                reset(ends.server)
            else:
                ends.guest.close()
                ends.server.close()
            await ends.task
    assert descriptors() == before


async def test_a_reader_that_stops_stops_the_writer() -> None:
    async with Ends(small=True) as ends:
        # Nobody reads: soon there is not more on its way than the carry and the kernel hold.
        sent = idle = 0
        while idle < 200 or not ends.carry._upstream.pending:
            try:
                sent += ends.guest.send(bytes(4096))
                idle = 0
            except BlockingIOError:
                idle += 1
                await asyncio.sleep(0)
            assert sent < 2_000_000
        assert len(ends.carry._upstream.pending) <= BUFFER
        ends.guest.shutdown(socket.SHUT_WR)
        assert len(await rest(ends.server)) == sent


async def test_a_reset_is_noticed_while_the_other_side_reads_nothing() -> None:
    async with Ends(small=True) as ends:
        await stall(ends.guest, ends.carry._upstream)
        reset(ends.server)
        assert await is_reset(ends.guest)
        await ends.task


async def test_urgent_data_is_dropped() -> None:
    async with Ends() as ends:
        await send(ends.guest, b"ab")
        assert await take(ends.server, 2) == b"ab"
        ends.guest.send(b"!", socket.MSG_OOB)
        await send(ends.guest, b"cd")
        assert await take(ends.server, 2) == b"cd"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("up", [True, False])
async def test_a_bucket_limits_what_goes(up: bool) -> None:
    clock = Clock()
    bucket = Bucket(1_000_000, 1000, clock)
    async with Ends(up=bucket if up else None, down=None if up else bucket) as ends:
        one, other = (ends.guest, ends.server) if up else (ends.server, ends.guest)
        await send(one, bytes(5000))
        one.shutdown(socket.SHUT_WR)
        assert len(await take(other, 1000)) == 1000
        assert bucket.room() == 0
        for _ in range(100):  # it may ask as often as it likes
            await asyncio.sleep(0)
        assert ends.carry.sent + ends.carry.received == 1000
        clock.now += 0.0005
        assert len(await take(other, 500)) == 500
        clock.now += 1
        assert len(await take(other, 1000)) == 1000
        while not other_ended(other):
            clock.now += 1
            await asyncio.sleep(0)
        other.shutdown(socket.SHUT_WR)
        await ends.task


def other_ended(end: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        return not end.recv(1 << 16)
    return False


async def test_two_carries_share_a_bucket() -> None:
    clock = Clock()
    bucket = Bucket(1_000_000, 1000, clock)
    async with Ends(up=bucket) as one, Ends(up=bucket) as other:
        await send(one.guest, bytes(800))
        await take(one.server, 800)
        await send(other.guest, bytes(800))
        await take(other.server, 200)
        assert (one.carry.sent, other.carry.sent) == (800, 200)


async def test_a_carry_that_waits_for_its_bucket_can_be_aborted() -> None:
    async with Ends(up=Bucket(1, 1, Clock())) as ends:
        await send(ends.guest, b"xx")
        await take(ends.server, 1)
        ends.carry.abort()
        await ends.task


@given(
    rate=st.integers(1, 10**9),
    burst=st.one_of(st.none(), st.integers(1, 10**6)),
    steps=st.lists(st.tuples(st.floats(0, 10), st.integers(0, 10**6)), max_size=30),
)
def test_a_bucket_gives_no_more_than_its_rate(
    rate: int, burst: int | None, steps: list[tuple[float, int]]
) -> None:
    clock = Clock()
    bucket, gone = Bucket(rate, burst, clock), 0
    limit = burst if burst is not None else max(rate // 8, 1)
    for seconds, wanted in steps:
        clock.now += seconds
        count = min(bucket.room(), wanted)
        bucket.take(count)
        gone += count
        assert bucket.wait() > 0
    assert gone <= limit + (clock.now - 100.0) * rate + 1


async def test_idle_connections_hold_no_buffers() -> None:
    async with Scope("idle") as scope:
        ends = []
        for _ in range(50):
            guest, near = connected()
            server, far = connected()
            carry = Carry(near, far)
            scope.start("run", carry.run())
            ends.append((guest, server, carry))
        for guest, server, _ in ends:
            await send(guest, bytes(70_000))
            await take(server, 70_000)
        assert all(not side.pending for _, _, c in ends for side in (c._guest, c._upstream))
        for guest, server, carry in ends:
            carry.abort()
            guest.close()
            server.close()
