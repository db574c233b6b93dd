"""Whatever is cut off at whatever moment: nothing is left half done, and nothing is lost."""

import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hutch.errors import HutchError, error
from hutch.images.base import no_report
from hutch.models import SandboxInfo, SandboxState
from hutch.service.host import HostService
from hutch.service.values import SandboxFilter
from hutch.tasks import Scope
from tests.unit.service.cutting import Noted, cuts, settled, states
from tests.unit.service.pooling import refilled, warm
from tests.unit.service.world import World, spec
from tests.waiting import until

CREATED, RUNNING, STOPPED = SandboxState.CREATED, SandboxState.RUNNING, SandboxState.STOPPED
PARKED, PAUSED = SandboxState.PARKED, SandboxState.PAUSED
AT_REST = (CREATED, STOPPED, RUNNING)


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


@pytest.fixture
async def cloned(farm: World) -> AsyncIterator[HostService]:
    async with farm.service() as service:
        yield service


async def create(service: HostService, **fields: Any) -> SandboxInfo:
    return await service.sandboxes.create(spec(**fields), no_report)


async def run(service: HostService, **fields: Any) -> SandboxInfo:
    return await service.sandboxes.start((await create(service, idle=True, **fields)).id)


async def clear(service: HostService) -> None:
    for entry in service._registry:
        await service.sandboxes.remove(entry.info.id, force=True)


async def check(world: World, service: HostService, moment: str) -> None:
    assert await settled(world, service) == [], moment


async def test_a_cold_start(world: World, service: HostService) -> None:
    await create(service, name="web")
    async for moment in cuts(lambda: service.sandboxes.start("web")):
        await check(world, service, moment)
        assert (await service.sandboxes.get("web")).state in AT_REST, moment
        await clear(service)
        await check(world, service, moment)
        await create(service, name="web")


async def test_a_start_that_is_killed(world: World, service: HostService) -> None:
    await create(service, name="web")
    scope = Scope("kills")

    def kill() -> None:
        scope.start("kill", service._lives.kill(service._registry.find("web")))

    async for moment in cuts(lambda: service.sandboxes.start("web"), kill):
        await check(world, service, moment)
        assert (await service.sandboxes.get("web")).state in AT_REST, moment
        await clear(service)
        await check(world, service, moment)
        await create(service, name="web")


async def test_a_failing_start(world: World, service: HostService) -> None:
    world.engine.fail_boot = error("engine_failed", "told to")
    await create(service, name="web")
    async for moment in cuts(lambda: service.sandboxes.start("web")):
        await check(world, service, moment)
        await clear(service)
        await check(world, service, moment)
        await create(service, name="web")


async def test_a_start_whose_program_is_not_there(world: World, service: HostService) -> None:
    missing = spec("missing", name="web")
    await service.sandboxes.create(missing, no_report)
    async for moment in cuts(lambda: service.sandboxes.start("web")):
        await check(world, service, moment)
        await clear(service)
        await check(world, service, moment)
        await service.sandboxes.create(missing, no_report)


async def test_a_clone(farm: World, cloned: HostService) -> None:
    await cloned.templates.build(spec(), no_report)
    await create(cloned, name="web")
    async for moment in cuts(lambda: cloned.sandboxes.start("web")):
        await check(farm, cloned, moment)
        await clear(cloned)
        await check(farm, cloned, moment)
        await create(cloned, name="web")


async def test_a_clone_with_its_own_disk(farm: World, cloned: HostService) -> None:
    async def make() -> None:
        await run(cloned, name="web")
        await cloned.sandboxes.stop("web")

    await make()
    async for moment in cuts(lambda: cloned.sandboxes.start("web")):
        await check(farm, cloned, moment)
        await clear(cloned)
        await check(farm, cloned, moment)
        await make()


async def test_a_clone_of_a_template_that_is_made_for_it(farm: World, cloned: HostService) -> None:
    await create(cloned, name="web")
    async for moment in cuts(lambda: cloned.sandboxes.start("web")):
        await check(farm, cloned, moment)
        await clear(cloned)
        await cloned.templates.prune()
        assert farm.templates() == [], moment
        await check(farm, cloned, moment)
        await create(cloned, name="web")


async def test_a_run(world: World, service: HostService) -> None:
    async def run() -> None:
        info = await create(service, auto_remove=True)
        await service.sandboxes.start(info.id)

    async for moment in cuts(run):
        await check(world, service, moment)
        await clear(service)
        await check(world, service, moment)


