"""Snapshots that are open: nobody removes them, and what is wrong with one is said of it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from hutch.errors import error
from hutch.images.base import no_report
from hutch.models import SandboxInfo
from hutch.service.host import HostService
from hutch.service.moments import Moments
from hutch.service.revival import AT_FAULT
from tests.unit.service.world import World, expect, spec


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


async def run(service: HostService, **fields: Any) -> SandboxInfo:
    info = await service.sandboxes.create(spec(idle=True, **fields), no_report)
    return await service.sandboxes.start(info.id)


def moments(service: HostService) -> Moments:
    return service.snapshots._moments


async def test_one_that_is_open_stays(world: World, service: HostService) -> None:
    info = await run(service, name="web")
    taken = await service.snapshots.create("web", name="then")
    row = service.snapshots.shelf.find("then")
    async with moments(service).opened(row) as moment:
        assert (moment.origin.id, moment.origin.source.info.id) == (taken.id, info.id)
        assert moment.frozen is not None
        assert moment.frozen.directory == world.settings.home / "snapshots" / taken.id
        assert moment.origin.layer == row.layer
        assert moments(service).busy(taken.id)
    async with service.snapshots.opened("then"):
        await expect("in_use", service.snapshots.remove("then"))
    assert not moments(service).busy(taken.id)
    async with moments(service).opened(row, disk_only=True) as moment:
        assert (moment.frozen, moment.origin.logs) == (None, None)
    await service.snapshots.remove("then")


async def test_the_memory_is_held_for_the_last_who_needs_it(
    world: World, service: HostService
) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="then")
    row = service.snapshots.shelf.find("then")
    async with moments(service).opened(row) as outer:
        assert outer.frozen is not None
        await service.snapshots.restore("then", "again")
        assert world.engine.frozen_memory(outer.frozen) > 0
    assert world.engine.frozen_memory(outer.frozen) == 0


async def test_a_memory_that_never_loads_is_damage(service: HostService) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="then")
    row = service.snapshots.shelf.find("then")

    async def use(details: dict[str, Any]) -> None:
        async with moments(service).opened(row):
            raise error("engine_failed", "told to", details=details)

    await expect("snapshot_damaged", use({AT_FAULT: True}))
    await expect("engine_failed", use({}))
    assert not moments(service).busy(row.info.id)
