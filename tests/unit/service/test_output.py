"""Accounts of output: every byte once, credit only for what everyone has."""

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import HutchError, error
from hutch.guest.base import Channel, ExecEvent, ExecResult, Output, OutputEnd, OutputGap
from hutch.models import ExecOutcome
from hutch.service.connection import Connection
from hutch.service.output import JOINED_FROM, WAITING_MAX, Follower, Tap, outcome_of

PIECES = st.lists(st.integers(1, 50), min_size=1, max_size=12)


class Ring:
    """A program's output in the guest: what is unacknowledged is sent to each new attachment."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.first = 0
        self.attached: list[int] = []

    async def attach_exec(self, exec_id: str, offsets: dict[int, int]) -> "Script":
        self.first = offsets[1]
        self.attached.append(self.first)
        return Script(self, 1 << 30)


class Script:
    """A stream that hands out pieces from the ring, and breaks after `limit` bytes."""

    id, pid, tty = "ex_1", 7, False

    def __init__(self, ring: Ring, limit: int, piece: int = 7) -> None:
        self.ring, self.limit, self.piece = ring, limit, piece
        self.sent = ring.first
        self.acknowledged = 0
        self.start = ring.first

    def __aiter__(self) -> "Script":
        return self

    async def __anext__(self) -> ExecEvent:
        if self.sent - self.start >= self.limit:
            raise error("sandbox_died", "the connection was lost")
        data = self.ring.data[self.sent : self.sent + self.piece]
        if not data:
            return ExecResult(0, None)
        self.sent += len(data)
        return Output(Channel.STDOUT, self.sent - len(data), data)

    def ack(self, channel: Channel, size: int) -> None:
        self.acknowledged += size
        # As the real stream: more than was received is a mistake of the caller.
        assert self.acknowledged <= self.sent - self.start


class Line:
    """A connection that always has the same guest again."""

    def __init__(self, guest: Ring) -> None:
        self.guest = guest

    async def after(self, dead: object) -> Any:
        return self.guest


@given(total=st.integers(0, 200), limit=st.integers(0, 200), acks=PIECES, delay=st.integers(0, 60))
async def test_a_broken_connection_loses_and_repeats_nothing(
    total: int, limit: int, acks: list[int], delay: int
) -> None:
    ring = Ring(bytes(index % 251 for index in range(total)))
    follower = Follower(
        cast(Connection, Line(ring)), cast(Any, ring), cast(Any, Script(ring, limit))
    )
    out, owed = b"", 0
    for turn in range(10_000):
        event = await follower.next()
        if isinstance(event, ExecResult):
            break
        assert isinstance(event, Output)
        assert event.offset == len(out)
        out += event.data
        owed += len(event.data)
        # The client acknowledges late and in pieces of its own.
        size = min(acks[turn % len(acks)], max(0, owed - delay))
        if size:
            follower.ack(Channel.STDOUT, size)
            owed -= size
    assert out == ring.data
    assert follower.received[1] == total
    follower.ack(Channel.STDOUT, owed)


async def test_gaps_and_ends_are_passed_on() -> None:
    events: list[Any] = [
        OutputGap(Channel.STDOUT, 0, 5),
        Output(Channel.STDOUT, 5, b"x"),
        OutputEnd(Channel.STDOUT, 6),
        error("exec_taken", "another client"),
    ]

    class Fixed(Script):
        async def __anext__(self) -> ExecEvent:
            event = events.pop(0)
            if isinstance(event, HutchError):
                raise event
            return cast(ExecEvent, event)

    ring = Ring(b"")
    follower = Follower(cast(Connection, Line(ring)), cast(Any, ring), cast(Any, Fixed(ring, 1)))
    assert isinstance(await follower.next(), OutputGap)
    assert follower.received[1] == 5
    assert isinstance(await follower.next(), Output)
    assert isinstance(await follower.next(), OutputEnd)
    with pytest.raises(HutchError, match="another client"):
        await follower.next()


@pytest.mark.parametrize(
    ("result", "exit_code"),
    [
        (ExecResult(3, None), 3),
        (ExecResult(None, 9), 137),
        (ExecResult(None, 15, timed_out=True), 124),
    ],
)
def test_outcomes(result: ExecResult, exit_code: int) -> None:
    assert outcome_of(result).exit_code == exit_code


def tap() -> Tap:
    return Tap({1: 0, 2: 0}, {1: 0, 2: 0}, None, lambda: None, None)


async def test_many_small_pieces_are_joined_in_order() -> None:
    waiting = tap()
    data = bytes(index % 251 for index in range(20_000))
    for index in range(len(data)):
        waiting.put(Output(Channel.STDOUT, index, data[index : index + 1]))
        waiting.put(Output(Channel.STDERR, index, data[index : index + 1]))
    assert len(waiting._queue) < 2 * JOINED_FROM
    waiting.put(ExecOutcome(0))
    found = {Channel.STDOUT: b"", Channel.STDERR: b""}
    while isinstance(event := await waiting.next(), Output):
        assert event.offset == len(found[event.channel])
        found[event.channel] += event.data
    assert found == {Channel.STDOUT: data, Channel.STDERR: data}


async def test_a_flood_of_gaps_cuts_the_client_off() -> None:
    waiting = tap()
    for index in range(3 * WAITING_MAX):
        waiting.put(OutputGap(Channel.STDOUT, index, 1))
        assert len(waiting._queue) <= WAITING_MAX
    with pytest.raises(HutchError) as caught:
        await waiting.next()
    assert caught.value.code == "guest_protocol"
