"""A sandbox is put back to a checkpoint, or it is as it was: whatever fails, at whatever step."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hutch.engine.base import ExitKind, MachineExit
from hutch.errors import HutchError, error
from hutch.guest.fake import FakeAgent
from hutch.images.base import no_report
from hutch.models import ExecSpec, SandboxInfo, SandboxState, StopReason
from hutch.service.host import HostService
from tests.unit.service.dying import dying
from tests.unit.service.world import World, expect, output, read_logs, spec
from tests.waiting import until

RUNNING, PAUSED, STOPPED = SandboxState.RUNNING, SandboxState.PAUSED, SandboxState.STOPPED


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


async def run(service: HostService, **fields: Any) -> SandboxInfo:
    info = await service.sandboxes.create(spec(idle=True, **fields), no_report)
    return await service.sandboxes.start(info.id)


def agent(world: World, service: HostService, ref: str) -> FakeAgent:
    """Return the agent in the VM that a sandbox has now."""
    machine = service._registry.find(ref).row.machine
    assert machine is not None
    return world.agents[Path(machine["directory"]).name]


def machines(world: World) -> int:
    return len(world.engine.running())


async def remove_all(service: HostService, *refs: str) -> None:
    for ref in refs:
        await service.sandboxes.remove(ref, force=True)


async def test_the_same_sandbox_of_then(world: World, service: HostService) -> None:
    before = await run(service, name="web", labels={"a": "b"}, timeout=500.0)
    first = agent(world, service, "web")
    taken = await service.checkpoints.create("web", message="clean")
    await service.sandboxes.rename("web", "www")
    info = await service.checkpoints.undo("www")
    assert (info.id, info.name, info.state, info.labels) == (before.id, "www", RUNNING, {"a": "b"})
    assert (info.hostname, info.timeout_at) == (before.hostname, before.timeout_at)
    assert (info.undone_to, info.undone) == (taken.id, [])
    assert info.undone_at is not None
    second = agent(world, service, "www")
    assert second is not first
    assert not second.frozen
    assert second.identity["generation"] == first.identity["generation"] + 1
    assert second.identity["machine_id"] == first.identity["machine_id"]
    assert second.identity["entropy"] != first.identity["entropy"]
    (machine,) = world.engine.running()
    assert machine.record.process.pid == info.pid
    # A layer of its own over the checkpoint's; the one with what was undone is gone.
    assert {machine.spec.drives[1].path, *machine.spec.drives[1].layers} == set(world.layers())
    assert not world.settings.runtime_dir.joinpath(before.id).exists()
    session = await service.execs.start("www", ExecSpec(["echo", "hi"]))
    assert (await output(session))[0] == b"hi\n"
    await session.close(detach=False)
    await remove_all(service, "www")
    assert world.leftovers() == []
    assert not list((world.settings.home / "snapshots").iterdir())


async def test_it_outlives_the_daemon_and_starts_anew(world: World) -> None:
    async with world.service() as service:
        info = await run(service, name="web")
        await service.checkpoints.create("web")
        await service.checkpoints.undo("web")
    async with world.service() as service:
        assert machines(world) == 1
        assert (await service.sandboxes.get("web")).state is RUNNING
        assert [each.number for each in await service.checkpoints.list("web")] == [1]
        assert await service.execs.list("web") == []
        await service.sandboxes.stop("web")
        assert not list(world.settings.runtime_dir.glob("sb_*"))
        await service.sandboxes.start("web")
        assert world.engine.booted[-1].directory.name == info.id
        await remove_all(service, "web")
    assert world.leftovers() == []


async def test_what_was_attached_is_told(service: HostService) -> None:
    await run(service, name="web")
    await service.checkpoints.create("web")
    session = await service.execs.start("web", ExecSpec(["sleep", "1000"]))
    reading = asyncio.ensure_future(output(session))
    await service.checkpoints.undo("web")
    failure = await expect("sandbox_restored", reading)
    assert failure.hint
    await session.close(detach=False)


async def test_one_that_is_paused_or_has_stopped(world: World, service: HostService) -> None:
    info = await run(service, name="web", timeout=500.0)
    await service.checkpoints.create("web")
    await service.sandboxes.pause("web")
    assert (await service.checkpoints.undo("web")).state is RUNNING
    world.end_machine(
        Path(agent(world, service, "web").path).parent.name, MachineExit(ExitKind.PANIC)
    )
    stopped = await service.sandboxes.wait("web", timeout=60)
    assert (stopped.state, machines(world)) == (STOPPED, 0)
    back = await service.checkpoints.undo("web")
    assert (back.state, back.exit, back.ended_at) == (RUNNING, None, None)
    assert back.timeout_at is not None
    assert back.started_at != info.started_at
    assert machines(world) == 1


async def test_one_that_is_parked_is_woken_first(world: World, service: HostService) -> None:
    await run(service, name="web")
    await service.checkpoints.create("web")
    await service.sandboxes.park("web")
    assert (await service.checkpoints.undo("web")).state is RUNNING
    assert machines(world) == 1


async def test_the_log_goes_on_where_it_was(world: World, service: HostService) -> None:
    info = await service.sandboxes.create(spec("cat", name="web", stdin=True), no_report)
    await service.sandboxes.start(info.id)
    (await service.execs.list("web"))
    await service.checkpoints.create("web")
    await service.checkpoints.undo("web")
    session = await service.execs.attach("web", "main")
    await session.write(b"after\n")
    await session.close_stdin()
    await service.sandboxes.wait("web", timeout=60)
    assert await read_logs(service, "web") == b"after\n"
    await session.close(detach=False)


KNOBS = [
    ("fail_clone", error("engine_failed", "told to"), "engine_failed"),
    ("fail_clone", error("engine_failed", "bad", details={"template": True}), "snapshot_damaged"),
    ("program", "fake 2", "snapshot_incompatible"),
]


@pytest.mark.parametrize(("knob", "value", "code"), KNOBS)
async def test_a_failure_leaves_it_as_it_was(
    world: World, service: HostService, knob: str, value: Any, code: str
) -> None:
    await run(service, name="web")
    await service.checkpoints.create("web")
    entry, layers = service._registry.find("web"), world.layers()
    row = entry.row
    setattr(world.engine, knob, value)
    await expect(code, service.checkpoints.undo("web"))
    assert (entry.row.machine, entry.row.layer, entry.info) == (row.machine, row.layer, row.info)
    assert (machines(world), world.layers()) == (1, layers)
    assert entry.boot is None
    assert not entry.turning
    await service.execs.list("web")
    await remove_all(service, "web")
    assert world.leftovers() == []


async def test_a_clone_that_does_not_renew_its_randomness(
    world: World, service: HostService
) -> None:
    await run(service, name="web")
    await service.checkpoints.create("web")
    world.deny_entropy = True
    await expect("boot_failed", service.checkpoints.undo("web"))
    assert machines(world) == 1
    await service.execs.list("web")


async def test_who_kills_it_meanwhile_wins(world: World, service: HostService) -> None:
    await run(service, name="web")
    await service.checkpoints.create("web")
    entry = service._registry.find("web")
    for act in (service.sandboxes.kill, service.sandboxes.stop):
        world.engine.hang_clone = True
        undoing = asyncio.ensure_future(service.checkpoints.undo("web"))
        await until(lambda: len(world.engine.cloned) > 0 and entry.boot is not None)
        assert (await act("web")).state is STOPPED
        await expect("sandbox_died", undoing)
        assert machines(world) == 0
        world.engine.hang_clone = False
        world.engine.cloned.clear()
        await service.checkpoints.undo("web")
        world.engine.cloned.clear()
    await remove_all(service, "web")
    assert world.leftovers() == []


async def test_the_daemon_ends_meanwhile(world: World) -> None:
    async with world.service() as service:
        await run(service, name="web")
        await service.checkpoints.create("web")
        world.engine.hang_clone = True
        undoing = asyncio.ensure_future(service.checkpoints.undo("web"))
        await until(lambda: len(world.engine.cloned) > 0)
    await expect("sandbox_died", undoing)
    world.engine.hang_clone = False
    async with world.service() as service:
        assert machines(world) == 1
        await service.checkpoints.undo("web")
        await remove_all(service, "web")
    assert world.leftovers() == []


async def test_a_commit_that_is_cancelled_is_taken_back(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records have it when the stop comes: then it is as if it had not been begun."""
    await run(service, name="web")
    await service.checkpoints.create("web")
    entry = service._registry.find("web")
    row, store = entry.row, service._parts.store
    really, first = store.put_back, True

    async def late(*args: Any, **fields: Any) -> Any:
        nonlocal first
        result = await really(*args, **fields)
        if first:
            first = False
            assert entry.boot is not None
            entry.boot.cancel()
        return result

    monkeypatch.setattr(store, "put_back", late)
    await expect("sandbox_died", service.checkpoints.undo("web"))
    (kept,) = await store.sandboxes()
    assert (kept.machine, kept.layer, kept.info) == (row.machine, row.layer, row.info)
    assert machines(world) == 1
    await service.execs.list("web")


