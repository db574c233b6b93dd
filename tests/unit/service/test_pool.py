"""A pool keeps itself filled: in its turn, one at a time, again after a loss or a failure."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hutch.engine.base import ExitKind, MachineExit
from hutch.errors import error
from hutch.images.base import no_report
from hutch.service import pool as module
from hutch.service.host import HostService
from hutch.settings import GIB
from tests.unit.service.pooling import (
    kinds,
    layers,
    machines,
    refilled,
    status,
    warm,
)
from tests.unit.service.world import World, expect, spec
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("hasty")


@pytest.fixture
async def service(farm: World) -> AsyncIterator[HostService]:
    async with farm.service() as service:
        yield service


async def test_a_pool_that_cannot_be_filled_says_why_and_tries_again(
    farm: World, service: HostService
) -> None:
    await service.templates.build(spec(idle=True), no_report)
    farm.engine.fail_clone = error("engine_failed", "told to")
    await expect("engine_failed", warm(service))
    info = await status(service)
    assert info.error is not None
    assert (info.error.code, info.ready) == ("engine_failed", 0)
    assert farm.leftovers() == []
    farm.engine.fail_clone = None
    info = await refilled(service, 1)
    assert info.error is None
    assert kinds(service)[0] == "pool.failed"
    assert kinds(service)[-1] == "pool.filled"


async def test_filling_waits_while_a_sandbox_is_started(farm: World, service: HostService) -> None:
    await service.templates.build(spec(idle=True), no_report)
    with service.pools.starting():
        await service.pools.warm(spec(idle=True), 1, no_report, wait=False)
        # What is ready is looked at after all else that is due now has been done.
        for _ in range(50):
            await asyncio.sleep(0)
        assert farm.engine.cloned == []
    await refilled(service, 1)


async def test_but_not_for_ever(
    farm: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    with service.pools.starting():
        await warm(service)
    assert (await status(service)).ready == 1


async def test_another_size(farm: World, service: HostService) -> None:
    first = await warm(service, 1)
    second = await warm(service, 3)
    assert (first.id, second.ready) == (second.id, 3)
    await warm(service, 1)
    await refilled(service, 1)
    await until(lambda: len(machines(farm)) == 1)
    await warm(service, 2, memory=GIB)
    assert [info.size for info in await service.pools.list()] == [1, 2]


async def test_progress(service: HostService) -> None:
    told: list[str] = []

    def report(progress: Any) -> None:
        told.append(progress.message)

    await service.pools.warm(spec(idle=True), 2, report, wait=True)
    assert told[0] == "0 of 2 ready"
    assert told[-1] == "2 of 2 ready"


async def test_draining_while_it_fills(farm: World, service: HostService) -> None:
    await service.templates.build(spec(idle=True), no_report)
    farm.engine.hang_clone = True
    warming = asyncio.ensure_future(warm(service))
    await until(lambda: farm.engine.cloned, what="a member is being made")
    await service.pools.drain()
    await expect("pool_not_found", warming)
    assert farm.leftovers() == []


async def test_a_member_that_dies_is_replaced(farm: World, service: HostService) -> None:
    await warm(service)
    (member,) = machines(farm)
    farm.end_machine(member, MachineExit(ExitKind.CRASHED, "killed"))
    await until(lambda: machines(farm) - {member}, what="there is another one")
    await refilled(service, 1)
    assert member not in machines(farm)
    assert not (farm.settings.home / "sandboxes" / member).exists()
    assert len(layers(farm)) == 1


async def test_a_member_whose_agent_hangs_up_is_replaced(farm: World, service: HostService) -> None:
    await warm(service)
    (member,) = machines(farm)
    farm.agents[member].disconnect()
    await until(lambda: member not in machines(farm), what="it is ended")
    await refilled(service, 1)
