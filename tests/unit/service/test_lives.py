"""A sandbox from its making to its removal, and what every failure on the way leaves: nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hutch.engine.base import ExitKind, Machine, MachineExit, MachineSpec
from hutch.errors import HutchError, error
from hutch.guest.session import GuestSession
from hutch.images.base import no_report
from hutch.models import ExecSpec, ExitStatus, Removed, SandboxState, StopReason
from hutch.service.host import DATABASE, HostService
from hutch.service.values import SandboxFilter
from hutch.settings import Settings
from hutch.state.sqlite import SqliteStore
from tests.unit.service.world import World, expect, output, spec
from tests.waiting import until


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


async def test_create_start_exec_stop_remove(world: World, service: HostService) -> None:
    info = await service.sandboxes.create(spec(name="one"), no_report)
    assert (info.name, info.state) == ("one", SandboxState.CREATED)
    info = await service.sandboxes.start("one")
    assert info.state is SandboxState.RUNNING
    assert info.pid is not None
    assert info.machine == "microvm"
    session = await service.execs.start(
        "one", ExecSpec(["sh", "-c", "echo hi; echo no >&2; exit 3"])
    )
    out, err, outcome = await output(session)
    assert (out, err, outcome.exit_code) == (b"hi\n", b"no\n", 3)
    await session.close(detach=False)
    info = await service.sandboxes.stop("one")
    assert info.state is SandboxState.STOPPED
    assert info.exit is not None
    assert info.exit.reason is StopReason.STOPPED
    assert info.exit.code == 143
    assert world.engine.running() == []
    removed = await service.sandboxes.remove("one")
    assert removed.removed == [info.id]
    assert world.leftovers() == []
    with pytest.raises(HutchError, match="no sandbox one"):
        await service.sandboxes.get("one")


async def test_main_process_ends_the_sandbox_with_its_code(
    world: World, service: HostService
) -> None:
    info = await service.sandboxes.create(spec("sh", "-c", "echo bye; exit 7"), no_report)
    _, session = await service.sandboxes.start_attached(info.id)
    out, _, outcome = await output(session)
    assert (out, outcome.exit_code) == (b"bye\n", 7)
    await session.close(detach=False)
    info = await service.sandboxes.wait(info.id, timeout=60)
    assert info.exit is not None
    assert (info.exit.reason, info.exit.code) == (StopReason.EXITED, 7)


async def test_auto_remove_tells_its_waiters_the_last_state(
    world: World, service: HostService
) -> None:
    info = await service.sandboxes.create(spec("true", auto_remove=True), no_report)
    _, session = await service.sandboxes.start_attached(info.id)
    await output(session)
    last = await service.sandboxes.wait(info.id, timeout=60)
    assert last.exit is not None
    assert last.exit.code == 0
    assert world.leftovers() == []
    assert (await service.sandboxes.wait(info.name, timeout=60)).id == info.id


async def test_what_is_done_and_removed_is_not_asked_to_power_off(
    world: World, service: HostService
) -> None:
    world.obeys_shutdown = False
    info = await service.sandboxes.create(spec("false", auto_remove=True), no_report)
    await service.sandboxes.start(info.id)
    last = await service.sandboxes.wait(info.id, timeout=60)
    assert last.exit == ExitStatus(StopReason.EXITED, 1, None)
    assert world.leftovers() == []


async def test_start_after_stop_keeps_the_disk(world: World, service: HostService) -> None:
    info = await service.sandboxes.create(spec(), no_report)
    await service.sandboxes.start(info.id)
    (disk,) = world.layers()
    before = disk.stat().st_ino
    await service.sandboxes.restart(info.id)
    assert (await service.sandboxes.get(info.id)).state is SandboxState.RUNNING
    assert disk.stat().st_ino == before
    assert world.agent(info).identity["generation"] == 2


async def test_unknown_command_fails_the_start(world: World, service: HostService) -> None:
    info = await service.sandboxes.create(spec("nonsense"), no_report)
    with pytest.raises(HutchError) as caught:
        await service.sandboxes.start(info.id)
    assert caught.value.code == "command_not_found"
    info = await service.sandboxes.get(info.id)
    assert info.state is SandboxState.FAILED
    assert info.error is not None
    assert info.error.code == "command_not_found"
    assert world.engine.running() == []
    assert list(world.settings.runtime_dir.iterdir()) == []


async def test_two_starts_at_once_make_one_machine(world: World, service: HostService) -> None:
    info = await service.sandboxes.create(spec(), no_report)
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(service.sandboxes.start(info.id))
    assert len(world.engine.running()) == 1


async def test_stop_while_it_starts(world: World, service: HostService) -> None:
    world.engine.hang_boot = True
    info = await service.sandboxes.create(spec(), no_report)
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(expect("sandbox_died", service.sandboxes.start(info.id)))
        await until(lambda: world.engine.booted)
        stopped = await service.sandboxes.stop(info.id)
        await starting
    assert stopped.state is SandboxState.CREATED
    assert world.engine.running() == []


@pytest.mark.parametrize("silent", [True, False])
async def test_remove_by_force_while_it_starts(
    world: World, service: HostService, silent: bool
) -> None:
    world.engine.hang_boot, world.silent = not silent, silent
    info = await service.sandboxes.create(spec(), no_report)
    async with asyncio.TaskGroup() as group:
        group.create_task(expect("sandbox_died", service.sandboxes.start(info.id)))
        await until(lambda: world.engine.booted)
        await expect("wrong_state", service.sandboxes.remove(info.id))
        await service.sandboxes.remove(info.id, force=True)
    assert world.leftovers() == []


async def test_removals_at_once(world: World, service: HostService) -> None:
    info = await service.sandboxes.create(spec(), no_report)
    removals = [service.sandboxes.remove(info.id) for _ in range(3)]
    first, *others = await asyncio.gather(*removals, return_exceptions=True)
    assert isinstance(first, Removed)
    for other in others:
        assert isinstance(other, HutchError)
        assert other.code == "sandbox_not_found"
    assert world.leftovers() == []


async def test_remove_by_force_while_it_stops(world: World, service: HostService) -> None:
    world.obeys_shutdown, world.engine.deaf = False, True
    info = await service.sandboxes.create(spec(), no_report)
    await service.sandboxes.start(info.id)
    async with asyncio.TaskGroup() as group:
        stopping = group.create_task(service.sandboxes.stop(info.id, timeout=60))
        await until(lambda: world.agent(info).sessions["main"].result)
        await service.sandboxes.remove(info.id, force=True)
        last = await stopping
    assert last.exit is not None
    assert last.exit.reason is StopReason.KILLED
    assert world.leftovers() == []


async def test_a_cancelled_start_leaves_the_sandbox_as_it_was(
    world: World, service: HostService
) -> None:
    world.silent = True
    info = await service.sandboxes.create(spec(), no_report)
    start = asyncio.timeout(None)
    with pytest.raises(TimeoutError):
        async with start:
            await asyncio.wait_for(service.sandboxes.start(info.id), 0.2)
    assert (await service.sandboxes.get(info.id)).state is SandboxState.CREATED
    assert world.engine.running() == []


@pytest.mark.usefixtures("hurried")
async def test_a_guest_that_never_answers(world: World, service: HostService) -> None:
    world.silent = True
    info = await service.sandboxes.create(spec(name="mute"), no_report)
    with pytest.raises(HutchError) as caught:
        await service.sandboxes.start(info.id)
    assert caught.value.code == "boot_failed"
    assert "hutch logs --boot mute" in str(caught.value)
    assert [s.machine.value for s in world.engine.booted] == ["microvm", "microvm", "q35"]
    assert world.engine.running() == []


async def test_the_last_board_boots(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = world.engine.boot

    async def dies(asked: MachineSpec) -> Machine:
        first_two = len(world.engine.booted) < 2
        world.silent, world.engine.die_after = first_two, 0.01 if first_two else None
        return await boot(asked)

    monkeypatch.setattr(world.engine, "boot", dies)
    info = await service.sandboxes.create(spec(), no_report)
    info = await service.sandboxes.start(info.id)
    assert [asked.machine.value for asked in world.engine.booted] == ["microvm", "microvm", "q35"]
    assert info.machine == "q35"


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (MachineExit(ExitKind.PANIC), StopReason.PANIC),
        (MachineExit(ExitKind.REBOOT), StopReason.REBOOT),
        (MachineExit(ExitKind.POWEROFF), StopReason.POWEROFF),
        (MachineExit(ExitKind.CRASHED, "SIGSEGV"), StopReason.ENGINE),
    ],
)
async def test_a_machine_that_ends_by_itself(
    world: World, service: HostService, end: MachineExit, reason: StopReason
) -> None:
    info = await service.sandboxes.create(spec(), no_report)
    _, session = await service.sandboxes.start_attached(info.id)
    world.end_machine(info.id, end)
    with pytest.raises(HutchError) as caught:
        await output(session)
    assert caught.value.code == "sandbox_died"
    info = await service.sandboxes.wait(info.id, timeout=60)
    assert info.state is SandboxState.STOPPED
    assert info.exit is not None
    assert info.exit.reason is reason
    assert list(world.settings.runtime_dir.iterdir()) == []


async def test_kill_gives_137_to_everyone(world: World, service: HostService) -> None:
    info = await service.sandboxes.create(spec(), no_report)
    _, main = await service.sandboxes.start_attached(info.id)
    other = await service.execs.start(info.id, ExecSpec(["sleep", "1000"]))
    info = await service.sandboxes.kill(info.id)
    assert info.exit is not None
    assert (info.exit.reason, info.exit.code) == (StopReason.KILLED, 137)
    for session in (main, other):
        _, _, outcome = await output(session)
        assert outcome.exit_code == 137


async def test_time_limit(world: World, service: HostService) -> None:
    info = await service.sandboxes.create(spec(timeout=0.1), no_report)
    await service.sandboxes.start(info.id)
    info = await service.sandboxes.wait(info.id, timeout=60)
    assert info.exit is not None
    assert (info.exit.reason, info.exit.code) == (StopReason.TIMEOUT, 124)


async def test_names_collide(world: World, service: HostService) -> None:
    await service.sandboxes.create(spec(name="one"), no_report)
    await expect("name_taken", service.sandboxes.create(spec(name="one"), no_report))
    other = await service.sandboxes.create(spec(), no_report)
    await expect("name_taken", service.sandboxes.rename(other.id, "one"))
    assert (await service.sandboxes.rename(other.id, "two")).name == "two"
    assert world.images.asked == ["busybox", "busybox"]


@pytest.mark.parametrize("where", ["images", "kernels", "boot", "base disk"])
async def test_a_failing_step_leaves_nothing(
    world: World, service: HostService, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = error("disk_full", "the disk is full")
    if where == "boot":
        world.engine.fail_boot = failure
    elif where == "base disk":
        monkeypatch.setattr(world.engine, "create_disk", raiser(failure))
    else:
        getattr(world, where).fail = failure

    async def run() -> None:
        info = await service.sandboxes.create(spec(auto_remove=True), no_report)
        await service.sandboxes.start(info.id)

    await expect("disk_full", run())
    assert world.leftovers() == []
    assert len(service.sandboxes._registry) == 0


def raiser(failure: HutchError) -> Any:
    def fail(*args: object) -> None:
        raise failure

    return fail


class FlakyStore:
    """A store whose call number `at` fails; with `dead` all later ones as well."""

    def __init__(self, store: SqliteStore, at: int, *, dead: bool) -> None:
        self._store, self._at, self._dead = store, at, dead
        self.calls = 0

    @property
    def failed(self) -> bool:
        return self.calls >= self._at

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self._at or (self._dead and self.failed):
                raise error("disk_full", "the disk is full")
            return await method(*args, **kwargs)

        looking = name in ("open", "close", "sandboxes", "members", "pools", "layers", "snapshots")
        return method if looking else call


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("auto_remove", [False, True])
async def test_records_that_fail_at_each_step(
    world: World, settings: Settings, dead: bool, auto_remove: bool
) -> None:
    for at in range(1, 20):
        store = FlakyStore(SqliteStore(settings.home / DATABASE), at, dead=dead)
        async with world.service(store=store) as service:
            with contextlib.suppress(HutchError):
                info = await service.sandboxes.create(spec(auto_remove=auto_remove), no_report)
                await service.sandboxes.start(info.id)
                await service.sandboxes.stop(info.id)
                await service.sandboxes.remove(info.id)
            assert world.engine.running() == [], f"call {at}"
        # The daemon's next life finds nothing that it cannot mend and remove.
        async with world.service() as service:
            for left in await service.sandboxes.list(SandboxFilter(all=True)):
                assert not left.state.has_machine, f"call {at}"
                await service.sandboxes.remove(left.id)
        assert world.leftovers() == [], f"call {at}"
        if not store.failed:
            return
    raise AssertionError("there is no end of calls")


@pytest.mark.parametrize(
    "step", ["mount_root", "mount_overlay", "identify", "start_exec", "list_execs", "shutdown"]
)
@pytest.mark.parametrize("code", ["guest_failed", "guest_timeout", "sandbox_died"])
async def test_a_guest_that_fails_at_each_step(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str, code: str
) -> None:
    async def fail(self: object, *args: object, **kwargs: object) -> None:
        raise error(code, f"{step} failed")

    monkeypatch.setattr(GuestSession, step, fail)
    async with world.service() as service:
        info = await service.sandboxes.create(spec(), no_report)
        with contextlib.suppress(HutchError):
            await service.sandboxes.start(info.id)
        await service.sandboxes.stop(info.id)
        assert world.engine.running() == []
        await service.sandboxes.remove(info.id)
        assert world.leftovers() == []


async def test_the_daemon_ends_while_sandboxes_are_made(world: World) -> None:
    world.engine.hang_boot = True
    async with world.service() as service:
        info = await service.sandboxes.create(spec(), no_report)
        async with asyncio.TaskGroup() as group:
            group.create_task(expect("sandbox_died", service.sandboxes.start(info.id)))
            await until(lambda: world.engine.booted)
            await service._lives.close(stop_sandboxes=False)
        await expect("daemon_unreachable", service.sandboxes.start(info.id))
        await expect("daemon_unreachable", service.sandboxes.create(spec(), no_report))
    async with world.service() as service:
        assert (await service.sandboxes.get(info.id)).state is SandboxState.CREATED


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1])
async def test_a_run_that_is_cancelled_at_any_moment(
    world: World, service: HostService, delay: float
) -> None:
    async def run() -> None:
        info = await service.sandboxes.create(spec(auto_remove=True), no_report)
        await service.sandboxes.start(info.id)

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(run(), delay)
    for left in await service.sandboxes.list(SandboxFilter(all=True)):
        assert left.state in (SandboxState.CREATED, SandboxState.RUNNING)
        if left.state is SandboxState.CREATED:
            assert world.engine.running() == []
        await service.sandboxes.remove(left.id, force=True)
    assert world.leftovers() == []
