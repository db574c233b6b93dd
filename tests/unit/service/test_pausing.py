"""Sandboxes that stand still: who may pause and wake them, and what every failure leaves."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hutch.engine.base import ExitKind, MachineExit
from hutch.engine.fake_machine import FakeMachine
from hutch.errors import error
from hutch.images.base import no_report
from hutch.models import ExecSpec, SandboxInfo, SandboxState, StopReason
from hutch.service import sandbox as sandbox_module
from hutch.service.host import DATABASE, HostService
from hutch.service.values import SandboxFilter
from hutch.state.sqlite import SqliteStore
from tests.unit.service.world import World, expect, in_time, output, read_logs, spec
from tests.waiting import until

PAUSED, RUNNING, STOPPED = SandboxState.PAUSED, SandboxState.RUNNING, SandboxState.STOPPED


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


async def start(service: HostService, *command: str, **fields: Any) -> SandboxInfo:
    info = await service.sandboxes.create(spec(*command, **fields), no_report)
    return await service.sandboxes.start(info.id)


def stands_still(world: World) -> bool:
    [process] = world.engine.running()
    return process.paused


async def kinds(service: HostService) -> list[str]:
    return [event.kind async for event in service.system.events(since=0)]


async def test_pause_and_resume(world: World, service: HostService) -> None:
    info = await start(service)
    for _ in range(2):
        info = await service.sandboxes.pause(info.id)
        assert info.state is PAUSED
        assert info.pid is not None
        assert stands_still(world)
    world.agent(info).clock_error_ns = -2_000_000_000
    for _ in range(2):
        info = await service.sandboxes.resume(info.id)
        assert info.state is RUNNING
        assert not stands_still(world)
    assert world.agent(info).clock_error_ns == 0
    told = await kinds(service)
    assert told.count("sandbox.paused") == told.count("sandbox.resumed") == 1


async def test_only_what_runs_can_be_paused(service: HostService) -> None:
    info = await service.sandboxes.create(spec(), no_report)
    for act in (service.sandboxes.pause, service.sandboxes.resume, service.sandboxes.park):
        failure = await expect("wrong_state", act(info.id))
        assert "hutch start" in str(failure.hint)


async def test_use_wakes_it_and_a_look_does_not(world: World, service: HostService) -> None:
    info = await start(service)

    async def run() -> None:
        session = await service.execs.start(info.id, ExecSpec(["echo", "hi"]))
        assert (await output(session))[0] == b"hi\n"
        await session.close(detach=False)

    async def attach() -> None:
        await (await service.execs.attach(info.id, "main")).close(detach=True)

    async def files() -> None:
        await (await service.files.of(info.id)).stat("/")

    async def tunnel() -> None:
        world.agent(info).services[80] = b"hello"
        await (await service.files.tunnel(info.id, 80)).close()

    async def top() -> None:
        assert await service.sandboxes.processes(info.id)

    async def signal() -> None:
        await service.sandboxes.kill(info.id, signal="CONT")

    for use in (run, attach, files, tunnel, top, signal, lambda: service.sandboxes.start(info.id)):
        await service.sandboxes.pause(info.id)
        await service.sandboxes.get(info.id)
        assert len(await service.sandboxes.list(SandboxFilter())) == 1
        await service.sandboxes.rename(info.id, f"name-{stands_still(world)}")
        await service.sandboxes.rename(info.id, "again")
        await read_logs(service, info.id)
        assert stands_still(world)
        await use()
        assert not stands_still(world)


async def test_many_wake_it_once(service: HostService) -> None:
    info = await start(service)
    await service.sandboxes.pause(info.id)
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(service.execs.spawn(info.id, ExecSpec(["true"])))
    assert (await kinds(service)).count("sandbox.resumed") == 1


async def test_an_exec_that_comes_while_it_is_being_paused(
    service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = await start(service)
    begun, go = asyncio.Event(), asyncio.Event()
    pause = FakeMachine.pause

    async def slowly(machine: FakeMachine) -> None:
        begun.set()
        await go.wait()
        await pause(machine)

    monkeypatch.setattr(FakeMachine, "pause", slowly)
    async with asyncio.TaskGroup() as group:
        group.create_task(service.sandboxes.pause(info.id))
        await begun.wait()
        program = group.create_task(service.execs.start(info.id, ExecSpec(["echo", "hi"])))
        await asyncio.sleep(0)
        go.set()
    assert (await output(program.result()))[0] == b"hi\n"


async def test_a_pause_that_fails_leaves_it_running(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = await start(service)

    async def fail(machine: FakeMachine) -> None:
        raise error("engine_failed", "told to")

    with monkeypatch.context() as patch:
        patch.setattr(FakeMachine, "pause", fail)
        await expect("engine_failed", service.sandboxes.pause(info.id))
    assert (await service.sandboxes.get(info.id)).state is RUNNING
    await service.execs.spawn(info.id, ExecSpec(["true"]))
    await service.sandboxes.pause(info.id)
    with monkeypatch.context() as patch:
        patch.setattr(FakeMachine, "resume", fail)
        await expect("engine_failed", service.sandboxes.resume(info.id))
    assert (await service.sandboxes.get(info.id)).state is PAUSED
    assert (await service.sandboxes.resume(info.id)).state is RUNNING


async def test_who_asked_may_go_away(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = await start(service)
    begun, go = asyncio.Event(), asyncio.Event()
    pause = FakeMachine.pause

    async def slowly(machine: FakeMachine) -> None:
        begun.set()
        await go.wait()
        await pause(machine)

    monkeypatch.setattr(FakeMachine, "pause", slowly)
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(service.sandboxes.pause(info.id))
        await begun.wait()
        asked.cancel()
    go.set()
    await until(lambda: stands_still(world))
    assert (await service.sandboxes.resume(info.id)).state is RUNNING


async def test_a_graceful_stop_wakes_it_and_a_kill_does_not(
    world: World, service: HostService
) -> None:
    info = await start(service)
    await service.sandboxes.pause(info.id)
    await expect("wrong_state", service.sandboxes.remove(info.id))
    info = await service.sandboxes.stop(info.id)
    assert info.exit is not None
    assert (info.exit.reason, info.exit.code) == (StopReason.STOPPED, 143)
    await service.sandboxes.start(info.id)
    await service.sandboxes.pause(info.id)
    info = await service.sandboxes.kill(info.id)
    assert info.exit is not None
    assert (info.exit.reason, info.exit.code) == (StopReason.KILLED, 137)
    await service.sandboxes.start(info.id)
    await service.sandboxes.pause(info.id)
    await service.sandboxes.remove(info.id, force=True)
    assert world.leftovers() == []


async def test_a_machine_that_dies_while_it_is_paused(world: World, service: HostService) -> None:
    info = await start(service)
    await service.sandboxes.pause(info.id)
    world.end_machine(info.id, MachineExit(ExitKind.CRASHED))
    info = await service.sandboxes.wait(info.id, timeout=60)
    assert info.exit is not None
    assert (info.state, info.exit.reason) == (STOPPED, StopReason.ENGINE)


async def test_the_time_limit_is_kept_while_it_is_paused(service: HostService) -> None:
    async def paused(limit: float) -> SandboxInfo:
        info = await start(service, timeout=limit)
        return await service.sandboxes.pause(info.id)

    info = await in_time(paused)
    assert info.timeout_at is not None
    info = await service.sandboxes.wait(info.id, timeout=60)
    assert info.exit is not None
    assert (info.exit.reason, info.exit.code) == (StopReason.TIMEOUT, 124)


async def test_a_paused_sandbox_is_waited_for(service: HostService) -> None:
    info = await start(service)
    await service.sandboxes.pause(info.id)
    await expect("guest_timeout", service.sandboxes.wait(info.id, timeout=0.1))
    assert (await service.sandboxes.get(info.id)).state is PAUSED


async def test_it_stays_paused_when_the_daemon_comes_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else a connection would be tried, and lost, until the sandbox is given up.
    monkeypatch.setattr(sandbox_module, "GUEST_TIMEOUT", 0.05)
    async with world.service() as service:
        info = await start(service, labels={"k": "v"})
        await service.sandboxes.pause(info.id)
    async with world.service() as service:
        found = await service.sandboxes.get(info.id)
        assert (found.state, found.labels) == (PAUSED, {"k": "v"})
        assert stands_still(world)
        await read_logs(service, info.id)
        session = await service.execs.start(info.id, ExecSpec(["echo", "hi"]))
        assert (await output(session))[0] == b"hi\n"
        assert (await service.execs.get(info.id, "main")).running


async def test_paused_on_record_but_not_in_fact(world: World) -> None:
    """A daemon died between the record and the act."""
    async with world.service() as service:
        info = await start(service)
    store = SqliteStore(world.settings.home / DATABASE)
    await store.open()
    await store.move(info.id, (RUNNING,), PAUSED)
    await store.close()
    async with world.service() as service:
        assert (await service.sandboxes.get(info.id)).state is PAUSED
        assert stands_still(world)


async def test_a_machine_left_stopped_and_frozen_goes_on(world: World) -> None:
    """A daemon died in the middle of a capture."""
    async with world.service() as service:
        info = await start(service)
    world.engine.running()[0].paused = True
    world.agent(info).frozen = True
    async with world.service() as service:
        assert (await service.sandboxes.get(info.id)).state is RUNNING
        assert not stands_still(world)
        await until(lambda: not world.agent(info).frozen)
        await service.execs.spawn(info.id, ExecSpec(["true"]))


async def test_a_machine_that_the_engine_has_stopped_goes_on_when_asked_to(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU stops a VM that it cannot write for."""
    monkeypatch.setattr(sandbox_module, "SYNC_TIMEOUT", 0.1)
    info = await start(service)
    world.engine.running()[0].paused = True
    world.agent(info).silent = True
    resume = FakeMachine.resume

    async def answers_again(machine: FakeMachine) -> None:
        world.agent(info).silent = False
        await resume(machine)

    monkeypatch.setattr(FakeMachine, "resume", answers_again)
    failure = await expect("disk_full", service.sandboxes.park(info.id))
    assert "hutch resume" in str(failure.hint)
    world.engine.running()[0].paused = True
    assert (await service.sandboxes.resume(info.id)).state is RUNNING
    assert not stands_still(world)


async def test_no_room_for_the_record(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = await start(service)

    async def fail(store: Any, *args: Any, **fields: Any) -> Any:
        raise error("disk_full", "told to")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "move", fail)
        await expect("disk_full", service.sandboxes.pause(info.id))
    assert not stands_still(world)
    assert (await service.sandboxes.pause(info.id)).state is PAUSED
    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "move", fail)
        await expect("disk_full", service.sandboxes.resume(info.id))
    assert stands_still(world)
    assert (await service.sandboxes.get(info.id)).state is PAUSED
    assert (await service.sandboxes.resume(info.id)).state is RUNNING
    await service.execs.spawn(info.id, ExecSpec(["true"]))