@pytest.mark.parametrize("stuck", [False, True])
async def test_a_kill_as_it_is_put_on_record(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch, stuck: bool
) -> None:
    """It is taken back; when it cannot be (`stuck`), VM and disk are those that are on record."""
    await run(service, name="web")
    await service.checkpoints.create("web")
    entry = service._registry.find("web")
    before, store = entry.row, service._parts.store
    really = store.put_back
    kills: list[asyncio.Future[SandboxInfo]] = []

    async def late(*args: Any, **fields: Any) -> Any:
        if kills and stuck:
            raise error("disk_full", "told to")
        result = await really(*args, **fields)
        if not kills:
            boot = entry.boot
            assert boot is not None
            kills.append(asyncio.ensure_future(service.sandboxes.kill("web")))
            await until(lambda: boot.cancelling() > 0)
        return result

    monkeypatch.setattr(store, "put_back", late)
    undoing = asyncio.ensure_future(service.checkpoints.undo("web"))
    if stuck:
        await undoing
    else:
        await expect("sandbox_died", undoing)
    assert (await kills[0]).state is STOPPED
    monkeypatch.undo()
    (row,) = await store.sandboxes()
    assert (row.layer, row.info, row.machine) == (entry.row.layer, entry.info, None)
    assert (row.layer == before.layer) is not stuck
    assert row.layer in {path.stem for path in world.layers()}
    assert machines(world) == 0
    await service.sandboxes.start("web")
    await remove_all(service, "web")
    assert world.leftovers() == []


