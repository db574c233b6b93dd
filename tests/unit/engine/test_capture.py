"""Captures that go wrong: the machine runs on, and nothing of the attempt is left."""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest

from hutch.engine import capture, disks, guest_memory
from hutch.engine.base import Frozen
from hutch.engine.guest_memory import GuestMemory
from hutch.engine.qemu import QemuEngine
from hutch.errors import EngineError, error
from tests.unit.engine.conformance import NewSpec
from tests.unit.engine.conftest import NewStandIn
from tests.unit.engine.stand_in import MEMORY, OWN
from tests.waiting import until


async def outcome(work: Awaitable[object]) -> object:
    try:
        return await work
    except EngineError as failure:
        return failure


def held(pid: int | None = None) -> list[str]:
    """Return what a process (ours: None) has open of memories, states and disks."""
    found = []
    for path in Path(f"/proc/{pid or 'self'}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(path))
    return sorted(name for name in found if "memfd" in name or name.endswith(".qcow2"))


def memory_of(engine: QemuEngine, frozen: Frozen) -> bytes:
    entry = engine._memories._entries[frozen.directory]
    assert entry.fd is not None
    return os.pread(entry.fd, frozen.memory, 0)


async def test_a_capture_has_what_the_guest_wrote_and_what_it_was_given(
    new_spec: NewSpec, stand_in: NewStandIn, short_tmp: Path
) -> None:
    engine = QemuEngine(stand_in("normal"))
    machine = await engine.boot(new_spec("a"))
    taken = [await engine.capture(machine, short_tmp / "0")]
    machines = [machine]
    for number in (1, 2):  # each guest adds one to a page
        machines.append(await engine.clone(new_spec(f"c{number}"), taken[-1]))
        taken.append(await engine.capture(machines[-1], short_tmp / str(number)))
    for number, frozen in enumerate(taken):
        memory = memory_of(engine, frozen)
        assert memory.startswith(MEMORY)
        assert memory[OWN : OWN + 4097] == bytes([number]) * 4096 + b"\0"
        await engine.drop(frozen)
    for ended in machines:
        await ended.kill()


async def test_a_machine_from_before_a_restart_is_captured(
    new_spec: NewSpec, stand_in: NewStandIn, short_tmp: Path
) -> None:
    engine = QemuEngine(stand_in("normal"))
    machine = await engine.boot(new_spec("a"))
    first = await engine.capture(machine, short_tmp / "first")
    clone = await engine.clone(new_spec("b"), first)
    await clone.release()
    await engine.drop(first)
    again = QemuEngine(stand_in("normal"))
    adopted = await again.adopt(clone.record)
    assert adopted is not None
    frozen = await again.capture(adopted, short_tmp / "second")
    assert memory_of(again, frozen)[OWN] == 1
    await again.drop(frozen)
    await adopted.kill()
    await machine.kill()


@pytest.mark.parametrize("mode", ["unsavable", "unswitchable"])
@pytest.mark.parametrize("paused", [False, True])
async def test_a_refused_capture_leaves_the_machine_as_it_was(
    new_spec: NewSpec, stand_in: NewStandIn, short_tmp: Path, mode: str, paused: bool
) -> None:
    engine = QemuEngine(stand_in(mode))
    machine = await engine.boot(new_spec("a"))
    if paused:
        await machine.pause()
    pid = machine.record.process.pid
    ours, theirs = held(), held(pid)
    disk = short_tmp / "next.qcow2"
    engine.create_disk(disk, 1 << 20, new_spec("a").drives[1].path, "qcow2")
    for _ in range(3):
        with pytest.raises(EngineError, match="told to") as caught:
            await engine.capture(machine, short_tmp / "captured", next_disk=disk)
        assert caught.value.code == "engine_failed"
        assert await machine.paused() is paused
    if paused:
        # QEMU keeps what it was handed until it runs. It needs nothing to write a disk below with.
        assert len(held(pid)) > len(theirs)
        await machine.resume()
        theirs.remove(str(new_spec("a").drives[1].path))
    assert (held(), held(pid)) == (ours, theirs)
    await machine.kill()


async def test_a_memory_that_cannot_be_read_costs_the_machine_nothing(
    new_spec: NewSpec,
    stand_in: NewStandIn,
    short_tmp: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = QemuEngine(stand_in("normal"))
    machine = await engine.boot(new_spec("a"))
    ours = held()

    def refuse(self: GuestMemory) -> int:
        raise error("engine_failed", "told to")

    monkeypatch.setattr(guest_memory.GuestMemory, "finish_copy", refuse)
    with pytest.raises(EngineError, match="told to"):
        await engine.capture(machine, short_tmp / "captured")
    assert not await machine.paused()
    assert held() == ours
    await machine.kill()


async def test_a_copy_that_cannot_begin_leaves_qemu_nothing_that_was_on_its_way(
    new_spec: NewSpec, stand_in: NewStandIn, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = QemuEngine(stand_in("normal"))
    machine = await engine.boot(new_spec("a"))
    begun, nodes = threading.Event(), list[Path]()

    @contextlib.asynccontextmanager
    async def opened(qmp: object, path: Path) -> AsyncIterator[None]:
        nodes.append(path)  # QEMU has it from here on, and its answer is on the way
        begun.set()
        await asyncio.sleep(0.05)
        try:
            yield
        finally:
            nodes.remove(path)

    def refuse(self: GuestMemory, memory: int) -> None:
        assert begun.wait(60)
        raise error("engine_failed", "told to")

    monkeypatch.setattr(disks, "opened", opened)
    monkeypatch.setattr(guest_memory.GuestMemory, "begin_copy", refuse)
    with pytest.raises(EngineError, match="told to"):
        await engine.capture(machine, short_tmp / "captured", next_disk=short_tmp / "next")
    assert begun.is_set()
    assert nodes == []
    assert not await machine.paused()
    await machine.kill()


async def test_a_machine_that_dies_while_it_is_captured(
    new_spec: NewSpec, stand_in: NewStandIn, short_tmp: Path
) -> None:
    engine = QemuEngine(stand_in("stuck"))
    ours = held()
    machine = await engine.boot(new_spec("a"))
    async with asyncio.TaskGroup() as tasks:
        capturing = tasks.create_task(outcome(engine.capture(machine, short_tmp / "captured")))
        await until(lambda: "hutch-state" in "".join(held(machine.record.process.pid)))
        await machine.kill()
    failure = capturing.result()
    assert isinstance(failure, EngineError)
    assert failure.code == "sandbox_died"
    assert held() == ours


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.003, 0.006, 0.01, 0.02, 0.03])
async def test_a_capture_that_is_cancelled_lets_the_machine_run_on(
    new_spec: NewSpec, stand_in: NewStandIn, short_tmp: Path, delay: float
) -> None:
    engine = QemuEngine(stand_in("normal"))
    machine = await engine.boot(new_spec("a"))
    pid = machine.record.process.pid
    ours, theirs = held(), held(pid)
    frozen = None
    try:
        async with asyncio.timeout(delay):
            frozen = await engine.capture(machine, short_tmp / "captured")
    except TimeoutError:
        pass
    assert not await machine.paused()
    if frozen is not None:
        await engine.drop(frozen)
    assert (held(), held(pid)) == (ours, theirs)
    await machine.kill()


async def test_a_pause_waits_for_the_capture_that_is_under_way(
    new_spec: NewSpec,
    stand_in: NewStandIn,
    short_tmp: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = QemuEngine(stand_in("normal"))
    machine = await engine.boot(new_spec("a"))
    order: list[str] = []
    take = capture._take

    async def taken(*arguments: object) -> None:
        await take(*arguments)  # type: ignore[arg-type]
        order.append("captured")

    monkeypatch.setattr(capture, "_take", taken)
    async with asyncio.TaskGroup() as tasks:
        capturing = tasks.create_task(engine.capture(machine, short_tmp / "captured"))
        await asyncio.sleep(0)
        await machine.pause()
        order.append("paused")
    assert order == ["captured", "paused"]
    assert await machine.paused()
    await engine.drop(capturing.result())
    await machine.kill()


async def test_a_machine_is_not_let_go_of_in_the_middle(
    new_spec: NewSpec, stand_in: NewStandIn, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = QemuEngine(stand_in("normal"))
    machine = await engine.boot(new_spec("a"))
    loop, reached, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    finish = guest_memory.GuestMemory.finish_copy

    def wait(self: GuestMemory) -> int:
        loop.call_soon_threadsafe(reached.set)
        assert go_on.wait(60)
        return finish(self)

    monkeypatch.setattr(guest_memory.GuestMemory, "finish_copy", wait)
    async with asyncio.TaskGroup() as group:
        capturing = group.create_task(engine.capture(machine, short_tmp / "captured"))
        await reached.wait()
        letting_go = group.create_task(machine.release())
        done, _ = await asyncio.wait({letting_go}, timeout=0.1)
        go_on.set()
    assert not done
    await engine.drop(capturing.result())
    adopted = await engine.adopt(machine.record)
    assert adopted is not None
    assert not await adopted.paused()
    await adopted.kill()
