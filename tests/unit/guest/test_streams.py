import asyncio
from collections.abc import Sequence

import pytest

from hutch.errors import HutchError
from hutch.guest.frames import (
    WINDOW,
    Direction,
    Frame,
    FrameDecoder,
    FrameType,
    encode_credit,
    encode_frame,
)
from hutch.guest.messages import GuestProtocolError, encode_map
from hutch.guest.streams import Chunk, End, Gap, Inbox, Result, Stream


class Wire:
    """An outlet that keeps what is sent, and can be stopped up."""

    def __init__(self) -> None:
        self.decoder = FrameDecoder(Direction.TO_GUEST)
        self.sent: list[Frame] = []
        self.forgotten: list[int] = []
        self.open = asyncio.Event()
        self.open.set()

    def send(self, buffers: Sequence[bytes | memoryview]) -> None:
        self.sent += self.decoder.feed(b"".join(buffers))

    async def drained(self) -> None:
        await self.open.wait()

    def forget(self, stream: int) -> None:
        self.forgotten.append(stream)

    def bytes_of(self, kind: FrameType) -> int:
        return sum(
            frame.credit() if kind == FrameType.CREDIT else len(frame.payload)
            for frame in self.sent
            if frame.type == kind
        )


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def stream(wire: Wire) -> Stream:
    stream = Stream(wire, 1, "exec.start", "x", unary=False)
    give(stream, encode_frame(FrameType.REPLY, 1, encode_map({})))
    return stream


def give(stream: Stream, raw: bytes) -> None:
    for frame in FrameDecoder(Direction.TO_HOST).feed(raw):
        stream.accept(frame)


def data(size: int, channel: int = 1) -> bytes:
    return encode_frame(FrameType.DATA, 1, bytes(size), channel)


async def test_items_come_in_order(stream: Stream, wire: Wire) -> None:
    give(stream, data(3) + data(2, 2) + encode_frame(FrameType.END, 1, b"", 1))
    give(stream, encode_frame(FrameType.RESULT, 1, encode_map({"n": 1})))
    items = [await stream.next(1) for _ in range(4)]
    assert items == [Chunk(1, bytes(3)), Chunk(2, bytes(2)), End(1), Result({"n": 1})]
    assert stream.over
    assert wire.forgotten == [1]


async def test_acknowledgements_are_gathered(stream: Stream, wire: Wire) -> None:
    give(stream, data(100) + data(100))
    stream.ack(1, 60)
    stream.ack(1, 140)
    assert wire.sent == []
    async with asyncio.timeout(60):
        while not wire.sent:
            await asyncio.sleep(0)
    assert [(frame.type, frame.credit()) for frame in wire.sent] == [(FrameType.CREDIT, 200)]


async def test_large_acknowledgements_go_at_once(stream: Stream, wire: Wire) -> None:
    give(stream, data(64 << 10) * 4)
    stream.ack(1, 256 << 10)
    assert wire.bytes_of(FrameType.CREDIT) == 256 << 10


async def test_closing_sends_what_was_acknowledged_first(stream: Stream, wire: Wire) -> None:
    give(stream, data(10))
    stream.ack(1, 4)
    stream.close()
    stream.close()
    assert [frame.type for frame in wire.sent] == [FrameType.CREDIT, FrameType.CLOSE]
    with pytest.raises(HutchError, match="closed"):
        await stream.write(b"x")


async def test_nobody_acknowledges_what_never_came(stream: Stream) -> None:
    give(stream, data(10))
    stream.ack(1, 10)
    with pytest.raises(ValueError, match="never received"):
        stream.ack(1, 1)


async def test_the_window_is_open_again_after_credit(stream: Stream) -> None:
    give(stream, data(64 << 10) * 16)
    stream.ack(1, WINDOW)
    give(stream, data(64 << 10) * 16)
    with pytest.raises(GuestProtocolError):
        give(stream, data(1))


async def test_writing_waits_for_credit(stream: Stream, wire: Wire) -> None:
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(stream.write(bytes(WINDOW + 10)))
        while wire.bytes_of(FrameType.DATA) < WINDOW:
            await asyncio.sleep(0)
        assert not writing.done()
        give(stream, encode_credit(1, 0, 4))
        while wire.bytes_of(FrameType.DATA) < WINDOW + 4:
            await asyncio.sleep(0)
        give(stream, encode_credit(1, 0, 100))
    assert wire.bytes_of(FrameType.DATA) == WINDOW + 10