async def test_the_old_one_ends_as_it_is_put_on_record(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(service, name="web")
    await service.checkpoints.create("web")
    entry, store, ends = service._registry.find("web"), service._parts.store, service._lives._ends
    really = store.put_back

    async def late(*args: Any, **fields: Any) -> Any:
        result = await really(*args, **fields)
        assert entry.sandbox is not None
        entry.sandbox.end(StopReason.TIMEOUT, grace=0.5)
        await until(lambda: not any("note" in task.get_name() for task in ends._tasks))
        return result

    monkeypatch.setattr(store, "put_back", late)
    assert (await service.checkpoints.undo("web")).state is RUNNING
    (row,) = await store.sandboxes()
    assert (row, row.info.state, machines(world)) == (entry.row, RUNNING, 1)
    await service.execs.list("web")


@pytest.mark.parametrize("at", range(4))
async def test_a_daemon_that_dies_at_any_step(world: World, at: int) -> None:
    """After each write to the records nothing more happens: the next daemon finds the rest."""
    service = world.service()
    await service.__aenter__()
    info = await run(service, name="web")
    taken = await service.checkpoints.create("web")
    async with dying(service, at, lambda: service.checkpoints.undo("web")) as finished:
        assert not finished
        async with world.service() as after:
            assert (await after.sandboxes.get("web")).state is RUNNING
            assert machines(world) == 1
            assert await after.execs.list("web") == []
            await until(lambda: not agent(world, after, "web").frozen)
            assert [each.snapshot.id for each in await after.checkpoints.list("web")] == [taken.id]
            back = await after.checkpoints.undo("web", to=taken.id)
            assert (back.id, back.state, machines(world)) == (info.id, RUNNING, 1)
            await remove_all(after, "web")
        assert world.leftovers() == []


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.01, 0.02, 0.04])
async def test_who_asked_may_go_away(world: World, service: HostService, delay: float) -> None:
    await run(service, name="web")
    await service.checkpoints.create("web")
    with contextlib.suppress(TimeoutError, HutchError):
        await asyncio.wait_for(service.checkpoints.undo("web"), delay)
    entry = service._registry.find("web")
    async with entry.lock:  # which it has to its end
        pass
    assert (entry.info.state, machines(world)) == (RUNNING, 1)
    await remove_all(service, "web")
    assert world.leftovers() == []


async def test_who_kills_it_before_anything_is_started_wins(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(service, name="web")
    await service.checkpoints.create("web")
    reached = asyncio.Event()

    async def hang(*args: object) -> None:
        reached.set()
        await asyncio.get_running_loop().create_future()

    with monkeypatch.context() as patch:
        patch.setattr(service._lives.records, "catch_up", hang)
        undoing = asyncio.ensure_future(service.checkpoints.undo("web"))
        await reached.wait()
        killing = asyncio.ensure_future(service.sandboxes.kill("web"))
        await expect("sandbox_died", undoing)
        assert (await killing).state is STOPPED
    assert machines(world) == 0


async def test_what_cannot_be_cleared_away_is_left(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(service, name="web")
    await service.checkpoints.create("web")
    refused = []

    async def refuse(*args: object) -> None:
        refused.append(args)
        raise error("engine_failed", "told to")

    with monkeypatch.context() as patch:
        patch.setattr(service._parts.engine, "discard", refuse)
        assert (await service.checkpoints.undo("web")).state is RUNNING
    assert refused
    assert not agent(world, service, "web").frozen
    await service.sandboxes.stop("web")  # for which its end is seen
    assert machines(world) == 0
