"""Forks: one moment, any number of children, each undone alone when it does not come up."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hutch.errors import HutchError, error
from hutch.guest.fake import FakeAgent
from hutch.images.base import no_report
from hutch.models import SandboxInfo, SandboxState
from hutch.service import capture
from hutch.service.forks import PREFIX
from hutch.service.host import HostService
from hutch.service.layers import Layers
from hutch.service.values import SandboxFilter
from tests.unit.service.dying import dying
from tests.unit.service.world import World, expect, spec
from tests.waiting import until

RUNNING, PAUSED = SandboxState.RUNNING, SandboxState.PAUSED


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


async def run(service: HostService, **fields: Any) -> SandboxInfo:
    info = await service.sandboxes.create(spec(idle=True, **fields), no_report)
    return await service.sandboxes.start(info.id)


async def test_children_of_one_moment(world: World, service: HostService) -> None:
    source = await run(service, name="web", env={"A": "1"})
    forked = await service.forks.fork("web", ["left"], 3)
    assert [child.name for child in forked.children] == ["left", "web-1", "web-2"]
    assert (forked.source, forked.failed) == (source.id, [])
    assert len(world.engine.captured) == 1
    entropies = set()
    for child in forked.children:
        assert (child.state, child.origin, child.env["A"]) == (RUNNING, source.id, "1")
        identity = world.agent(child).identity
        assert (identity["hostname"], identity["generation"]) == (child.name, 2)
        assert not world.agent(child).frozen
        entropies.add(identity["entropy"])
    assert len(entropies) == 3
    # Each has a layer of its own over the one that the source has left.
    disks = [process.spec.drives[1] for process in world.engine.running()]
    assert len({disk.path for disk in disks}) == 4
    assert len({disk.layers for disk in disks[1:]}) == 1
    assert world.engine.frozen_memory(world.engine.captured[0]) == 0
    assert not list(world.settings.runtime_dir.glob(f"{PREFIX}*"))


async def test_forks_of_forks_and_what_they_leave(world: World, service: HostService) -> None:
    await run(service, name="web")
    await service.forks.fork("web", ["child"])
    (grandchild,) = (await service.forks.fork("child", ["grandchild"])).children
    assert len(world.engine.running()[-1].spec.drives[1].layers) == 2
    await service.sandboxes.remove("web", force=True)
    await service.sandboxes.remove("child", force=True)
    assert len(world.layers()) == 3
    await service.sandboxes.stop(grandchild.id)
    await service.sandboxes.start(grandchild.id)
    assert len(world.engine.booted[-1].drives[1].layers) == 2
    await service.sandboxes.remove(grandchild.id, force=True)
    assert world.leftovers() == []


async def test_a_paused_source_stays_paused(world: World, service: HostService) -> None:
    await run(service, name="web")
    await service.sandboxes.pause("web")
    (child,) = (await service.forks.fork("web")).children
    assert child.state is RUNNING
    assert (await service.sandboxes.get("web")).state is PAUSED


async def test_a_child_that_fails_is_undone_alone(world: World, service: HostService) -> None:
    await run(service, name="web")
    start, seen = world.engine.clone, 0

    async def clone(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 2:
            raise error("disk_full", "told to")
        return await start(*args, **kwargs)

    world.engine.clone = clone  # type: ignore[method-assign]
    forked = await service.forks.fork("web", ["a", "b", "c"])
    assert len(forked.children) == 2
    assert [failure.error.code for failure in forked.failed] == ["disk_full"]
    assert len(await service.sandboxes.list(SandboxFilter(all=True))) == 3
    seen = 1
    await expect("disk_full", service.forks.fork("web", ["d"]))
    for left in await service.sandboxes.list(SandboxFilter(all=True)):
        await service.sandboxes.remove(left.id, force=True)
    assert world.leftovers() == []


async def test_what_cannot_be_asked_for(world: World, service: HostService) -> None:
    await run(service, name="web")
    for names, count in (([], 0), (["a", "b"], 1), ([], 100_000)):
        await expect("bad_request", service.forks.fork("web", names, count))
    await expect("name_taken", service.forks.fork("web", ["a", "a"]))
    await expect("name_taken", service.forks.fork("web", ["web"]))
    await expect("bad_name", service.forks.fork("web", ["sb_1"]))
    await service.sandboxes.stop("web")
    await expect("wrong_state", service.forks.fork("web"))
    assert world.engine.captured == []
    world.engine.fail_capture = error("engine_failed", "told to")
    await service.sandboxes.start("web")
    await expect("engine_failed", service.forks.fork("web"))
    assert not world.agent(await service.sandboxes.get("web")).frozen
    # Children that had been begun are gone without a trace.
    (left,) = await service.sandboxes.list(SandboxFilter(all=True))
    await service.sandboxes.remove(left.id, force=True)
    assert world.leftovers() == []


async def test_a_child_that_ends_while_it_waits_for_the_memory(
    world: World, service: HostService
) -> None:
    await run(service, name="web")
    capture, go_on = world.engine.capture, asyncio.Event()

    async def late(*args: Any, **kwargs: Any) -> Any:
        await go_on.wait()
        return await capture(*args, **kwargs)

    world.engine.capture = late  # type: ignore[method-assign]
    async with asyncio.TaskGroup() as tasks:
        forking = tasks.create_task(service.forks.fork("web", ["a", "b", "c"]))
        await until(lambda: len(world.engine.cloned) == 1, what="the first child is begun")
        with contextlib.suppress(HutchError):  # there is nothing left of it to tell about
            await service.sandboxes.kill("a")
        go_on.set()
    forked = forking.result()
    assert [child.name for child in forked.children] == ["b", "c"]
    assert [(it.name, it.error.code) for it in forked.failed] == [("a", "sandbox_died")]
    assert not world.agent(await service.sandboxes.get("web")).frozen
    for left in await service.sandboxes.list(SandboxFilter(all=True)):
        await service.sandboxes.remove(left.id, force=True)
    assert world.leftovers() == []


async def test_no_program_goes_on_from_a_moment_that_is_none_in_the_end(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = await run(service, name="web")

    async def fail(*_: object) -> None:
        # The memory is there, and the child goes as far as it may: to its identity.
        await until(lambda: child() is not None, what="the child has its identity")
        raise error("disk_full", "told to")

    def child() -> FakeAgent | None:
        others = (agent for key, agent in world.agents.items() if key != source.id)
        return next((agent for agent in others if agent.identity), None)

    monkeypatch.setattr(capture.Source, "_copy_logs", fail)
    await expect("disk_full", service.forks.fork("web"))
    ended = child()
    assert ended is not None
    assert ended.frozen
    assert not world.agent(source).frozen
    (left,) = await service.sandboxes.list(SandboxFilter(all=True))
    await service.sandboxes.remove(left.id, force=True)
    assert world.leftovers() == []


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.01, 0.02, 0.04, 0.08])
async def test_a_fork_that_is_cancelled_at_any_moment(
    world: World, service: HostService, delay: float
) -> None:
    info = await run(service, name="web")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(service.forks.fork("web", ["a", "b", "c"]), delay)
    assert not world.agent(info).frozen
    left = await service.sandboxes.list(SandboxFilter(all=True))
    assert len(left) in (1, 4)
    assert len(world.engine.running()) == len(left)
    for each in left:
        await service.sandboxes.remove(each.id, force=True)
    assert world.leftovers() == []


@pytest.mark.parametrize("at", range(12))
async def test_a_daemon_that_dies_at_any_step(world: World, at: int) -> None:
    service = world.service()
    await service.__aenter__()
    await run(service, name="web")
    async with dying(service, at, lambda: service.forks.fork("web", ["a", "b"])):
        async with world.service() as after:
            for info in await after.sandboxes.list(SandboxFilter(all=True)):
                assert info.state is RUNNING, info  # nothing half made
                with contextlib.suppress(HutchError):
                    await after.forks.fork(info.name)
            for info in await after.sandboxes.list(SandboxFilter(all=True)):
                await after.sandboxes.remove(info.id, force=True)
        assert world.leftovers() == []
        assert not list(world.settings.runtime_dir.glob(f"{PREFIX}*"))


async def test_what_nobody_expects_leaves_no_child(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = await run(service, name="web")

    async def fail(layers: Layers, top: str | None) -> int:
        raise OSError(5, "told to")

    with monkeypatch.context() as patch:
        patch.setattr(Layers, "release", fail)
        with pytest.raises(OSError, match="told to"):
            await service.forks.fork("web", ["child"])
    assert [info.id for info in await service.sandboxes.list(SandboxFilter())] == [source.id]
    assert len(world.engine.running()) == 1
    assert not world.agent(source).frozen


async def test_a_disk_that_cannot_be_removed_keeps_no_name(
    service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(service, name="web")

    async def fail(layers: Layers, top: str | None) -> int:
        raise OSError(5, "told to")

    with monkeypatch.context() as patch:
        patch.setattr(Layers, "release", fail)
        with pytest.raises((OSError, HutchError), match="told to"):
            await service.sandboxes.remove("web", force=True)
    assert (await run(service, name="web")).state is RUNNING
