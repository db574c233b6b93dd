"""What the fake's machines can do that a handle of the Protocol cannot be asked for."""

import asyncio
from pathlib import Path

import pytest

from hutch.engine.base import ExitKind
from hutch.engine.fake import FakeEngine
from hutch.errors import EngineError
from tests.unit.engine.conformance import NewSpec


async def test_the_button_of_a_machine_that_stands_still_is_not_felt(new_spec: NewSpec) -> None:
    engine = FakeEngine()
    machine = await engine.boot(new_spec("a"))
    await machine.pause()
    await machine.powerdown()
    [process] = engine.running()
    await machine.resume()
    assert process.exit is None
    await machine.powerdown()
    assert (await machine.wait()).kind is ExitKind.POWEROFF


async def test_a_new_disk_goes_over_the_writable_one(new_spec: NewSpec) -> None:
    engine, spec = FakeEngine(), new_spec("a")
    await engine.boot(spec)
    [process] = engine.running()
    root, disk = spec.drives
    process.switch_disk(Path("/next"))
    process.switch_disk(Path("/last"))
    assert process.spec.drives[0] == root
    assert process.spec.drives[1].path == Path("/last")
    assert process.spec.drives[1].layers == [Path("/next"), disk.path]
    assert process.spec.drives[1].backing == disk.backing
    await engine.close()


async def test_what_has_ended_does_nothing_more(new_spec: NewSpec) -> None:
    engine = FakeEngine()
    machine = await engine.boot(new_spec("a"))
    async with asyncio.timeout(60):
        await engine.close()
    with pytest.raises(EngineError, match="during stop"):
        await machine.pause()
