"""The connection to one guest: made anew, waited for, given up."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hutch.errors import HutchError, error
from hutch.guest.base import Guest
from hutch.guest.fake import FakeAgent
from hutch.guest.session import connect_guest
from hutch.service.connection import ATTEMPTS, Connection
from hutch.tasks import Scope
from tests.unit.service.world import expect
from tests.waiting import until


class Harness:
    """A connection with its task, and what it was used for."""

    def __init__(self, path: Path, timeout: float) -> None:
        self.given_up: list[HutchError] = []
        self.guests: list[Guest] = []
        self.connection = Connection(
            "sandbox one",
            path,
            connect_guest,
            timeout=timeout,
            give_up=self.given_up.append,
        )

    async def connected(self, guest: Guest) -> None:
        self.guests.append(guest)


@pytest.fixture
async def agent(short_tmp: Path) -> AsyncIterator[FakeAgent]:
    async with FakeAgent(short_tmp / "agent.sock", ready=True) as agent:
        yield agent


@pytest.fixture
async def harness(agent: FakeAgent) -> AsyncIterator[Harness]:
    harness = Harness(Path(agent.path), 2.0)
    async with Scope("test") as scope:
        scope.start("run", harness.connection.run(harness.connected))
        yield harness
        await harness.connection.close()


async def test_it_is_made_and_waited_for(harness: Harness) -> None:
    guest = await harness.connection.get()
    assert await harness.connection.get() is guest
    assert harness.connection.current is guest
    assert await guest.ping() >= 0


async def test_it_is_made_anew(agent: FakeAgent, harness: Harness) -> None:
    guest = await harness.connection.get()
    agent.disconnect()
    newer = await harness.connection.after(guest)
    assert newer is not guest
    assert await newer.ping() >= 0
    await until(lambda: harness.guests == [guest, newer])


async def test_it_is_given_up(agent: FakeAgent, harness: Harness) -> None:
    for _ in range(ATTEMPTS):
        guest = await harness.connection.get()
        agent.disconnect()
        await guest.wait_closed()
    await until(lambda: harness.given_up)
    assert await expect("guest_protocol", harness.connection.get()) is harness.given_up[0]


async def test_those_who_wait_hear_of_the_end(agent: FakeAgent, harness: Harness) -> None:
    guest = await harness.connection.get()
    agent.silent = True
    agent.disconnect()
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(expect("sandbox_died", harness.connection.after(guest)))
        await guest.wait_closed()
        harness.connection.end(error("sandbox_died", "it is gone"))
    await expect("sandbox_died", harness.connection.get())


async def test_a_guest_that_says_nothing(short_tmp: Path) -> None:
    harness = Harness(short_tmp / "none.sock", 0.05)
    failure = await expect("guest_timeout", harness.connection.get())
    assert "sandbox one" in failure.message


async def test_the_loss_of_the_last_connection_is_no_fault(
    agent: FakeAgent, harness: Harness
) -> None:
    guest = await harness.connection.get()
    harness.connection.last = True
    agent.disconnect()
    await guest.wait_closed()
    await until(lambda: harness.connection.current is None)
    assert harness.given_up == []
    assert harness.guests == [guest]


async def test_while_it_is_held_everyone_waits_without_a_limit(agent: FakeAgent) -> None:
    harness = Harness(Path(agent.path), 0.1)
    async with Scope("test") as scope:
        harness.connection.hold()
        scope.start("run", harness.connection.run(harness.connected))
        waiting = scope.start("get", harness.connection.get())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(harness.connection.until_released(), 0.3)
        assert not waiting.done()
        assert agent.connection is None  # the guest could not answer
        harness.connection.release()
        guest = await waiting
        harness.connection.hold()
        waiting = scope.start("get", harness.connection.get())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.3)
        harness.connection.release()
        assert await waiting is guest
        await harness.connection.close()
    assert harness.given_up == []


async def test_its_end_is_told_while_it_is_held(harness: Harness) -> None:
    await harness.connection.get()
    harness.connection.hold()
    async with asyncio.TaskGroup() as group:
        group.create_task(expect("sandbox_died", harness.connection.get()))
        await asyncio.sleep(0)
        harness.connection.end(error("sandbox_died", "it is over"))