@pytest.mark.parametrize("end", ["stop", "kill", "remove", "remove by itself"])
async def test_an_end(world: World, service: HostService, end: str) -> None:
    async def make() -> None:
        if not await service.sandboxes.list(SandboxFilter(all=True)):
            await run(service, name="web", auto_remove=end == "remove by itself")
        if end != "remove by itself":
            await service.sandboxes.start("web")

    await make()
    acts = {
        "stop": lambda: service.sandboxes.stop("web"),
        "kill": lambda: service.sandboxes.kill("web"),
        "remove": lambda: service.sandboxes.remove("web", force=True),
        "remove by itself": lambda: service.sandboxes.stop("web"),
    }
    async for moment in cuts(acts[end]):
        await check(world, service, moment)
        for entry in service._registry:
            if entry.sandbox is not None and entry.sandbox.ending:
                await entry.rest()
        await make()
    await clear(service)
    await check(world, service, "at last")


async def test_the_removal_of_one_at_rest(world: World, service: HostService) -> None:
    async def make() -> None:
        if not await service.sandboxes.list(SandboxFilter(all=True)):
            await run(service, name="web")
            await service.sandboxes.stop("web")

    await make()
    async for moment in cuts(lambda: service.sandboxes.remove("web")):
        await check(world, service, moment)
        await make()


async def test_another_name(world: World, service: HostService) -> None:
    await create(service, name="web")
    info = await service.sandboxes.get("web")
    async for moment in cuts(lambda: service.sandboxes.rename(info.id, "other")):
        await check(world, service, moment)
        await service.sandboxes.rename(info.id, "web")


async def test_the_end_of_a_parked_one(world: World, service: HostService) -> None:
    async def make() -> None:
        await run(service, name="web")
        await service.sandboxes.park("web")

    await make()
    async for moment in cuts(lambda: service.sandboxes.stop("web")):
        await check(world, service, moment)
        await clear(service)
        await check(world, service, moment)
        await make()


@pytest.mark.parametrize("act", ["pause", "resume", "park", "unpark"])
async def test_rest(world: World, service: HostService, act: str) -> None:
    """Each is carried out to its end, whoever asked for it goes away."""
    info = await run(service, name="web")
    before = {"resume": PAUSED, "unpark": PARKED}.get(act, RUNNING)
    after = {"pause": PAUSED, "park": PARKED}.get(act, RUNNING)
    does = {
        "pause": service.sandboxes.pause,
        "park": service.sandboxes.park,
        "resume": service.sandboxes.resume,
        "unpark": service.sandboxes.resume,
    }
    to = {PAUSED: service.sandboxes.pause, PARKED: service.sandboxes.park}
    back = to.get(before, service.sandboxes.resume)
    await back("web")
    async for moment in cuts(lambda: does[act]("web")):
        await check(world, service, moment)
        assert (await service.sandboxes.get("web")).state is after, moment
        await back("web")
        assert (await service.sandboxes.get("web")).state is before, moment
        await check(world, service, moment)
    assert before is PARKED or not world.agent(info).frozen


async def test_one_that_wakes_and_is_killed(world: World, service: HostService) -> None:
    scope = Scope("kills")

    def kill() -> None:
        scope.start("kill", service._lives.kill(service._registry.find("web")))

    async def make() -> None:
        await run(service, name="web")
        await service.sandboxes.park("web")

    await make()
    async for moment in cuts(lambda: service.sandboxes.resume("web"), kill):
        await until(lambda: not scope._tasks)
        assert (await service.sandboxes.get("web")).state in AT_REST, moment
        await check(world, service, moment)
        await clear(service)
        await check(world, service, moment)
        await make()


async def test_a_fork(world: World, service: HostService) -> None:
    info = await run(service, name="web")
    fork = Noted(lambda: service.forks.fork("web", ["a", "b"]))
    async for moment in cuts(fork):
        await check(world, service, moment)
        assert not world.agent(info).frozen
        left = {entry.info.name for entry in service._registry}
        assert left == ({"web", "a", "b"} if fork.done else {"web"}), moment
        assert states(service) == {RUNNING}, moment
        await clear(service)
        await check(world, service, moment)
        info = await run(service, name="web")


@pytest.mark.parametrize("kind", ["full", "disk", "disk at rest"])
async def test_a_snapshot(world: World, service: HostService, kind: str) -> None:
    async def make() -> SandboxInfo:
        info = await run(service, name="web")
        if kind == "disk at rest":
            info = await service.sandboxes.stop("web")
        return info

    info = await make()
    act = functools.partial(service.snapshots.create, "web", disk_only=kind != "full")
    create = Noted(act)
    async for moment in cuts(create):
        await check(world, service, moment)
        assert not world.agent(info).frozen
        assert len(await service.snapshots.list()) == create.done, moment
        for snapshot in await service.snapshots.list():
            await service.snapshots.remove(snapshot.id)
        await clear(service)
        await check(world, service, moment)
        info = await make()


