"""Single flight, and failing together."""

import asyncio

import pytest

from hutch.images.flight import Flights, together


async def test_one_works_and_the_others_wait() -> None:
    flights, running, made = Flights(), 0, []

    async def want(key: str) -> None:
        nonlocal running
        async with flights.over(key):
            if key in made:
                return
            running += 1
            assert running == 1
            await asyncio.sleep(0)
            made.append(key)
            running -= 1

    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(want("a"))
    assert made == ["a"]
    assert flights._locks == {}


async def test_keys_do_not_hinder_each_other() -> None:
    flights = Flights()
    async with flights.over("a"), flights.over("b"):
        pass


async def test_when_the_maker_is_cancelled_the_next_takes_over() -> None:
    flights, entered, never = Flights(), asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        async with flights.over("a"):
            entered.set()
            await never.wait()

    async def work() -> str:
        async with flights.over("a"):
            return "done"

    async with asyncio.TaskGroup() as group:
        first = group.create_task(hang())
        await entered.wait()
        second = group.create_task(work())
        await asyncio.sleep(0)
        first.cancel()
    assert second.result() == "done"
    assert flights._locks == {}


async def test_the_first_failure_is_raised_itself() -> None:
    async def fail() -> None:
        raise KeyError("this")

    async def nested() -> None:
        async with together() as outer:
            outer.create_task(inner())

    async def inner() -> None:
        async with together() as group:
            group.create_task(fail())

    with pytest.raises(KeyError, match="this"):
        await nested()
