"""Guests are told whether they have a network: of the last change at last, and nobody waits."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from hutch.engine.base import MachineSpec
from hutch.errors import error
from hutch.guest.machine import Machine
from hutch.images.base import no_report
from hutch.networking import NetworkChange, NetworkMode, NetworkPolicy
from hutch.service.host import HostService
from hutch.tasks import Scope
from tests.unit.service.test_networks import run
from tests.unit.service.world import World, spec
from tests.waiting import until

NONE, PUBLIC = (NetworkChange(mode=mode) for mode in (NetworkMode.NONE, NetworkMode.PUBLIC))


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What guests were told, but for their identities."""
    told: list[bool] = []
    original = Machine.set_network

    async def watched(self: Machine, up: bool) -> None:
        told.append(up)
        await original(self, up)

    monkeypatch.setattr(Machine, "set_network", watched)
    return told


async def quiet(service: HostService) -> None:
    await until(lambda: not service._lives.pauses.telling._under_way)


async def test_what_was_changed_while_it_was_stopped_is_not_told_later(
    world: World, service: HostService, told: list[bool]
) -> None:
    info = await run(service, name="web")
    await service.sandboxes.stop("web")
    await service.networks.update("web", NONE)
    await service.sandboxes.start("web")
    await service.networks.update("web", PUBLIC)
    await service.sandboxes.pause("web")
    await service.sandboxes.resume("web")
    await quiet(service)
    assert told == [True]
    assert world.agent(info).identity["network"] is True


async def test_what_was_changed_while_it_was_starting_is_told(
    world: World, service: HostService, told: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = NetworkPolicy(NetworkMode.NONE)
    info = await service.sandboxes.create(spec(idle=True, name="web", network=network), no_report)
    boot, reached, go = world.engine.boot, asyncio.Event(), asyncio.Event()

    async def slow(machine: MachineSpec) -> object:
        reached.set()
        await go.wait()
        return await boot(machine)

    monkeypatch.setattr(world.engine, "boot", slow)
    async with asyncio.TaskGroup() as group:
        group.create_task(service.sandboxes.start("web"))
        await reached.wait()
        await service.networks.update("web", PUBLIC)
        go.set()
    await until(lambda: world.agent(info).identity["network"] is True)
    assert told == [True]


async def test_the_last_of_the_changes_while_it_is_paused(
    world: World, service: HostService, told: list[bool]
) -> None:
    info = await run(service, name="web")
    await service.sandboxes.pause("web")
    for change in (NONE, PUBLIC, NONE):
        await service.networks.update("web", change)
    assert told == []
    await service.sandboxes.resume("web")
    await until(lambda: world.agent(info).identity["network"] is False)
    await quiet(service)
    assert told == [False]


async def test_a_change_while_it_is_paused_outlives_the_daemon(
    world: World, told: list[bool]
) -> None:
    async with world.service() as service:
        info = await run(service, name="web")
        await service.sandboxes.pause("web")
        await service.networks.update("web", NONE)
    async with world.service() as service:
        await service.sandboxes.resume("web")
        await until(lambda: world.agent(info).identity["network"] is False)


async def test_a_guest_that_does_not_listen_delays_no_change(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go = asyncio.Event(), asyncio.Event()
    told: list[bool] = []

    async def deaf(self: Machine, up: bool) -> None:
        told.append(up)
        asked.set()
        await go.wait()
        raise error("guest_timeout", "the test says so")

    monkeypatch.setattr(Machine, "set_network", deaf)
    info = await run(service, name="web")
    async with Scope("test") as scope:
        first = scope.start("first", service.networks.update("web", NONE))
        await asked.wait()
        second = scope.start("second", service.networks.update("web", PUBLIC))
        await until(lambda: world.network.policies[info.id] == NetworkPolicy())
        assert told == [False]
        go.set()
        await asyncio.gather(first, second)
    await quiet(service)
    # It is tried once for each change, and no more before the next.
    assert told == [False, True]
    entry = service._registry.find("web")
    assert entry.untold


async def test_one_that_was_not_told_is_told_with_the_next_change(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = await run(service, name="web")
    with monkeypatch.context() as patched:

        async def deaf(self: Machine, up: bool) -> None:
            raise error("guest_timeout", "the test says so")

        patched.setattr(Machine, "set_network", deaf)
        await service.networks.update("web", NONE)
        await quiet(service)
    assert world.agent(info).identity["network"] is True
    await service.networks.update("web", NetworkChange(allow=["a.example.com"]))
    await until(lambda: world.agent(info).identity["network"] is False)