@pytest.mark.parametrize("disk_only", [False, True])
async def test_a_restore(world: World, service: HostService, disk_only: bool) -> None:
    await run(service, name="web")
    snapshot = await service.snapshots.create("web")
    await clear(service)
    act = functools.partial(service.snapshots.restore, snapshot.id, "back", disk_only=disk_only)
    restore = Noted(act)
    async for moment in cuts(restore):
        await check(world, service, moment)
        assert states(service) == ({RUNNING} if restore.done else set()), moment
        await clear(service)
        await check(world, service, moment)


async def test_the_removal_of_a_snapshot(world: World, service: HostService) -> None:
    await run(service, name="web")

    async def make() -> None:
        if not await service.snapshots.list():
            await service.snapshots.create("web", name="shot")

    await make()
    async for moment in cuts(lambda: service.snapshots.remove("shot")):
        await check(world, service, moment)
        await make()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("provisional", [False, True])
async def test_a_claim_and_its_start(farm: World, cloned: HostService, provisional: bool) -> None:
    await warm(cloned)
    async for moment in cuts(lambda: run(cloned, name="web", provisional=provisional)):
        await refilled(cloned, 1)
        await check(farm, cloned, moment)
        await clear(cloned)
        await check(farm, cloned, moment)


@pytest.mark.usefixtures("hasty")
async def test_warming_and_draining(farm: World, cloned: HostService) -> None:
    async def both() -> None:
        await warm(cloned)
        await cloned.pools.drain()

    async for moment in cuts(both):
        await cloned.pools.drain()
        await check(farm, cloned, moment)


async def test_building_and_pruning_templates(farm: World, cloned: HostService) -> None:
    async def both() -> None:
        await cloned.templates.build(spec(), no_report)
        await cloned.templates.prune()

    async for moment in cuts(both):
        await check(farm, cloned, moment)
        kept = {template.id for template in await cloned.templates.list()}
        assert {path.name for path in farm.templates()} == kept, moment
        await cloned.templates.prune()
        assert farm.templates() == [], moment


async def test_a_snapshot_that_travels(world: World, service: HostService) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="shot")
    data = [piece async for piece in service.snapshots.export("shot")]

    async def export() -> None:
        async for _ in service.snapshots.export("shot"):
            pass

    async for moment in cuts(export):
        await check(world, service, moment)

    async def pieces() -> AsyncIterator[bytes]:
        for piece in data:
            yield piece

    load = Noted(lambda: service.snapshots.load(pieces(), "came"))
    async for moment in cuts(load):
        await check(world, service, moment)
        names = {snapshot.name for snapshot in await service.snapshots.list()}
        assert names == ({"shot", "came"} if load.done else {"shot"}), moment
        if load.done:
            await service.snapshots.remove("came")
    await service.snapshots.remove("shot")
    await clear(service)
    await check(world, service, "at last")


async def test_a_checkpoint(world: World, service: HostService) -> None:
    info = await run(service, name="web")
    async for moment in cuts(lambda: service.checkpoints.create("web")):
        await check(world, service, moment)
        assert not world.agent(info).frozen
    await clear(service)
    await check(world, service, "at last")


@pytest.mark.parametrize("killed", [False, True])
async def test_one_that_is_put_back(world: World, service: HostService, killed: bool) -> None:
    scope = Scope("kills")

    def kill() -> None:
        scope.start("kill", service._lives.kill(service._registry.find("web")))

    async def make() -> None:
        await run(service, name="web")
        await service.checkpoints.create("web")

    await make()
    async for moment in cuts(lambda: service.checkpoints.undo("web"), kill if killed else None):
        await until(lambda: not scope._tasks)
        await check(world, service, moment)
        assert states(service) <= {RUNNING, STOPPED}, moment
        await clear(service)
        await check(world, service, moment)
        await make()


async def test_one_that_is_killed_as_it_is_parked(world: World, service: HostService) -> None:
    scope = Scope("kills")

    def kill() -> None:
        scope.start("kill", service._lives.kill(service._registry.find("web")))

    await run(service, name="web")
    async for moment in cuts(lambda: service.sandboxes.park("web"), kill):
        await until(lambda: not scope._tasks)
        await check(world, service, moment)
        await clear(service)
        await check(world, service, moment)
        await run(service, name="web")


async def test_a_child_that_is_removed_as_it_is_made(world: World, service: HostService) -> None:
    scope = Scope("removals")

    async def remove() -> None:
        with contextlib.suppress(HutchError):
            await service.sandboxes.remove("a", force=True)

    def begin() -> None:
        scope.start("removal", remove())

    await run(service, name="web")
    async for moment in cuts(lambda: service.forks.fork("web", ["a", "b"]), begin):
        await until(lambda: not scope._tasks)
        await check(world, service, moment)
        assert states(service) == {RUNNING}, moment
        await clear(service)
        await check(world, service, moment)
        await run(service, name="web")
