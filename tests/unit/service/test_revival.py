"""Sandboxes that begin where others were: what is their own, and what their start leaves."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hutch.images.base import no_report
from hutch.models import IdleAction, SandboxState
from hutch.service.host import HostService
from hutch.tasks import Scope
from tests.unit.service.world import World, expect, spec


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


async def test_what_a_child_has_of_its_source_and_what_of_its_own(
    world: World, service: HostService
) -> None:
    wanted = spec(
        idle=True,
        name="web",
        hostname="special",
        timeout=30.0,
        idle_timeout=20.0,
        idle_action=IdleAction.STOP,
        auto_remove=True,
        labels={"a": "b"},
    )
    info = await service.sandboxes.create(wanted, no_report)
    source = await service.sandboxes.start(info.id)
    (child,) = (await service.forks.fork("web", ["some_child"])).children
    for field in ("image_id", "env", "cpus", "memory", "disk", "labels", "timeout", "auto_remove"):
        assert getattr(child, field) == getattr(source, field), field
    assert (child.idle_timeout, child.idle_action) == (20.0, IdleAction.STOP)
    assert child.hostname == "some-child"
    assert child.id != source.id
    assert child.pid != source.pid
    rows = {row.info.name: row for row in await service._parts.store.sandboxes()}
    assert rows["web"].slot != rows["some_child"].slot
    assert rows["some_child"].generation == rows["web"].generation + 1
    # It removes itself when it stops, as its source would.
    await service.sandboxes.stop("some_child")
    await expect("sandbox_not_found", service.sandboxes.get("some_child"))


async def test_it_lives_on_after_a_restart_of_the_daemon(world: World) -> None:
    async with world.service() as service:
        info = await service.sandboxes.create(spec(idle=True, name="web"), no_report)
        await service.sandboxes.start(info.id)
        await service.forks.fork("web", ["child"])
    async with world.service() as service:
        assert (await service.sandboxes.get("child")).state is SandboxState.RUNNING
        await service.sandboxes.stop("child")
        assert (await service.sandboxes.start("child")).state is SandboxState.RUNNING


async def test_an_image_that_is_gone(world: World, service: HostService) -> None:
    info = await service.sandboxes.create(spec(idle=True, name="web"), no_report)
    await service.sandboxes.start(info.id)
    await service.snapshots.create("web", name="then", disk_only=True)
    world.images.path.unlink()
    await expect("image_not_found", service.snapshots.restore("then", "new"))
    await expect("sandbox_not_found", service.sandboxes.get("new"))


async def test_somebody_else_starts_it_before_it_goes_on(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = await service.sandboxes.create(spec(idle=True, name="web"), no_report)
    await service.sandboxes.start(info.id)
    layers, started = service._lives.booter.layers, []
    make = layers.make
    scope = Scope("starts")

    async def make_and_start(*args: Any) -> Path:
        if "child" in (entry.info.name for entry in service._registry):
            started.append(scope.start("start", service.sandboxes.start("child")))
            await asyncio.sleep(0)  # it is the next one to have it
        return await make(*args)

    monkeypatch.setattr(layers, "make", make_and_start)
    await expect("wrong_state", service.forks.fork("web", ["child"]))
    (info,) = [await task for task in started]
    assert info.id in world.agents  # it ran
    await expect("sandbox_not_found", service.sandboxes.get("child"))
    await service.sandboxes.remove("web", force=True)
    assert world.leftovers() == []
