"""The daemon about itself."""

import os

from hutch import __version__
from hutch.images.base import no_report
from hutch.models import to_json
from hutch.settings import SETTINGS
from tests.unit.service.world import World, spec


async def test_info(world: World) -> None:
    async with world.service() as service:
        for _ in range(2):
            info = await service.sandboxes.create(spec(), no_report)
        await service.sandboxes.start(info.id)
        found = await service.system.info()
    assert (found.version, found.pid) == (__version__, os.getpid())
    assert (found.sandboxes, found.running) == (2, 1)
    assert found.home == str(world.settings.home)
    assert found.memory > 1 << 20


async def test_settings_are_plain_values(world: World) -> None:
    async with world.service() as service:
        found = service.system.settings()
    assert list(found) == [row.key for row in SETTINGS]
    assert found["home"] == {"value": str(world.settings.home), "origin": "default"}
    assert to_json(found) == found


async def test_a_life_in_events(world: World) -> None:
    async with world.service() as service:
        info = await service.sandboxes.create(spec(name="one"), no_report)
        await service.sandboxes.start("one")
        await service.sandboxes.stop("one")
        await service.sandboxes.remove("one")
        events = [event async for event in service.system.events()]
    kinds = [event.kind for event in events if event.subject == info.id]
    assert kinds == [
        "sandbox.created",
        "sandbox.started",
        "exec.exited",
        "sandbox.stopped",
        "sandbox.removed",
    ]
    assert {event.name for event in events} == {"one"}


async def test_the_doctor_of_a_running_daemon(world: World) -> None:
    async with world.service() as service:
        assert {check.name for check in await service.system.doctor()} >= {"qemu", "kernel"}
