"""What the gateway decided is heard once, in its order, also while the daemon catches up."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import cast

import pytest

from hutch.errors import error
from hutch.network.channel import Channel, Values
from hutch.network.decided import Decided
from hutch.networking import NetworkLayer, NetworkRecord, Reason
from tests.waiting import until


def record(place: int) -> Values:
    made = NetworkRecord(place, "now", "sb", NetworkLayer.DNS, False, Reason.LIMIT)
    return asdict(made)


class Gateway:
    """Has records, and hands out two at a time. `meanwhile` happens with each request."""

    def __init__(self, has: int = 0) -> None:
        self.ring = list(range(1, has + 1))
        self.meanwhile: Callable[[], None] = lambda: None
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.asked: list[int] = []
        self.closed = 0

    async def call(self, method: str, values: Values) -> tuple[Values, list[int]]:
        assert method == "records"
        since = values["since"]
        self.asked.append(since)
        left = [place for place in self.ring if place > since]
        self.meanwhile()
        await self.go_on.wait()
        page = left[:2]
        told = {"records": [record(place) for place in page], "more": len(left) > 2}
        return told | {"next": page[-1] if page else since}, []

    async def close(self) -> None:
        self.closed += 1

    async def decide(self, to: Decided) -> None:
        place = len(self.ring) + 1
        self.ring.append(place)
        await to.told({"record": record(place), "next": place}, [])


async def met(by: Decided, gateway: Gateway, pid: int = 1) -> None:
    await by.met(cast(Channel, gateway), pid)


@pytest.fixture
async def heard() -> list[int]:
    return []


@pytest.fixture
async def ours(heard: list[int]) -> AsyncIterator[Decided]:
    made = Decided(lambda told: heard.append(told["number"]))
    yield made
    await made.close()


async def numbers(of: Decided, count: int) -> list[int]:
    records = of.records()
    found = [(await anext(records)).number for _ in range(count)]
    assert of._records.empty()
    return found


async def test_what_is_told_while_it_catches_up_comes_once_and_in_its_place(
    ours: Decided, heard: list[int]
) -> None:
    gateway = Gateway(5)
    gateway.go_on.clear()
    await met(ours, gateway)
    await until(lambda: gateway.asked == [0])
    await gateway.decide(ours)  # it will be in a later page as well
    gateway.go_on.set()
    assert await numbers(ours, 6) == [1, 2, 3, 4, 5, 6]
    await gateway.decide(ours)
    assert await numbers(ours, 1) == [7]
    # Also those that wait count as heard of.
    assert sorted(set(heard)) == [1, 2, 3, 4, 5, 6, 7]


async def test_what_is_told_after_the_last_page_was_made_is_not_lost(ours: Decided) -> None:
    gateway = Gateway(1)
    gateway.go_on.clear()
    await met(ours, gateway)
    await until(lambda: gateway.asked == [0])  # its answer has been made
    await gateway.decide(ours)
    await gateway.decide(ours)
    gateway.go_on.set()
    assert await numbers(ours, 3) == [1, 2, 3]


async def test_nobody_waits_until_all_is_fetched(ours: Decided) -> None:
    gateway = Gateway(1)
    gateway.go_on.clear()
    await met(ours, gateway)  # returns although no answer comes


async def test_one_that_is_met_again_is_asked_for_what_is_missing(ours: Decided) -> None:
    gateway = Gateway(2)
    await met(ours, gateway)
    assert await numbers(ours, 2) == [1, 2]
    gateway.ring += [3]
    gateway.go_on.clear()
    await met(ours, gateway)
    await until(lambda: gateway.asked == [0, 2])
    await gateway.decide(ours)
    gateway.go_on.set()
    await met(ours, gateway)  # in the midst of it
    assert await numbers(ours, 2) == [3, 4]


async def test_a_successor_is_asked_for_all_and_the_last_words_of_its_predecessor_stay(
    ours: Decided,
) -> None:
    gateway = Gateway(1)
    gateway.go_on.clear()
    await met(ours, gateway)
    await until(lambda: gateway.asked == [0])
    await gateway.decide(ours)
    successor = Gateway(1)
    await met(ours, successor, pid=2)
    assert await numbers(ours, 2) == [2, 1]
    assert successor.asked == [0]
    await successor.decide(ours)
    assert await numbers(ours, 1) == [2]


async def test_one_that_does_not_answer_is_let_go_of(ours: Decided) -> None:
    gateway = Gateway(1)

    def fail() -> None:
        raise error("network_failed", "it did not answer")

    gateway.meanwhile = fail
    await met(ours, gateway)
    await until(lambda: gateway.closed == 1)


async def test_the_oldest_go_when_nobody_reads(ours: Decided) -> None:
    ours._records = asyncio.Queue(3)
    gateway = Gateway()
    await met(ours, gateway)
    await until(lambda: not ours._fetching)
    for _ in range(5):
        await gateway.decide(ours)
    assert await numbers(ours, 3) == [3, 4, 5]
