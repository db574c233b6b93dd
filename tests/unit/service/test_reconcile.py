"""A daemon's next life: adopt what runs, undo what was half done, remove what is nobody's."""

from typing import Any

import pytest

from hutch.engine.base import ExitKind, MachineExit
from hutch.guest.base import Channel, Output
from hutch.images.base import no_report
from hutch.models import ExecSpec, SandboxInfo, SandboxState, StopReason
from hutch.service.host import DATABASE, HostService
from hutch.service.values import SandboxFilter
from hutch.state.sqlite import SqliteStore
from tests.unit.service.world import World, expect, output, read_logs, spec
from tests.waiting import until

ALL = SandboxFilter(all=True)


async def start(service: HostService, *command: str, **fields: Any) -> SandboxInfo:
    info = await service.sandboxes.create(spec(*command, **fields), no_report)
    return await service.sandboxes.start(info.id)


async def test_a_running_sandbox_goes_on(world: World) -> None:
    async with world.service() as service:
        info = await start(service, name="one")
    assert len(world.engine.running()) == 1
    async with world.service() as service:
        found = await service.sandboxes.get("one")
        assert (found.state, found.pid) == (SandboxState.RUNNING, info.pid)
        session = await service.execs.start("one", ExecSpec(["echo", "still"]))
        assert (await output(session))[0] == b"still\n"
        main = await service.execs.get("one", "main")
        assert main.running
        stopped = await service.sandboxes.stop("one")
        assert stopped.exit is not None
        assert (stopped.exit.reason, stopped.exit.code) == (StopReason.STOPPED, 143)
    assert world.engine.running() == []


async def test_a_daemon_that_stops_all(world: World) -> None:
    async with world.service() as service:
        info = await start(service)
        await service.system.request_stop(stop_sandboxes=True)
    assert world.engine.running() == []
    async with world.service() as service:
        assert (await service.sandboxes.get(info.id)).state is SandboxState.STOPPED


async def test_the_end_of_a_machine_nobody_saw(world: World) -> None:
    async with world.service() as service:
        info = await start(service)
    await world.engine.running()[0].end(MachineExit(ExitKind.CRASHED))
    async with world.service() as service:
        found = await service.sandboxes.get(info.id)
        assert found.state is SandboxState.STOPPED
        assert found.exit is not None
        assert found.exit.reason is StopReason.ENGINE
        assert list(world.settings.runtime_dir.iterdir()) == []
        assert (await service.sandboxes.start(info.id)).state is SandboxState.RUNNING


async def test_the_end_of_a_main_process_nobody_saw(world: World) -> None:
    async with world.service() as service:
        info = await start(service, "sh", "-c", "sleep 0.2; echo late; exit 5", detached=False)
    await until(lambda: world.agent(info).sessions["main"].result)
    async with world.service() as service:
        last = await service.sandboxes.wait(info.id, timeout=60)
        assert last.exit is not None
        assert (last.exit.reason, last.exit.code) == (StopReason.EXITED, 5)
        assert await read_logs(service, info.id) == b"late\n"


async def test_logs_go_on_where_they_ended(world: World) -> None:
    script = "seq 3000; sleep 0.2; seq 3000"
    async with world.service() as service:
        info = await start(service, "sh", "-c", script, detached=False)
        await until(lambda: has_bytes(service, info, 1000))
    await until(lambda: world.agent(info).sessions["main"].result)
    async with world.service() as service:
        await service.sandboxes.wait(info.id, timeout=60)
        once = b"".join(b"%d\n" % number for number in range(1, 3001))
        assert await read_logs(service, info.id) == once * 2


async def has_bytes(service: HostService, info: SandboxInfo, size: int) -> bool:
    return len(await read_logs(service, info.id)) >= size


async def test_a_client_comes_back_to_its_exec(world: World) -> None:
    async with world.service() as service:
        info = await start(service)
        command = ExecSpec(["sh", "-c", "echo one; sleep 0.3; echo two; exit 9"])
        session = await service.execs.start(info.id, command)
        event = await anext(aiter(session))
        assert isinstance(event, Output)
        session.ack(Channel.STDOUT, len(event.data))
    async with world.service() as service:
        session = await service.execs.attach(info.id, session.info.id, {1: 4, 2: 0})
        out, _, outcome = await output(session)
        assert (out, outcome.exit_code) == (b"two\n", 9)


async def test_a_client_comes_back_to_the_main_process(world: World) -> None:
    async with world.service() as service:
        script = "echo one; sleep 1.5; echo two"
        info = await service.sandboxes.create(spec("sh", "-c", script), no_report)
        _, session = await service.sandboxes.start_attached(info.id)
        event = await anext(aiter(session))
        assert isinstance(event, Output)
    async with world.service() as service:
        session = await service.execs.attach(info.id, "main", {1: 2, 2: 0})
        out, _, outcome = await output(session)
        assert (out, outcome.exit_code) == (b"e\ntwo\n", 0)


