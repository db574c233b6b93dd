"""What every engine does. Subclasses give the fixtures `engine` and `new_spec`."""

import asyncio
import contextlib
import dataclasses
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from hutch.engine.base import Engine, ExitKind, Frozen, Machine, MachineRecord, MachineSpec
from hutch.errors import EngineError, HutchError, error
from tests.waiting import until

NewSpec = Callable[[str], MachineSpec]


class EngineConformance:
    """The suite. Each machine is ended by the test that boots it."""

    async def test_boot_then_kill_leaves_nothing(self, engine: Engine, new_spec: NewSpec) -> None:
        machine = await engine.boot(new_spec("a"))
        assert machine.agent_socket.is_socket()
        first, second = await machine.kill(), await machine.kill()
        assert first.kind is ExitKind.KILLED
        assert second == first
        assert not list(new_spec("a").directory.iterdir())

    async def test_every_waiter_gets_the_exit(self, engine: Engine, new_spec: NewSpec) -> None:
        machine = await engine.boot(new_spec("a"))
        async with asyncio.TaskGroup() as tasks:
            waiters = [tasks.create_task(machine.wait()) for _ in range(3)]
            tasks.create_task(machine.kill())
        assert {waiter.result().kind for waiter in waiters} == {ExitKind.KILLED}
        assert (await machine.wait()).kind is ExitKind.KILLED

    async def test_a_cancelled_waiter_harms_no_other(
        self, engine: Engine, new_spec: NewSpec
    ) -> None:
        machine = await engine.boot(new_spec("a"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await machine.wait()
        assert (await machine.kill()).kind is ExitKind.KILLED

    async def test_the_agent_can_be_reached(self, engine: Engine, new_spec: NewSpec) -> None:
        machine = await engine.boot(new_spec("a"))
        _, writer = await asyncio.open_unix_connection(machine.agent_socket)
        writer.close()
        await machine.kill()

    async def test_a_released_machine_is_adopted_from_its_record(
        self, engine: Engine, new_spec: NewSpec
    ) -> None:
        machine = await engine.boot(new_spec("a"))
        waiter = asyncio.ensure_future(machine.wait())
        await asyncio.sleep(0)
        await machine.release()
        await machine.release()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        record = MachineRecord.from_json(json.loads(json.dumps(machine.record.to_json())))
        assert record == machine.record
        adopted = await engine.adopt(record)
        assert adopted is not None
        assert adopted.agent_socket == machine.agent_socket
        assert (await adopted.kill()).kind is ExitKind.KILLED
        assert await engine.adopt(record) is None

    async def test_a_reused_pid_is_not_adopted(self, engine: Engine, new_spec: NewSpec) -> None:
        machine = await engine.boot(new_spec("a"))
        process = machine.record.process
        other = dataclasses.replace(process, start_time=process.start_time + 1)
        assert await engine.adopt(dataclasses.replace(machine.record, process=other)) is None
        await machine.kill()

    async def test_console_progress_ends_with_the_machine(
        self, engine: Engine, new_spec: NewSpec
    ) -> None:
        machine = await engine.boot(new_spec("a"))

        async def watch() -> list[int]:
            return [total async for total in machine.console_progress()]

        async with asyncio.TaskGroup() as tasks:
            seen = tasks.create_task(watch())
            await machine.kill()
        assert seen.result() == sorted(seen.result())

    async def test_use_of_resources(self, engine: Engine, new_spec: NewSpec) -> None:
        machine = await engine.boot(new_spec("a"))
        assert 0 < machine.memory_use() < 1 << 32
        await until(lambda: machine.cpu_seconds() > 0, what="CPU time of a new machine")
        await machine.kill()
        assert machine.memory_use() == 0
        assert machine.cpu_seconds() == 0

    async def test_the_cpu_that_its_guest_sees(self, engine: Engine, new_spec: NewSpec) -> None:
        machine = await engine.boot(new_spec("a"))
        cpu = await machine.cpu()
        assert cpu.model
        assert cpu.vendor
        assert "fpu" in cpu.features
        assert sorted(set(cpu.features)) == cpu.features
        await machine.kill()
        with pytest.raises(EngineError, match="query-cpu"):
            await machine.cpu()

    async def test_a_missing_disk_is_named_and_nothing_is_left(
        self, engine: Engine, new_spec: NewSpec, short_tmp: Path
    ) -> None:
        spec = new_spec("a")
        gone = dataclasses.replace(spec.drives[0], path=short_tmp / "gone.img")
        with pytest.raises(EngineError, match=r"gone\.img") as caught:
            await engine.boot(dataclasses.replace(spec, drives=[gone]))
        assert caught.value.code == "engine_failed"
        assert not spec.directory.exists() or not list(spec.directory.iterdir())

    async def test_two_boots_at_once(self, engine: Engine, new_spec: NewSpec) -> None:
        async with asyncio.TaskGroup() as tasks:
            boots = [tasks.create_task(engine.boot(new_spec(name))) for name in "ab"]
        machines: list[Machine] = [boot.result() for boot in boots]
        assert machines[0].record.process != machines[1].record.process
        for machine in machines:
            await machine.kill()

    async def test_discard_ends_what_nobody_recorded(
        self, engine: Engine, new_spec: NewSpec
    ) -> None:
        spec = new_spec("a")
        machine = await engine.boot(spec)
        other = await engine.boot(new_spec("b"))
        await machine.release()
        await engine.discard(spec.directory)
        assert await engine.adopt(machine.record) is None
        assert not list(spec.directory.iterdir())
        assert other.memory_use() > 0
        await other.kill()
        await engine.discard(spec.directory)

    async def test_a_frozen_machine_is_cloned_any_number_of_times(
        self, engine: Engine, new_spec: NewSpec, short_tmp: Path
    ) -> None:
        frozen, machine = await _freeze(engine, new_spec("t"), short_tmp / "frozen")
        assert (await machine.wait()).kind is ExitKind.KILLED
        assert frozen == Frozen(short_tmp / "frozen", new_spec("t").memory)
        assert {path.name for path in frozen.directory.iterdir()} == {"state", "memory"}
        assert frozen.image.stat().st_size == frozen.memory
        assert engine.frozen_memory(frozen) > 0
        clones = [await engine.clone(new_spec(name), frozen) for name in "ab"]
        await engine.drop(frozen)
        await engine.drop(frozen)
        assert engine.frozen_memory(frozen) == 0
        # From here on it comes from disk.
        clones.append(await engine.clone(new_spec("c"), frozen))
        assert engine.frozen_memory(frozen) > 0
        await engine.drop(frozen)
        for clone in clones:
            _, writer = await asyncio.open_unix_connection(clone.agent_socket)
            writer.close()
            await clone.release()
            adopted = await engine.adopt(
                MachineRecord.from_json(json.loads(json.dumps(clone.record.to_json())))
            )
            assert adopted is not None
            assert (await adopted.kill()).kind is ExitKind.KILLED
            assert not list(clone.record.directory.iterdir())

    async def test_a_machine_is_paused_and_resumed(self, engine: Engine, new_spec: NewSpec) -> None:
        machine = await engine.boot(new_spec("a"))
        assert not await machine.paused()
        for _ in range(2):
            await machine.pause()
            assert await machine.paused()
        await machine.release()
        adopted = await engine.adopt(machine.record)
        assert adopted is not None
        assert await adopted.paused()
        for _ in range(2):
            await adopted.resume()
            assert not await adopted.paused()
        await adopted.pause()
        assert (await adopted.kill()).kind is ExitKind.KILLED
        for act in (adopted.pause, adopted.resume, adopted.paused):
            with pytest.raises(EngineError) as caught:
                await act()
            assert caught.value.code == "sandbox_died"

    @pytest.mark.parametrize("paused", [False, True])
    async def test_a_captured_machine_lives_on_and_is_cloned_at_once(
        self, engine: Engine, new_spec: NewSpec, short_tmp: Path, paused: bool
    ) -> None:
        machine = await engine.boot(new_spec("a"))
        if paused:
            await machine.pause()
        frozen = await engine.capture(machine, short_tmp / "captured")
        assert await machine.paused() is paused
        assert frozen == Frozen(short_tmp / "captured", new_spec("a").memory)
        assert not frozen.directory.exists()
        assert engine.frozen_memory(frozen) > 0
        clones = [await engine.clone(new_spec(name), frozen) for name in "bc"]
        for clone in clones:
            assert not await clone.paused()
        # The clone of a clone is one like any other.
        second = await engine.capture(clones[0], short_tmp / "second")
        clones.append(await engine.clone(new_spec("d"), second))
        for taken in (frozen, second):
            await engine.drop(taken)
            assert engine.frozen_memory(taken) == 0
        with pytest.raises(EngineError) as caught:
            await engine.clone(new_spec("e"), frozen)  # it was never kept
        assert caught.value.details["template"] is True
        await engine.drop(frozen)
        for ended in (machine, *clones):
            assert (await ended.kill()).kind is ExitKind.KILLED

    async def test_the_guest_is_held_around_the_pause(
        self, engine: Engine, new_spec: NewSpec, short_tmp: Path
    ) -> None:
        machine, seen = await engine.boot(new_spec("a")), []

        @contextlib.asynccontextmanager
        async def still(fail: str = "") -> AsyncIterator[None]:
            seen.append(await machine.paused())
            if fail == "before":
                raise error("guest_timeout", "told to")
            try:
                yield
            finally:
                seen.append(await machine.paused())
            if fail == "after":
                raise error("guest_timeout", "told to")

        frozen = await engine.capture(machine, short_tmp / "captured", still=still())
        await engine.drop(frozen)
        for fail in ("before", "after"):
            with pytest.raises(HutchError, match="told to"):
                await engine.capture(machine, short_tmp / "captured", still=still(fail))
            assert engine.frozen_memory(frozen) == 0
            assert not await machine.paused()
        gone = short_tmp / "gone.qcow2"
        with pytest.raises(EngineError):
            await engine.capture(machine, short_tmp / "captured", next_disk=gone, still=still())
        assert not any(seen)
        await machine.kill()

    async def test_clones_of_what_is_expected_wait_for_it(
        self, engine: Engine, new_spec: NewSpec, short_tmp: Path
    ) -> None:
        machine, source = await engine.boot(new_spec("a")), new_spec("a")
        frozen = await engine.expect(short_tmp / "captured", source.memory)
        async with asyncio.TaskGroup() as tasks:
            clones = [
                tasks.create_task(engine.clone(new_spec(f"child-{number}"), frozen))
                for number in range(2)
            ]
            await asyncio.sleep(0)
            assert await engine.capture(machine, frozen.directory) == frozen
        for clone in clones:
            assert not await clone.result().paused()
            await clone.result().kill()
        await engine.drop(frozen)
        await machine.kill()

    @pytest.mark.parametrize("why", ["capture", "drop"])
    async def test_clones_of_what_is_expected_in_vain_fail(
        self, engine: Engine, new_spec: NewSpec, short_tmp: Path, why: str
    ) -> None:
        machine, spec = await engine.boot(new_spec("a")), new_spec("child")
        frozen = await engine.expect(short_tmp / "captured", spec.memory)
        async with asyncio.TaskGroup() as tasks:
            cloning = tasks.create_task(_failure(engine.clone(spec, frozen)))
            await asyncio.sleep(0)
            if why == "drop":
                await engine.drop(frozen)
            else:
                gone = short_tmp / "gone.qcow2"
                with pytest.raises(EngineError):
                    await engine.capture(machine, frozen.directory, next_disk=gone)
        assert cloning.result().code == "engine_failed"
        assert "template" not in cloning.result().details
        assert not spec.directory.exists() or not list(spec.directory.iterdir())
        assert engine.frozen_memory(frozen) == 0
        await machine.kill()

    async def test_what_was_kept_is_loaded_when_it_is_needed(
        self, engine: Engine, new_spec: NewSpec, short_tmp: Path
    ) -> None:
        machine = await engine.boot(new_spec("a"))
        frozen = await engine.capture(machine, short_tmp / "captured")
        await engine.keep(frozen)
        assert {path.name for path in frozen.directory.iterdir()} == {"state", "memory"}
        assert frozen.image.stat().st_size == frozen.memory
        assert engine.frozen_memory(frozen) > 0
        await machine.kill()
        await engine.drop(frozen)
        assert engine.frozen_memory(frozen) == 0
        clone = await engine.clone(new_spec("b"), frozen)
        assert engine.frozen_memory(frozen) > 0
        await engine.drop(frozen)
        await clone.kill()

    async def test_what_was_dropped_cannot_be_kept(
        self, engine: Engine, new_spec: NewSpec, short_tmp: Path
    ) -> None:
        machine = await engine.boot(new_spec("a"))
        frozen = await engine.capture(machine, short_tmp / "captured")
        await engine.drop(frozen)
        with pytest.raises(EngineError) as caught:
            await engine.keep(frozen)
        assert caught.value.code == "engine_failed"
        assert not frozen.directory.exists()
        await machine.kill()

    async def test_a_capture_gives_the_machine_another_disk(
        self, engine: Engine, new_spec: NewSpec, short_tmp: Path
    ) -> None:
        machine = await engine.boot(new_spec("a"))
        frozen, clones, disk = None, [], new_spec("a").drives[1]
        for number in range(2):
            following = short_tmp / f"next-{number}.qcow2"
            engine.create_disk(following, 1 << 20, disk.path, "qcow2")
            taken = short_tmp / f"captured-{number}"
            frozen = await engine.capture(machine, taken, next_disk=following)
            spec = new_spec(f"child-{number}")
            drive = dataclasses.replace(spec.drives[1], layers=[disk.path, *disk.layers])
            spec = dataclasses.replace(spec, drives=[spec.drives[0], drive])
            clones.append(await engine.clone(spec, frozen))
            await engine.drop(frozen)
            disk = dataclasses.replace(disk, path=following, layers=drive.layers)
        for ended in (machine, *clones):
            await ended.kill()

    async def test_a_capture_that_failed_leaves_the_machine_as_it_was(
        self, engine: Engine, new_spec: NewSpec, short_tmp: Path
    ) -> None:
        machine = await engine.boot(new_spec("a"))
        with pytest.raises(EngineError, match=r"gone\.qcow2") as caught:
            await engine.capture(
                machine, short_tmp / "captured", next_disk=short_tmp / "gone.qcow2"
            )
        assert caught.value.code == "engine_failed"
        assert not await machine.paused()
        frozen = await engine.capture(machine, short_tmp / "captured")
        await engine.drop(frozen)
        await machine.kill()
        with pytest.raises(EngineError) as caught:
            await engine.capture(machine, short_tmp / "captured")
        assert caught.value.code == "sandbox_died"
        assert engine.frozen_memory(frozen) == 0
        assert not frozen.directory.exists()

    async def test_a_machine_not_made_for_it_cannot_be_frozen(
        self, engine: Engine, new_spec: NewSpec, short_tmp: Path
    ) -> None:
        machine = await engine.boot(new_spec("a"))
        with pytest.raises(EngineError) as caught:
            await engine.freeze(machine, short_tmp / "frozen")
        assert caught.value.code == "engine_failed"
        assert (await machine.wait()).kind is ExitKind.KILLED
        assert not (short_tmp / "frozen").exists()

    @pytest.mark.parametrize("harm", ["no state", "state", "no memory", "memory", "layout"])
    async def test_what_does_not_load_is_the_templates_fault_and_leaves_nothing(
        self, engine: Engine, new_spec: NewSpec, short_tmp: Path, harm: str
    ) -> None:
        frozen, _ = await _freeze(engine, new_spec("t"), short_tmp / "frozen")
        await engine.drop(frozen)
        spec = new_spec("a")
        match harm:
            case "no state":
                frozen.state.unlink()
            case "state":
                os.truncate(frozen.state, frozen.state.stat().st_size - 1)
            case "no memory":
                frozen.image.unlink()
            case "memory":
                os.truncate(frozen.image, frozen.memory - 4096)
            case "layout":
                spec = dataclasses.replace(spec, cpus=2)
        with pytest.raises(EngineError) as caught:
            await engine.clone(spec, frozen)
        await engine.drop(frozen)
        assert (caught.value.code, caught.value.details["template"]) == ("engine_failed", True)
        assert not spec.directory.exists() or not list(spec.directory.iterdir())

    async def test_a_clones_missing_disk_is_not_the_templates_fault(
        self, engine: Engine, new_spec: NewSpec, short_tmp: Path
    ) -> None:
        frozen, _ = await _freeze(engine, new_spec("t"), short_tmp / "frozen")
        spec = new_spec("a")
        gone = dataclasses.replace(spec.drives[1], layers=[short_tmp / "gone.qcow2"])
        with pytest.raises(EngineError, match=r"gone\.qcow2") as caught:
            await engine.clone(dataclasses.replace(spec, drives=[spec.drives[0], gone]), frozen)
        await engine.drop(frozen)
        assert "template" not in caught.value.details
        assert not spec.directory.exists() or not list(spec.directory.iterdir())


async def _failure(work: Awaitable[object]) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await work
    return caught.value


async def _freeze(engine: Engine, spec: MachineSpec, directory: Path) -> tuple[Frozen, Machine]:
    machine = await engine.boot(dataclasses.replace(spec, freezable=True))
    return await engine.freeze(machine, directory), machine
