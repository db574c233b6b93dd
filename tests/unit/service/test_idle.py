"""What happens to a sandbox that nobody uses."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from hutch.errors import error
from hutch.images.base import no_report
from hutch.models import ExecSpec, IdleAction, SandboxInfo, SandboxState, StopReason
from hutch.service.host import HostService
from hutch.service.parking import Parking
from tests.unit.service.world import World, expect, output, spec
from tests.waiting import until

LIMIT = 0.2
RESTS = {IdleAction.PAUSE: SandboxState.PAUSED, IdleAction.PARK: SandboxState.PARKED}


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


async def start(service: HostService, action: IdleAction, **fields: Any) -> SandboxInfo:
    request = spec(idle_timeout=LIMIT, idle_action=action, **fields)
    info = await service.sandboxes.create(request, no_report)
    assert (info.idle_timeout, info.idle_action) == (LIMIT, action)
    return await service.sandboxes.start(info.id)


async def reaches(service: HostService, info: SandboxInfo, state: SandboxState) -> None:
    async def there() -> bool:
        return (await service.sandboxes.get(info.id)).state is state

    await until(there, timeout=60, what=f"it is {state}")


@pytest.mark.parametrize("action", RESTS)
async def test_it_rests_again_and_again(service: HostService, action: IdleAction) -> None:
    info = await start(service, action)
    for _ in range(2):
        await reaches(service, info, RESTS[action])
        await service.sandboxes.resume(info.id)
    await reaches(service, info, RESTS[action])


async def test_to_park_may_take_longer_than_it_is_let_idle(
    service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Parking.write

    async def slow(self: Parking, *args: Any) -> Any:
        frozen = await write(self, *args)
        await asyncio.sleep(3 * LIMIT)  # while nobody can use it
        return frozen

    monkeypatch.setattr(Parking, "write", slow)
    info = await start(service, IdleAction.PARK)
    for _ in range(2):
        await reaches(service, info, SandboxState.PARKED)
        await service.sandboxes.resume(info.id)


async def test_it_is_stopped(service: HostService) -> None:
    info = await start(service, IdleAction.STOP)
    info = await service.sandboxes.wait(info.id, timeout=60)
    assert info.exit is not None
    assert (info.exit.reason, info.exit.code) == (StopReason.IDLE, 143)


async def test_the_settings_decide_where_nothing_is_asked_for(world: World) -> None:
    world.settings = replace(world.settings, idle_timeout=LIMIT, idle_action="park")
    async with world.service() as service:
        info = await service.sandboxes.create(spec(), no_report)
        assert (info.idle_timeout, info.idle_action) == (LIMIT, IdleAction.PARK)
        never = await service.sandboxes.create(spec(idle_timeout=0.0), no_report)
        assert never.idle_timeout == 0
        await expect("bad_request", service.sandboxes.create(spec(idle_timeout=-1.0), no_report))


async def still_runs(service: HostService, info: SandboxInfo) -> None:
    """Check that a sandbox is not put to rest for well longer than its limit."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3 * LIMIT):
            await reaches(service, info, SandboxState.PAUSED)
    assert (await service.sandboxes.get(info.id)).state is SandboxState.RUNNING


async def test_a_program_is_a_use(service: HostService) -> None:
    info = await start(service, IdleAction.PAUSE)
    session = await service.execs.start(info.id, ExecSpec(["sleep", "1000"]))
    await still_runs(service, info)
    await session.cancel()
    await output(session)
    await session.close(detach=False)
    await reaches(service, info, SandboxState.PAUSED)


async def test_a_detached_program_is_a_use(service: HostService) -> None:
    info = await start(service, IdleAction.PAUSE)
    program = await service.execs.spawn(info.id, ExecSpec(["sleep", "1000"]))
    await still_runs(service, info)
    await service.execs.signal(info.id, program.id, "KILL")
    await reaches(service, info, SandboxState.PAUSED)


async def test_a_client_is_a_use(service: HostService) -> None:
    info = await start(service, IdleAction.PAUSE)
    session = await service.execs.attach(info.id, "main")
    await still_runs(service, info)
    await session.close(detach=True)
    await reaches(service, info, SandboxState.PAUSED)


async def test_a_program_that_was_left_running_is_a_use(service: HostService) -> None:
    info = await start(service, IdleAction.PAUSE)
    session = await service.execs.start(info.id, ExecSpec(["sleep", "1000"]))
    await session.close(detach=True)
    await still_runs(service, info)
    again = await service.execs.attach(info.id, session.info.id)
    await again.cancel()
    await output(again)
    await again.close(detach=False)
    await reaches(service, info, SandboxState.PAUSED)


async def test_a_client_that_is_lost_is_waited_for(service: HostService) -> None:
    info = await start(service, IdleAction.PAUSE)
    session = await service.execs.start(info.id, ExecSpec(["sleep", "1000"]))
    await session.close(detach=False)  # the grace of 0.2 s, then the program is cancelled
    await reaches(service, info, SandboxState.PAUSED)
    await service.sandboxes.resume(info.id)
    states = {program.id: program for program in await service.execs.list(info.id)}
    assert session.info.id not in states or not states[session.info.id].running


async def test_a_tunnel_and_a_transfer_are_uses(world: World, service: HostService) -> None:
    info = await start(service, IdleAction.PAUSE)
    world.agent(info).services[80] = b"hello"
    tunnel = await service.files.tunnel(info.id, 80)
    await still_runs(service, info)
    await tunnel.close()
    await reaches(service, info, SandboxState.PAUSED)
    files = await service.files.of(info.id)
    end = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"part"
        await end.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(files.write("/file", slowly()))
        await still_runs(service, info)
        end.set()
    await reaches(service, info, SandboxState.PAUSED)


async def test_what_fails_is_tried_again(world: World, service: HostService) -> None:
    world.engine.fail_keep = error("disk_full", "told to")
    info = await start(service, IdleAction.PARK)
    await until(lambda: len(world.engine.kept) >= 2)
    assert (await service.sandboxes.get(info.id)).state is not SandboxState.PARKED
    world.engine.fail_keep = None
    await reaches(service, info, SandboxState.PARKED)


async def test_it_counts_anew_when_the_daemon_comes_back(world: World) -> None:
    async with world.service() as service:
        info = await start(service, IdleAction.PAUSE)
        program = await service.execs.spawn(info.id, ExecSpec(["sleep", "1000"]))
    async with world.service() as service:
        await still_runs(service, info)
        await service.execs.signal(info.id, program.id, "KILL")
        await reaches(service, info, SandboxState.PAUSED)
    async with world.service() as service:
        assert (await service.sandboxes.get(info.id)).state is SandboxState.PAUSED
        await service.sandboxes.resume(info.id)
        await reaches(service, info, SandboxState.PAUSED)