async def test_a_client_comes_back_after_the_end_of_the_main_process(world: World) -> None:
    async with world.service() as service:
        info = await service.sandboxes.create(
            spec("sh", "-c", "echo one; sleep 1.5; echo two; exit 6"), no_report
        )
        _, session = await service.sandboxes.start_attached(info.id)
        await anext(aiter(session))
    await until(lambda: world.agent(info).sessions["main"].result)
    async with world.service() as service:
        await service.sandboxes.wait(info.id, timeout=60)
        session = await service.execs.attach(info.id, "main", {1: 4, 2: 0})
        out, _, outcome = await output(session)
        assert (out, outcome.exit_code) == (b"two\n", 6)


async def test_an_exec_whose_client_does_not_come_back_is_cancelled(world: World) -> None:
    async with world.service() as service:
        info = await start(service)
        session = await service.execs.start(info.id, ExecSpec(["sleep", "1000"]))
        kept = await service.execs.spawn(info.id, ExecSpec(["sleep", "1000"]))
    async with world.service() as service:
        await until(lambda: session.info.id not in world.agent(info).sessions)
        assert (await service.execs.get(info.id, kept.id)).running
        await expect("exec_not_found", service.execs.attach(info.id, session.info.id))


async def test_the_time_limit_goes_on(world: World) -> None:
    async with world.service() as service:
        info = await start(service, timeout=0.5)
    async with world.service() as service:
        last = await service.sandboxes.wait(info.id, timeout=60)
        assert last.exit is not None
        assert last.exit.reason is StopReason.TIMEOUT


@pytest.mark.parametrize("ran_before", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
async def test_a_start_cut_short_is_undone(world: World, ran_before: bool, recorded: bool) -> None:
    async with world.service() as service:
        info = await service.sandboxes.create(spec(), no_report)
        if ran_before:
            await service.sandboxes.start(info.id)
            await service.sandboxes.stop(info.id)
        await service.sandboxes.start(info.id)
    # As if the daemon had died in the middle: the row says starting, the machine runs.
    store = SqliteStore(world.settings.home / DATABASE)
    await store.open()
    (row,) = await store.sandboxes()
    ended_at = info.created_at if ran_before else None
    await store.move(info.id, [row.info.state], SandboxState.STARTING, pid=None, ended_at=ended_at)
    if not recorded:
        await store.set_machine(info.id, None)
    await store.close()
    async with world.service() as service:
        found = await service.sandboxes.get(info.id)
        assert found.state is (SandboxState.STOPPED if ran_before else SandboxState.CREATED)
        assert world.engine.running() == []
        assert list(world.settings.runtime_dir.iterdir()) == []


async def test_a_removal_cut_short_is_finished(world: World) -> None:
    async with world.service() as service:
        info = await service.sandboxes.create(spec(auto_remove=True), no_report)
        waiting = await service.sandboxes.create(spec(auto_remove=True), no_report)
    store = SqliteStore(world.settings.home / DATABASE)
    await store.open()
    await store.move(info.id, tuple(SandboxState), SandboxState.STOPPED)
    await store.close()
    async with world.service() as service:
        # It was to remove itself when it stopped; the other has not even run.
        assert [found.id for found in await service.sandboxes.list(ALL)] == [waiting.id]
        left = {path.name for path in (world.settings.home / "sandboxes").iterdir()}
        assert left == {waiting.id}


@pytest.mark.parametrize("provisional", [True, False])
async def test_a_run_cut_short_before_its_start(world: World, provisional: bool) -> None:
    async with world.service() as service:
        info = await service.sandboxes.create(spec(provisional=provisional), no_report)
    async with world.service() as service:
        found = await service.sandboxes.list(ALL)
        assert [one.id for one in found] == ([] if provisional else [info.id])
        assert (world.settings.home / "sandboxes" / info.id).exists() is not provisional


async def test_what_has_no_row_is_removed(world: World) -> None:
    async with world.service() as service:
        info = await start(service)
    store = SqliteStore(world.settings.home / DATABASE)
    await store.open()
    await store.remove_sandbox(info.id)
    await store.close()
    async with world.service() as service:
        assert await service.sandboxes.list(ALL) == []
    assert world.leftovers() == []


async def test_a_row_that_cannot_be_mended_harms_no_other(world: World) -> None:
    async with world.service() as service:
        good, bad = await start(service), await start(service)
    store = SqliteStore(world.settings.home / DATABASE)
    await store.open()
    await store.set_machine(bad.id, {"pid": "nonsense"})
    await store.close()
    async with world.service() as service:
        assert (await service.sandboxes.get(good.id)).state is SandboxState.RUNNING
        assert (await service.sandboxes.get(bad.id)).state is SandboxState.STOPPED
