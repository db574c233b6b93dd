"""The ring of events and its readers."""

import asyncio

from hutch.service.events import KEPT, EventLog
from tests.waiting import until


async def collect(log: EventLog, since: int | None = None, *, follow: bool = False) -> list[str]:
    return [event.kind async for event in log.follow(since, follow=follow)]


async def test_events_are_kept_in_order_and_numbered() -> None:
    log = EventLog()
    for number in range(3):
        log.emit(f"k{number}", "sb_1", "one", code=number)
    events = log.kept(None)
    assert [event.seq - events[0].seq for event in events] == [0, 1, 2]
    assert events[2].fields == {"code": 2}
    assert await collect(log) == ["k0", "k1", "k2"]
    assert await collect(log, events[1].seq) == ["k1", "k2"]
    assert await collect(log, events[2].seq + 1) == []
    assert await collect(log, 0) == ["k0", "k1", "k2"]


async def test_the_oldest_go() -> None:
    log = EventLog()
    for number in range(KEPT + 10):
        log.emit(f"k{number}", "x")
    assert (await collect(log))[0] == "k10"


async def test_followers_get_each_event_once_and_end_with_the_log() -> None:
    log = EventLog()
    log.emit("before", "x")
    seen: list[str] = []

    async def follow() -> None:
        async for event in log.follow(None, follow=True):
            seen.append(event.kind)

    async with asyncio.TaskGroup() as group:
        group.create_task(follow())
        await until(lambda: seen)
        for number in range(3):
            log.emit(f"k{number}", "x")
        await until(lambda: len(seen) == 4)
        log.emit("last", "x")
        log.close()
    assert seen == ["before", "k0", "k1", "k2", "last"]


async def test_a_slow_follower_misses_the_oldest() -> None:
    log = EventLog()
    log.emit("first", "x")
    events = log.follow(None, follow=True)
    assert (await anext(events)).kind == "first"
    for number in range(KEPT + 5):
        log.emit(f"k{number}", "x")
    assert (await anext(events)).kind == "k5"


def test_numbers_go_on_after_a_restart() -> None:
    first = EventLog()
    first.emit("a", "x")
    (old,) = first.kept(None)
    second = EventLog()
    second.emit("b", "x")
    (new,) = second.kept(None)
    assert new.seq >= old.seq
