import asyncio

import pytest

from hutch.guest.events import EventQueue
from hutch.guest.messages import GuestProtocolError, encode_map


def payload(kind: str = "oom", **fields: object) -> bytes:
    return encode_map({"event": kind, **fields})


async def test_events_come_in_order_until_the_end() -> None:
    queue = EventQueue()
    queue.put(payload("a", n=1))
    queue.put(payload("b"))
    queue.close()
    first, second, end = [await queue.take() for _ in range(3)]
    assert first is not None
    assert second is not None
    assert (first.kind, first.fields, second.kind, end) == ("a", {"n": 1}, "b", None)


async def test_taking_waits_for_the_next() -> None:
    queue = EventQueue()
    asyncio.get_running_loop().call_soon(queue.put, payload("late"))
    event = await asyncio.wait_for(queue.take(), 60)
    assert event is not None
    assert event.kind == "late"


async def test_the_oldest_are_dropped() -> None:
    queue = EventQueue()
    for number in range(3000):
        queue.put(payload(n=number))
    assert len(queue) == 1024
    event = await queue.take()
    assert event is not None
    assert event.fields["n"] == 3000 - 1024


async def test_bytes_are_bounded_too() -> None:
    queue = EventQueue()
    for _ in range(50):
        queue.put(payload(blob=bytes(200_000)))
    assert len(queue) == 5


@pytest.mark.parametrize("raw", [b"\x80", encode_map({"event": ""}), encode_map({"event": 1}), b""])
def test_what_is_no_event(raw: bytes) -> None:
    with pytest.raises(GuestProtocolError):
        EventQueue().put(raw)
