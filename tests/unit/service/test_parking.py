"""Sandboxes whose memory is on disk: complete or not there, whatever comes in between."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.engine.base import Accelerator, ExitKind, MachineExit
from hutch.errors import error
from hutch.guest import fake
from hutch.guest.fake_files import FakeError
from hutch.images.base import no_report
from hutch.models import ExecSpec, SandboxInfo, SandboxState, StopReason, parse_timestamp
from hutch.service import parking
from hutch.service.flatten import DEEPEST
from hutch.service.host import DATABASE, HostService
from hutch.service.values import SandboxFilter
from hutch.state.sqlite import SqliteStore
from tests.unit.service.world import World, expect, in_time, output, read_logs, spec
from tests.waiting import until

RUNNING, PAUSED, PARKED = SandboxState.RUNNING, SandboxState.PAUSED, SandboxState.PARKED
FULL = error("disk_full", "the disk is full")


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


async def start(service: HostService, *command: str, **fields: Any) -> SandboxInfo:
    info = await service.sandboxes.create(spec(*command, **fields), no_report)
    return await service.sandboxes.start(info.id)


async def parked(service: HostService, **fields: Any) -> SandboxInfo:
    info = await start(service, **fields)
    return await service.sandboxes.park(info.id)


def files(world: World, info: SandboxInfo) -> list[Path]:
    return list((world.settings.home / "sandboxes" / info.id).glob("parked/*"))


async def runs_on(world: World, service: HostService, info: SandboxInfo) -> None:
    """Check that a sandbox runs as if nothing had been, and that nothing is left of a try."""
    assert (await service.sandboxes.get(info.id)).state is RUNNING
    [process] = world.engine.running()
    assert not process.paused
    assert not world.agent(info).frozen
    session = await service.execs.start(info.id, ExecSpec(["echo", "hi"]))
    assert (await output(session))[0] == b"hi\n"
    await session.close(detach=False)
    assert (await service.execs.get(info.id, "main")).running
    assert files(world, info) == []


async def test_park_and_use(world: World, service: HostService) -> None:
    info = await start(service, labels={"k": "v"})
    detached = await service.execs.spawn(info.id, ExecSpec(["sleep", "1000"]))
    first = world.agent(info).identity
    for _ in range(2):
        rests = await service.sandboxes.park(info.id)
        assert (rests.state, rests.pid, rests.labels) == (PARKED, None, {"k": "v"})
    assert world.engine.running() == []
    assert list(world.settings.runtime_dir.iterdir()) == []
    assert world.engine.frozen_memory(world.engine.captured[-1]) == 0
    assert len(files(world, info)) == 3
    assert await service.sandboxes.list(SandboxFilter()) == [rests]
    await read_logs(service, info.id)
    assert world.engine.running() == []
    programs = {program.id: program for program in await service.execs.list(info.id)}
    assert programs[detached.id].running
    await runs_on(world, service, info)
    second = world.agent(info).identity
    assert second["generation"] == first["generation"] + 1
    assert second["entropy"] != first["entropy"]
    [(clone, _)] = world.engine.cloned
    root, disk = world.engine.booted[0].drives
    assert clone.drives[0] == root
    assert list(clone.drives[1].layers) == [disk.path, *disk.layers]
    told = [event.kind async for event in service.system.events(since=0)]
    told = [kind for kind in told if kind in ("sandbox.parked", "sandbox.resumed")]
    assert told == ["sandbox.parked", "sandbox.resumed"]


async def test_many_wake_it_once(world: World, service: HostService) -> None:
    info = await parked(service)
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(service.execs.spawn(info.id, ExecSpec(["true"])))
    assert len(world.engine.cloned) == 1


async def test_a_paused_one_is_parked_too(world: World, service: HostService) -> None:
    info = await start(service)
    await service.sandboxes.pause(info.id)
    assert (await service.sandboxes.park(info.id)).state is PARKED
    await expect("wrong_state", service.sandboxes.pause(info.id))
    assert (await service.sandboxes.resume(info.id)).state is RUNNING
    await runs_on(world, service, info)


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("knob", ["fail_capture", "fail_keep"])
async def test_a_park_that_fails_changes_nothing(
    world: World, service: HostService, knob: str, paused: bool
) -> None:
    info = await start(service)
    if paused:
        await service.sandboxes.pause(info.id)
    setattr(world.engine, knob, FULL)
    await expect("disk_full", service.sandboxes.park(info.id))
    if paused:
        assert (await service.sandboxes.get(info.id)).state is PAUSED
        assert world.engine.running()[0].paused
        await service.sandboxes.resume(info.id)
    await runs_on(world, service, info)
    setattr(world.engine, knob, None)
    assert (await service.sandboxes.park(info.id)).state is PARKED


async def test_programs_that_cannot_be_frozen(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = await start(service)

    def refuse(agent: Any, request: Any) -> Any:
        raise FakeError("timeout", "they do not freeze")

    monkeypatch.setitem(fake._UNARY, "freeze", refuse)
    await expect("guest_timeout", service.sandboxes.park(info.id))
    await runs_on(world, service, info)


async def test_no_room_for_the_record(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = await start(service)
    move = SqliteStore.move

    async def fail(store: Any, ref: str, expected: Any, state: SandboxState, **fields: Any) -> Any:
        if state is PARKED:
            raise FULL
        return await move(store, ref, expected, state, **fields)

    monkeypatch.setattr(SqliteStore, "move", fail)
    await expect("disk_full", service.sandboxes.park(info.id))
    await runs_on(world, service, info)


async def test_a_kill_while_it_is_parked(world: World, service: HostService) -> None:
    info = await start(service)
    world.engine.hang_capture = True
    async with asyncio.TaskGroup() as group:
        parking = group.create_task(service.sandboxes.park(info.id))
        await until(lambda: world.engine.captured)
        parking.cancel()  # whoever asked may go away
        world.engine.hang_capture = False
        await world.engine.running()[0].end(MachineExit(ExitKind.CRASHED))
    info = await service.sandboxes.get(info.id)
    assert info.state is RUNNING  # as the capture still hangs
    await service.__aexit__()
    async with world.service() as after:
        found = await after.sandboxes.get(info.id)
        assert found.exit is not None
        assert found.exit.reason is StopReason.ENGINE
        assert files(world, info) == []


@pytest.mark.parametrize(
    "fault", ["truncated", "gone", "manifest", "other program", "cpu", "vendor", "accelerator"]
)
async def test_a_memory_that_does_not_load(world: World, service: HostService, fault: str) -> None:
    info = await parked(service, name="box")
    cpu = world.engine.cpu
    by_name = {path.name: path for path in files(world, info)}
    kept = {path: path.read_bytes() for path in files(world, info)}
    if fault == "truncated":
        by_name["state"].write_bytes(b"half")
    elif fault == "gone":
        by_name["memory"].unlink()
    elif fault == "manifest":
        by_name[parking.MANIFEST].write_text("{")
    elif fault == "cpu":
        world.engine.cpu = replace(cpu, features=["fpu"])
    elif fault == "vendor":
        world.engine.cpu = replace(cpu, vendor="Another")
    elif fault == "accelerator":
        world.engine.accelerator = Accelerator.KVM
    else:
        world.engine.program = "fake 2"
    failure = await expect("parked_unusable", service.execs.start("box", ExecSpec(["true"])))
    assert "hutch stop box" in str(failure.hint)
    assert fault != "cpu" or "lacks sse2" in failure.message
    assert (await service.sandboxes.get("box")).state is PARKED
    assert world.engine.running() == []
    assert list(world.settings.runtime_dir.iterdir()) == []
    for path, content in kept.items():
        path.write_bytes(content)
    world.engine.program, world.engine.cpu = "fake 1", cpu
    world.engine.accelerator = Accelerator.TCG
    await service.sandboxes.resume("box")
    await runs_on(world, service, info)


async def test_a_clone_that_renews_nothing_is_not_served(
    world: World, service: HostService
) -> None:
    info = await parked(service)
    world.deny_entropy = True
    await expect("parked_unusable", service.sandboxes.resume(info.id))
    assert (await service.sandboxes.get(info.id)).state is PARKED
    assert world.engine.running() == []
    world.deny_entropy = False
    await service.sandboxes.resume(info.id)
    await runs_on(world, service, info)


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_the_end_of_a_parked_one(world: World, service: HostService, end: str) -> None:
    info = await parked(service)
    await expect("wrong_state", service.sandboxes.remove(info.id))
    info = await getattr(service.sandboxes, end)(info.id)
    assert info.state is SandboxState.STOPPED
    assert info.exit is not None
    reason = StopReason.STOPPED if end == "stop" else StopReason.KILLED
    assert (info.exit.reason, info.exit.code) == (reason, 137)
    assert files(world, info) == []
    await service.sandboxes.start(info.id)
    assert len(world.engine.booted) == 2
    await runs_on(world, service, info)


async def test_one_is_stopped_while_it_wakes(world: World, service: HostService) -> None:
    info = await parked(service)
    world.engine.hang_clone = True
    async with asyncio.TaskGroup() as group:
        using = service.execs.start(info.id, ExecSpec(["true"]))
        waking = group.create_task(expect("sandbox_died", using))
        await until(lambda: world.engine.cloned)
        info = await service.sandboxes.stop(info.id)
        await waking
    assert info.state is SandboxState.STOPPED
    assert world.engine.running() == []


async def test_removal_by_force_and_by_itself(world: World, service: HostService) -> None:
    info = await parked(service)
    await service.sandboxes.remove(info.id, force=True)
    info = await parked(service, auto_remove=True)
    await service.sandboxes.stop(info.id)
    assert world.leftovers() == []


async def test_the_time_limit_is_kept_while_it_is_parked(
    world: World, service: HostService
) -> None:
    info = await in_time(lambda limit: parked(service, timeout=limit))
    assert info.timeout_at is not None
    info = await service.sandboxes.wait(info.id, timeout=60)
    assert info.exit is not None
    assert (info.exit.reason, info.exit.code) == (StopReason.TIMEOUT, 124)
    await until(lambda: not files(world, info))


async def test_attached_clients_are_told(service: HostService) -> None:
    info = await start(service)
    session = await service.execs.start(info.id, ExecSpec(["sleep", "1000"]))
    await service.sandboxes.park(info.id)
    failure = await expect("wrong_state", output(session))
    assert "parked" in str(failure)
    await session.close(detach=False)
    attached = await service.execs.attach(info.id, session.info.id)
    await attached.signal("KILL")
    assert (await output(attached))[2].exit_code == 137


# ---- the daemon dies


async def rewrite(world: World, info: SandboxInfo, state: SandboxState) -> None:
    store = SqliteStore(world.settings.home / DATABASE)
    await store.open()
    await store.move(info.id, tuple(SandboxState), state)
    await store.close()


async def test_it_stays_parked(world: World) -> None:
    async with world.service() as service:
        info = await parked(service, labels={"k": "v"}, timeout=100, auto_remove=True)
    async with world.service() as service:
        found = await service.sandboxes.get(info.id)
        assert found == info
        await runs_on(world, service, await service.sandboxes.resume(info.id))


async def test_its_time_runs_out_while_the_daemon_is_away(world: World) -> None:
    async with world.service() as service:
        info = await in_time(lambda limit: parked(service, timeout=limit))
    ends = parse_timestamp(info.timeout_at or "")
    await until(lambda: time.time() > ends, what="its time has run out")
    async with world.service() as service:
        last = await service.sandboxes.wait(info.id, timeout=60)
        assert last.exit is not None
        assert last.exit.reason is StopReason.TIMEOUT


async def test_the_daemon_dies_before_the_record(world: World) -> None:
    """The memory may be complete; the VM stands still, its programs frozen: it goes on."""
    async with world.service() as service:
        info = await start(service)
        directory = world.settings.home / "sandboxes" / info.id / "parked"
    directory.mkdir()
    (directory / parking.MANIFEST).write_text(json.dumps({"format": 1}))
    world.engine.running()[0].paused = True
    world.agent(info).frozen = True
    async with world.service() as service:
        await until(lambda: not world.agent(info).frozen)
        await runs_on(world, service, info)


async def test_the_daemon_dies_before_the_vm_is_ended(world: World) -> None:
    async with world.service() as service:
        info = await start(service)
        row = service._registry.find(info.id).row
        sandbox = service._registry.find(info.id).running()
        await service._lives.parking.write(row, sandbox)
    await rewrite(world, info, PARKED)
    assert len(world.engine.running()) == 1
    async with world.service() as service:
        assert (await service.sandboxes.get(info.id)).state is PARKED
        assert world.engine.running() == []
        await service.sandboxes.resume(info.id)
        await runs_on(world, service, info)


async def test_the_daemon_dies_before_the_clone_runs(world: World) -> None:
    async with world.service() as service:
        info = await parked(service)
    await rewrite(world, info, SandboxState.STARTING)
    async with world.service() as service:
        assert (await service.sandboxes.get(info.id)).state is PARKED
        await service.sandboxes.resume(info.id)
        await runs_on(world, service, info)


async def test_the_daemon_dies_while_the_clone_runs(world: World) -> None:
    """What had begun with the memory wrote to a layer of its own, and is begun anew."""
    async with world.service() as service:
        info = await parked(service)
        before, booter = top(service, info), service._lives.booter
        layer = booter.layers.plan(parent=before)
        await booter.layers._record_and_make(layer, info.disk)
        row = service._registry.find(info.id).row
        spec = booter.machine_spec(row, await booter.recipe(info), layer.id)
        machine = await world.engine.boot(spec)
        await service._parts.store.set_machine(info.id, machine.record.to_json())
    await rewrite(world, info, SandboxState.STARTING)
    async with world.service() as service:
        assert (await service.sandboxes.get(info.id)).state is PARKED
        assert world.engine.running() == []
        assert [path.stem for path in world.layers()] == [before]
        await service.sandboxes.resume(info.id)
        await runs_on(world, service, info)


def top(service: HostService, info: SandboxInfo) -> str:
    layer = service._registry.find(info.id).row.layer
    assert layer is not None
    return layer


async def test_each_attempt_has_a_layer_of_its_own(world: World, service: HostService) -> None:
    info = await parked(service)
    before = top(service, info)
    world.deny_entropy = True
    for _ in range(2):
        await expect("parked_unusable", service.sandboxes.resume(info.id))
        assert top(service, info) == before
        assert [path.stem for path in world.layers()] == [before]
        written = world.engine.cloned[-1][0].drives[1]
        assert written.path.stem != before
        assert before in [path.stem for path in written.layers]
    world.deny_entropy = False
    await service.sandboxes.resume(info.id)
    assert top(service, info) == world.engine.cloned[-1][0].drives[1].path.stem
    assert len(world.layers()) == 2
    await runs_on(world, service, info)


async def test_a_record_that_cannot_be_written_leaves_the_disk(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = await parked(service)
    before = top(service, info)
    with monkeypatch.context() as patched:
        patched.setattr(SqliteStore, "put_back", fails)
        await expect("disk_full", service.sandboxes.resume(info.id))
    assert (await service.sandboxes.get(info.id)).state is PARKED
    assert (top(service, info), world.engine.running()) == (before, [])
    assert [path.stem for path in world.layers()] == [before]
    await service.sandboxes.resume(info.id)
    await runs_on(world, service, info)


async def test_a_record_that_was_written_and_cannot_be_taken_back(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = await parked(service)
    before = top(service, info)
    put_back = SqliteStore.put_back

    async def once(*args: Any, **kwargs: Any) -> None:
        await put_back(*args, **kwargs)
        patched.setattr(SqliteStore, "_change", fails)
        raise FULL

    with monkeypatch.context() as patched:
        patched.setattr(SqliteStore, "put_back", once)
        await expect("disk_full", service.sandboxes.resume(info.id))
    assert (await service.sandboxes.get(info.id)).state is PARKED
    assert (top(service, info), world.engine.running()) == (before, [])
    await service.sandboxes.resume(info.id)
    await runs_on(world, service, info)


async def fails(*args: Any, **kwargs: Any) -> None:
    raise FULL


async def test_layers_do_not_pile_up(world: World, service: HostService) -> None:
    info = await start(service)
    for _ in range(DEEPEST + 3):
        await service.sandboxes.park(info.id)
        await service.sandboxes.resume(info.id)
        assert len(world.layers()) <= DEEPEST + 1
    await runs_on(world, service, info)


async def test_a_memory_that_is_gone(world: World) -> None:
    async with world.service() as service:
        info = await parked(service)
    for path in files(world, info):
        path.unlink()
    async with world.service() as service:
        found = await service.sandboxes.get(info.id)
        assert found.exit is not None
        assert (found.state, found.exit.reason) == (SandboxState.STOPPED, StopReason.ENGINE)
