"""The QEMU engine against processes that do everything wrong that a QEMU process can."""

import asyncio
import dataclasses
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hutch.engine.base import ExitKind, Frozen, MachineSpec
from hutch.engine.qemu import QemuEngine
from hutch.errors import EngineError, Missing, NoCapacity
from hutch.settings import load_settings
from tests.unit.descriptors import descriptors
from tests.unit.engine.conftest import NewStandIn
from tests.waiting import until

NewSpec = Callable[[str], MachineSpec]


@pytest.fixture(autouse=True)
def nothing_left() -> object:
    """Check that a test leaves neither a process nor a descriptor."""
    before, fds = children_of_self(), descriptors()
    yield
    assert children_of_self() == before
    assert descriptors() <= fds


def children_of_self() -> set[int]:
    """Return the processes, zombies included, whose parent is this one."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_bytes()
            except OSError:
                continue
            if int(stat.rpartition(b")")[2].split()[1]) == os.getpid():
                found.add(int(entry))
    return found


async def test_qemu_is_not_installed(new_spec: NewSpec) -> None:
    engine = QemuEngine(load_settings({"qemu": "no-such-qemu"}))
    with pytest.raises(Missing) as caught:
        await engine.boot(new_spec("a"))
    assert caught.value.code == "engine_missing"
    assert "apt-get install" in (caught.value.hint or "")


async def test_qemu_that_exits_at_once_says_why(new_spec: NewSpec, stand_in: NewStandIn) -> None:
    with pytest.raises(EngineError) as caught:
        await QemuEngine(stand_in("exit")).boot(new_spec("a"))
    assert "exit code 3" in caught.value.message
    assert "no such machine" in caught.value.message
    assert "no peer" not in caught.value.message
    assert not new_spec("a").directory.exists()


async def test_qemu_that_never_answers_is_given_up(new_spec: NewSpec, stand_in: NewStandIn) -> None:
    with pytest.raises(EngineError, match=r"within 0\.5 s"):
        await QemuEngine(stand_in("mute"), handshake_timeout=0.5).boot(new_spec("a"))
    assert not new_spec("a").directory.exists()


@pytest.mark.parametrize("mode", ["nonsense", "refuse"])
async def test_qemu_that_talks_wrongly_is_given_up(
    new_spec: NewSpec, stand_in: NewStandIn, mode: str
) -> None:
    with pytest.raises(EngineError) as caught:
        await QemuEngine(stand_in(mode)).boot(new_spec("a"))
    assert caught.value.code == "engine_failed"


async def test_qemu_that_cannot_be_executed(new_spec: NewSpec, short_tmp: Path) -> None:
    program = short_tmp / "qemu"
    program.write_text("neither script nor binary")
    program.chmod(0o755)
    with pytest.raises(EngineError, match="cannot be run"):
        await QemuEngine(load_settings({"qemu": str(program)})).boot(new_spec("a"))


async def test_killed_during_the_boot(new_spec: NewSpec, stand_in: NewStandIn) -> None:
    engine = QemuEngine(stand_in("mute"))
    before = children_of_self()
    async with asyncio.TaskGroup() as tasks:
        boot = tasks.create_task(expect_failure(engine, new_spec("a")))
        started = await until(lambda: children_of_self() - before)
        os.kill(started.pop(), signal.SIGKILL)
    assert boot.result().code == "engine_failed"
    assert "exit code -9" in boot.result().message


async def expect_failure(engine: QemuEngine, spec: MachineSpec) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await engine.boot(spec)
    return caught.value


async def test_a_cancelled_boot_leaves_nothing(new_spec: NewSpec, stand_in: NewStandIn) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await QemuEngine(stand_in("mute")).boot(new_spec("a"))
    assert not new_spec("a").directory.exists()


async def test_a_socket_path_that_is_too_long(new_spec: NewSpec, stand_in: NewStandIn) -> None:
    spec = new_spec("a")
    deep = dataclasses.replace(spec, directory=spec.directory / ("x" * 100))
    with pytest.raises(EngineError, match="longer than 100 bytes") as caught:
        await QemuEngine(stand_in("normal")).boot(deep)
    assert "runtime_dir" in (caught.value.hint or "")


async def test_one_directory_serves_one_machine(new_spec: NewSpec, stand_in: NewStandIn) -> None:
    engine = QemuEngine(stand_in("normal"))
    machine = await engine.boot(new_spec("a"))
    with pytest.raises(EngineError, match="another VM serves"):
        await engine.boot(new_spec("a"))
    assert machine.agent_socket.is_socket()
    await machine.kill()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("panic", ExitKind.PANIC), ("reboot", ExitKind.REBOOT), ("die", ExitKind.CRASHED)],
)
async def test_the_exit_tells_how_the_guest_ended(
    new_spec: NewSpec, stand_in: NewStandIn, mode: str, kind: ExitKind
) -> None:
    machine = await QemuEngine(stand_in(mode)).boot(new_spec("a"))
    outcome = await machine.wait()
    assert outcome.kind is kind
    if kind is ExitKind.CRASHED:
        assert "SIGABRT" in outcome.message


async def test_powerdown_reaches_the_guest(new_spec: NewSpec, stand_in: NewStandIn) -> None:
    machine = await QemuEngine(stand_in("normal")).boot(new_spec("a"))
    await machine.powerdown()
    assert (await machine.wait()).kind is ExitKind.POWEROFF
    with pytest.raises(EngineError) as caught:
        await machine.powerdown()
    assert caught.value.code == "sandbox_died"


async def test_killed_by_another_is_a_crash(new_spec: NewSpec, stand_in: NewStandIn) -> None:
    machine = await QemuEngine(stand_in("normal")).boot(new_spec("a"))
    machine.record.process.kill()
    outcome = await machine.wait()
    assert outcome.kind is ExitKind.CRASHED
    assert "SIGKILL" in outcome.message


async def test_the_console_survives_a_restart(new_spec: NewSpec, stand_in: NewStandIn) -> None:
    engine, spec = QemuEngine(stand_in("normal")), new_spec("a")
    machine = await engine.boot(spec)
    await until(lambda: spec.console_log.exists() and spec.console_log.read_bytes())
    await machine.release()
    adopted = await engine.adopt(machine.record)
    assert adopted is not None
    await until(lambda: spec.console_log.read_bytes() == b"stand-in\n" * 2)
    await adopted.kill()


async def test_a_machine_that_stopped_answering_is_not_adopted(
    new_spec: NewSpec, stand_in: NewStandIn
) -> None:
    settings = stand_in("normal")
    machine = await QemuEngine(settings).boot(new_spec("a"))
    await machine.release()
    engine = QemuEngine(settings, handshake_timeout=0.5)
    process = machine.record.process
    process.kill(signal.SIGSTOP)
    with pytest.raises(EngineError, match="does not answer"):
        await engine.adopt(machine.record)
    process.kill()
    await process.wait()
    assert await engine.adopt(machine.record) is None
    os.waitpid(process.pid, 0)


async def test_an_earlier_ends_sockets_are_no_obstacle(
    new_spec: NewSpec, stand_in: NewStandIn
) -> None:
    engine = QemuEngine(stand_in("normal"))
    machine = await engine.boot(new_spec("a"))
    await machine.release()
    machine.record.process.kill()
    await machine.record.process.wait()
    os.waitpid(machine.record.process.pid, 0)
    again = await engine.boot(new_spec("a"))
    await again.kill()


@pytest.mark.parametrize(
    ("mode", "code", "words"),
    [("unsavable", "engine_failed", "told to"), ("die", "sandbox_died", "ended")],
)
async def test_a_machine_that_cannot_be_frozen_is_ended_all_the_same(
    new_spec: NewSpec, stand_in: NewStandIn, short_tmp: Path, mode: str, code: str, words: str
) -> None:
    engine = QemuEngine(stand_in(mode))
    machine = await engine.boot(dataclasses.replace(new_spec("a"), freezable=True))
    with pytest.raises(EngineError, match=words) as caught:
        await engine.freeze(machine, short_tmp / "frozen")
    assert caught.value.code == code
    await machine.wait()
    assert not (short_tmp / "frozen").exists()


async def test_a_freezable_machine_that_does_not_boot(
    new_spec: NewSpec, stand_in: NewStandIn
) -> None:
    with pytest.raises(EngineError):
        await QemuEngine(stand_in("exit")).boot(dataclasses.replace(new_spec("a"), freezable=True))


async def freeze(engine: QemuEngine, spec: MachineSpec, directory: Path) -> Frozen:
    machine = await engine.boot(dataclasses.replace(spec, freezable=True))
    return await engine.freeze(machine, directory)


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.004, 0.008, 0.016, 0.03])
async def test_a_freeze_is_whole_or_leaves_nothing(
    new_spec: NewSpec, stand_in: NewStandIn, short_tmp: Path, delay: float
) -> None:
    engine = QemuEngine(stand_in("normal"))
    machine = await engine.boot(dataclasses.replace(new_spec("a"), freezable=True))
    directory = short_tmp / "frozen"
    try:
        async with asyncio.timeout(delay):
            frozen = await engine.freeze(machine, directory)
    except TimeoutError:
        assert not directory.exists() or not list(directory.iterdir())
    else:
        assert frozen.state.exists()
        assert frozen.image.exists()
        await engine.drop(frozen)
    await machine.wait()


async def test_a_full_disk_stops_a_freeze(
    new_spec: NewSpec, stand_in: NewStandIn, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = QemuEngine(stand_in("normal"))
    machine = await engine.boot(dataclasses.replace(new_spec("a"), freezable=True))

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoCapacity) as caught:
        await engine.freeze(machine, short_tmp / "frozen")
    assert caught.value.code == "disk_full"
    assert not list((short_tmp / "frozen").iterdir())
    assert (await machine.wait()).kind is ExitKind.KILLED


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.06, 0.1])
async def test_a_clone_is_whole_or_leaves_nothing(
    new_spec: NewSpec, stand_in: NewStandIn, short_tmp: Path, delay: float
) -> None:
    engine, spec = QemuEngine(stand_in("normal")), new_spec("b")
    frozen = await freeze(engine, new_spec("a"), short_tmp / "frozen")
    await engine.drop(frozen)  # so that loading it is cut short, too
    try:
        async with asyncio.timeout(delay):
            machine = await engine.clone(spec, frozen)
    except TimeoutError:
        pass
    else:
        await machine.kill()
    await engine.drop(frozen)
    assert not spec.directory.exists() or not list(spec.directory.iterdir())


async def test_a_state_that_does_not_load_is_told_in_qemus_words(
    new_spec: NewSpec, stand_in: NewStandIn, short_tmp: Path
) -> None:
    engine = QemuEngine(stand_in("normal"))
    frozen = await freeze(engine, new_spec("a"), short_tmp / "frozen")
    spec = new_spec("b")
    with pytest.raises(EngineError, match="load of migration failed") as caught:
        await engine.clone(dataclasses.replace(spec, drives=spec.drives[:1]), frozen)
    assert caught.value.details["template"] is True
    confused = QemuEngine(stand_in("confused"))
    with pytest.raises(EngineError, match="internal-error") as caught:
        await confused.clone(new_spec("c"), frozen)
    assert caught.value.details["template"] is True
    await engine.drop(frozen)
    await confused.drop(frozen)


async def test_a_template_is_not_to_blame_for_a_host_without_memory(
    new_spec: NewSpec, stand_in: NewStandIn, short_tmp: Path
) -> None:
    engine, killed = QemuEngine(stand_in("normal")), QemuEngine(stand_in("killed"))
    frozen = await freeze(engine, new_spec("a"), short_tmp / "frozen")
    with pytest.raises(EngineError) as caught:
        await killed.clone(new_spec("b"), frozen)
    assert "template" not in caught.value.details
    await engine.drop(frozen)
    await killed.drop(frozen)


async def test_a_machine_that_dies_while_it_is_frozen(
    new_spec: NewSpec, stand_in: NewStandIn, short_tmp: Path
) -> None:
    engine = QemuEngine(stand_in("stuck"))
    machine = await engine.boot(dataclasses.replace(new_spec("a"), freezable=True))
    async with asyncio.TaskGroup() as tasks:
        freezing = tasks.create_task(_outcome(engine.freeze(machine, short_tmp / "frozen")))
        stopped = machine.record.process
        await until(lambda: Path(f"/proc/{stopped.pid}/fd").exists())
        stopped.kill()
    failure = freezing.result()
    assert isinstance(failure, EngineError)
    assert failure.code == "sandbox_died"
    assert not (short_tmp / "frozen").exists()


async def _outcome(work: Awaitable[object]) -> object:
    try:
        return await work
    except EngineError as failure:
        return failure
