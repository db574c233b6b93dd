"""A sandbox that is held for its capture: what waits for it, and how it is left."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from hutch.errors import error
from hutch.guest.session import GuestSession
from hutch.images.base import no_report
from hutch.models import SandboxState
from hutch.service.capture import Captures
from hutch.service.host import HostService
from tests.unit.service.world import World, expect, spec
from tests.waiting import until


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        info = await service.sandboxes.create(spec(idle=True, name="web"), no_report)
        await service.sandboxes.start(info.id)
        yield service


def captures(service: HostService) -> Captures:
    return Captures(service._parts, service._lives)


async def test_nobody_pauses_or_removes_it_meanwhile(world: World, service: HostService) -> None:
    entry = service._registry.find("web")
    async with captures(service).hold(entry):
        pausing = asyncio.ensure_future(service.sandboxes.pause("web"))
        _, waiting = await asyncio.wait({pausing}, timeout=0.05)
        assert waiting
        assert entry.info.state is SandboxState.RUNNING
    assert (await pausing).state is SandboxState.PAUSED
    await service.sandboxes.remove("web", force=True)
    with pytest.raises(Exception, match="removed"):
        async with captures(service).hold(entry):
            pass


async def test_a_parked_one_is_woken(service: HostService) -> None:
    await service.sandboxes.park("web")
    async with captures(service).hold(service._registry.find("web")) as source:
        assert source.alive


async def test_logs_of_the_moment_come_along(world: World, service: HostService) -> None:
    logs = world.settings.home / "sandboxes" / service._registry.find("web").info.id / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "main.000001.log").write_bytes(b"old")
    (logs / "main.000002.log").write_bytes(b"new")
    target = world.settings.home / "copy"
    async with captures(service).hold(service._registry.find("web")) as source:
        point = await source.capture(world.settings.runtime_dir / "x", logs=target)
    (logs / "main.000002.log").write_bytes(b"newer")
    assert (target / "main.000001.log").samefile(logs / "main.000001.log")
    assert (target / "main.000002.log").read_bytes() == b"new"
    assert point.seconds > 0
    await world.engine.drop(point.frozen)


async def test_an_agent_that_does_not_thaw_is_asked_again(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    thaw, calls = GuestSession.thaw, [0]

    async def fail(self: GuestSession) -> None:
        calls[0] += 1
        if calls[0] == 1:
            raise error("guest_timeout", "told to")
        await thaw(self)

    monkeypatch.setattr(GuestSession, "thaw", fail)
    await service.snapshots.create("web")
    agent = world.agent(await service.sandboxes.get("web"))
    await until(lambda: not agent.frozen)


async def test_a_machine_that_dies_meanwhile(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(self: GuestSession, timeout: float = 0.1) -> None:
        await service._registry.find("web").running().machine.kill()
        raise error("sandbox_died", "told to")

    monkeypatch.setattr(GuestSession, "freeze", die)
    await expect("sandbox_died", service.snapshots.create("web"))
    await service.sandboxes.wait("web")
    assert list(await service.snapshots.list()) == []