async def test_writing_waits_for_the_connection(stream: Stream, wire: Wire) -> None:
    wire.open.clear()
    with pytest.raises(HutchError) as caught:
        await stream.write(b"x", seconds=0.05)
    assert caught.value.code == "guest_timeout"
    assert wire.sent == []


async def test_a_failure_wakes_the_writer(stream: Stream) -> None:
    error = encode_map({"code": "no_space", "message": "full", "errno": 28})
    raw = encode_frame(FrameType.ERROR, 1, error)
    asyncio.get_running_loop().call_soon(give, stream, raw)
    with pytest.raises(HutchError) as caught:
        await asyncio.wait_for(stream.write(bytes(2 * WINDOW)), 60)
    assert caught.value.code == "guest_refused"
    assert caught.value.details == {"guest_code": "no_space", "errno": 28}


async def test_input_after_a_good_end_goes_nowhere(stream: Stream, wire: Wire) -> None:
    give(stream, encode_frame(FrameType.RESULT, 1, encode_map({})))
    await stream.write(bytes(3 * WINDOW))
    await stream.end()
    await stream.control({"signal": 1})
    assert wire.sent == []


async def test_data_before_a_failure_is_still_read(stream: Stream) -> None:
    give(stream, data(5))
    stream.fail(HutchError("sandbox_died", "gone"))
    assert await stream.next() == Chunk(1, bytes(5))
    with pytest.raises(HutchError, match="gone"):
        await stream.next()


async def test_a_silent_stream_times_out(wire: Wire) -> None:
    stream = Stream(wire, 1, "fs.read", "/f", unary=False)
    with pytest.raises(HutchError, match="/f") as caught:
        await stream.reply(0.01)
    assert caught.value.code == "guest_timeout"
    give(stream, encode_frame(FrameType.REPLY, 1, encode_map({})))
    with pytest.raises(HutchError):
        await stream.next(0.01)


async def test_data_on_a_stream_that_carries_none(stream: Stream) -> None:
    give(stream, data(1))
    with pytest.raises(GuestProtocolError):
        await stream.result(1)


@pytest.mark.parametrize("kind", [FrameType.RESULT, FrameType.DATA, FrameType.END])
async def test_nothing_comes_before_the_reply(wire: Wire, kind: FrameType) -> None:
    stream = Stream(wire, 1, "x", "x", unary=False)
    channel = 0 if kind == FrameType.RESULT else 1
    with pytest.raises(GuestProtocolError, match="before REPLY"):
        give(stream, encode_frame(kind, 1, b"", channel))


# ---- the inbox


def contents(inbox: Inbox) -> list[object]:
    items = []
    while (item := inbox.pop()) is not None:
        items.append(item)
    return items


def test_small_pieces_are_merged_while_nobody_reads() -> None:
    inbox = Inbox()
    for _ in range(WINDOW):
        inbox.put_data(1, b"x")
    assert len(inbox) <= 16
    assert sum(len(item.data) for item in contents(inbox) if isinstance(item, Chunk)) == WINDOW


def test_alternating_channels_do_not_grow_the_queue() -> None:
    inbox = Inbox()
    for index in range(100_000):
        inbox.put_data(1 + index % 2, bytes([index % 251]))
    assert len(inbox) <= 258
    merged = {1: b"", 2: b""}
    for item in contents(inbox):
        assert isinstance(item, Chunk)
        merged[item.channel] += item.data
    assert merged[1] == bytes(index % 251 for index in range(0, 100_000, 2))
    assert merged[2] == bytes(index % 251 for index in range(1, 100_000, 2))


def test_a_gap_stays_where_it_was() -> None:
    inbox = Inbox()
    inbox.put_data(1, b"a")
    inbox.put(1, Gap(1, 5))
    inbox.put_data(1, b"b")
    assert contents(inbox) == [Chunk(1, b"a"), Gap(1, 5), Chunk(1, b"b")]


def test_gaps_that_were_read_do_not_count() -> None:
    inbox = Inbox()
    for _ in range(5000):
        inbox.put(1, Gap(1, 1))
        inbox.pop()
    assert len(inbox) == 0


def test_empty_data_leaves_no_trace() -> None:
    inbox = Inbox()
    inbox.put_data(1, b"")
    assert inbox.pop() is None
