"""The fake's own knobs; what it shares with real engines is in test_conformance.py."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hutch.engine.base import ANY_TAP, BootFiles, ExitKind, MachineExit, MachineSpec
from hutch.engine.fake import FakeEngine
from hutch.engine.fake_machine import Serve
from hutch.errors import EngineError, NoCapacity, error
from tests.unit.engine.conformance import NewSpec


@contextlib.asynccontextmanager
async def greeter(path: Path, words: bytes = b"hello") -> AsyncIterator[None]:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(words)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(greet, path):
        yield


async def test_the_injected_agent_is_served_for_the_machines_life(new_spec: NewSpec) -> None:
    engine = FakeEngine(greeter)
    machine = await engine.boot(new_spec("a"))
    reader, writer = await asyncio.open_unix_connection(machine.agent_socket)
    assert await reader.read() == b"hello"
    writer.close()
    await writer.wait_closed()
    await machine.kill()
    assert not machine.agent_socket.exists()


async def test_an_agent_that_cannot_be_served_fails_the_boot(new_spec: NewSpec) -> None:
    @contextlib.asynccontextmanager
    async def broken(path: Path) -> AsyncIterator[None]:
        raise error("engine_failed", "no agent today")
        yield

    engine = FakeEngine(broken)
    with pytest.raises(EngineError, match="no agent today"):
        await engine.boot(new_spec("a"))
    assert not engine.running()


async def test_a_boot_can_fail_or_hang(new_spec: NewSpec) -> None:
    engine = FakeEngine()
    engine.fail_boot = error("engine_failed", "told to")
    with pytest.raises(EngineError, match="told to"):
        await engine.boot(new_spec("a"))
    engine.fail_boot, engine.hang_boot = None, True
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await engine.boot(new_spec("a"))
    assert [spec.id for spec in engine.booted] == ["a", "a"]
    assert not engine.running()


async def test_a_machine_dies_in_time_and_as_told(new_spec: NewSpec) -> None:
    engine = FakeEngine()
    engine.die_after, engine.die_as = 0.02, MachineExit(ExitKind.PANIC, "oops")
    machine = await engine.boot(new_spec("a"))
    async with asyncio.timeout(60):
        assert await machine.wait() == MachineExit(ExitKind.PANIC, "oops")


async def test_a_test_ends_a_machine_and_makes_it_speak(new_spec: NewSpec) -> None:
    engine = FakeEngine()
    spec = new_spec("a")
    machine = await engine.boot(spec)
    [process] = engine.running()
    process.say(b"boot")
    await process.end(MachineExit(ExitKind.CRASHED, "gone"))
    await process.end(MachineExit(ExitKind.POWEROFF))
    assert await machine.wait() == MachineExit(ExitKind.CRASHED, "gone")
    assert [total async for total in machine.console_progress()] == [4]
    assert spec.console_log.read_bytes() == b"boot"


async def test_a_deaf_machine_ignores_the_power_button(new_spec: NewSpec) -> None:
    engine = FakeEngine()
    obedient = await engine.boot(new_spec("a"))
    engine.deaf = True
    deaf = await engine.boot(new_spec("b"))
    await obedient.powerdown()
    await deaf.powerdown()
    assert (await obedient.wait()).kind is ExitKind.POWEROFF
    with pytest.raises(EngineError):
        await obedient.powerdown()
    assert len(engine.running()) == 1
    await engine.close()
    assert (await deaf.wait()).kind is ExitKind.KILLED


async def test_a_child_is_served_by_the_agent_of_that_moment(
    new_spec: NewSpec, short_tmp: Path
) -> None:
    engine, moments = FakeEngine(), iter(["first", "second"])

    def serve_child(spec: MachineSpec) -> Serve:
        moment = next(moments)

        @contextlib.asynccontextmanager
        async def serve(path: Path) -> AsyncIterator[None]:
            async with greeter(path, f"{spec.id} {moment}".encode()):
                yield

        return serve

    engine.serve_child = serve_child
    machine = await engine.boot(new_spec("a"))
    first = await engine.capture(machine, short_tmp / "first")
    await engine.capture(machine, short_tmp / "second")
    await engine.keep(first)
    await engine.drop(first)
    child = await engine.clone(new_spec("b"), first)
    reader, writer = await asyncio.open_unix_connection(child.agent_socket)
    assert await reader.read() == b"a first"
    writer.close()
    await writer.wait_closed()
    await engine.close()


async def test_a_capture_can_fail_or_hang_and_the_machine_goes_on(
    new_spec: NewSpec, short_tmp: Path
) -> None:
    engine = FakeEngine()
    machine = await engine.boot(new_spec("a"))
    engine.fail_capture = error("engine_failed", "told to")
    with pytest.raises(EngineError, match="told to"):
        await engine.capture(machine, short_tmp / "captured")
    engine.fail_capture, engine.hang_capture = None, True
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await engine.capture(machine, short_tmp / "captured")
    assert not await machine.paused()
    engine.hang_capture, engine.fail_keep = False, error("disk_full", "told to")
    frozen = await engine.capture(machine, short_tmp / "captured")
    with pytest.raises(NoCapacity, match="told to"):
        await engine.keep(frozen)
    assert engine.frozen_memory(frozen) > 0
    await engine.close()


async def test_the_probe_needs_nothing(boot_files: BootFiles) -> None:
    assert (await FakeEngine().probe(None)).tsc_khz == (
        await FakeEngine().probe(boot_files)
    ).tsc_khz


async def test_what_has_a_tap_is_another_layout(new_spec: NewSpec, short_tmp: Path) -> None:
    engine = FakeEngine()
    source = dataclasses.replace(new_spec("t"), freezable=True, tap=7)
    frozen = await engine.freeze(await engine.boot(source), short_tmp / "frozen")
    spec = new_spec("a")
    with pytest.raises(EngineError) as caught:
        await engine.clone(spec, frozen)
    assert caught.value.details["template"]
    await (await engine.clone(dataclasses.replace(spec, tap=8), frozen)).kill()
    # A machine that had none does not mind one.
    source_without = dataclasses.replace(new_spec("u"), freezable=True)
    other = await engine.freeze(await engine.boot(source_without), short_tmp / "other")
    await (await engine.clone(dataclasses.replace(new_spec("b"), tap=8), other)).kill()
    assert engine.layout(source) == engine.layout(dataclasses.replace(source, tap=ANY_TAP))
    assert engine.layout(source) != engine.layout(dataclasses.replace(source, tap=None))
