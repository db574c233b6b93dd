import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hutch.engine.base import ExitKind, MachineExit, MachineSpec
from hutch.engine.canary import Sample, SampleReader, Trial, calibrate, collect
from hutch.engine.fake import FakeEngine, FakeMachine
from hutch.errors import EngineError
from tests.unit.engine.conformance import NewSpec
from tests.waiting import until

KHZ = 2_599_980


def readings(latency: list[float], khz: int = KHZ) -> list[Sample]:
    """Return a reading every 50 ms that arrives late by each of the given seconds."""
    return [
        Sample(1000.0 + 0.05 * n + late, 10**12 + round(0.05 * n * khz * 1000))
        for n, late in enumerate(latency)
    ]


def test_a_constant_delay_does_not_matter() -> None:
    assert calibrate(readings([0.004] * 50)) == KHZ


@pytest.mark.parametrize("seed", range(20))
def test_noise_that_is_never_negative_is_seen_through(seed: int) -> None:
    chance = random.Random(seed)
    latency = [0.0003 + chance.expovariate(1 / 0.0004) for _ in range(50)]
    # Now and then the reader waits for a processor.
    for late in chance.sample(range(50), 12):
        latency[late] += chance.uniform(0.001, 0.08)
    found = calibrate(readings(latency))
    assert abs(found / KHZ - 1) < 100e-6


def test_a_busy_start_does_not_tilt_the_line() -> None:
    latency = [0.3 - 0.02 * n for n in range(15)] + [0.0002, 0.0001] * 18
    assert abs(calibrate(readings(latency)) / KHZ - 1) < 100e-6


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        ([], "0 readings"),
        (readings([0.0] * 10), "10 readings"),
        (readings([0.0] * 50)[::-1], "backwards"),
        ([Sample(s.host, 5) for s in readings([0.0] * 50)], "backwards"),
        ([Sample(7.0, s.tsc) for s in readings([0.0] * 50)], r"cover 0\.00 s"),
        ([Sample(s.host / 100, s.tsc) for s in readings([0.0] * 50)], r"cover 0\.02 s"),
    ],
)
def test_readings_that_tell_nothing(samples: list[Sample], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        calibrate(samples)


def test_the_reader_joins_chunks_and_ignores_the_rest() -> None:
    reader = SampleReader()
    reader(1.0, b"[0.1] boot\nhutch-can")
    reader(2.0, b"ary tsc=00012\r\nhutch-canary tsc=13")
    reader(3.0, b"\nhutch-canary tsc=x\nhutch-canary tsc=" + b"9" * 30 + b"\n")
    assert reader.samples == [Sample(2.0, 12), Sample(3.0, 13)]


def test_a_hostile_guest_cannot_fill_the_readers_memory() -> None:
    reader = SampleReader()
    for _ in range(100):
        reader(1.0, b"x" * 100_000)
        reader(1.0, b"hutch-canary tsc=1\n" * 100)
    assert len(reader.samples) <= 1000
    assert len(reader._rest) <= 4096


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    yield engine
    assert not engine.running(), "a canary was left behind"


async def run(engine: FakeEngine, spec: MachineSpec, **limits: float) -> Trial:
    async def start(reader: SampleReader) -> FakeMachine:
        reader(1.0, b"hutch-canary tsc=42\n")
        return await engine.boot(spec)

    return await collect(start, **limits)


async def test_a_canary_that_powers_off_gives_its_readings(
    engine: FakeEngine, new_spec: NewSpec
) -> None:
    engine.die_after, engine.die_as = 0.2, MachineExit(ExitKind.POWEROFF)
    trial = await run(engine, new_spec("a"), limit=60, stall=60)
    assert trial == Trial([Sample(1.0, 42)], engine.cpu)


@pytest.mark.parametrize(
    ("kind", "why"), [(ExitKind.PANIC, "a panic"), (ExitKind.POWEROFF, "asked for its CPU")]
)
async def test_a_canary_that_is_gone_at_once(
    engine: FakeEngine, new_spec: NewSpec, kind: ExitKind, why: str
) -> None:
    async def start(reader: SampleReader) -> FakeMachine:
        machine = await engine.boot(new_spec("a"))
        await machine.process.end(MachineExit(kind))
        return machine

    with pytest.raises(EngineError, match=why):
        await collect(start, limit=60, stall=60)


async def test_a_canary_that_hangs_is_killed(engine: FakeEngine, new_spec: NewSpec) -> None:
    with pytest.raises(EngineError, match=r"made no progress in 0\.05 s"):
        await run(engine, new_spec("a"), limit=5, stall=0.05)


async def test_a_canary_that_only_chatters_is_killed(
    engine: FakeEngine, new_spec: NewSpec, short_tmp: Path
) -> None:
    async def chatter() -> None:
        process = (await until(engine.running))[0]
        while process.exit is None:
            process.say(b"tick\n")
            await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(chatter())
        with pytest.raises(EngineError, match=r"did not end within 0\.3 s"):
            await run(engine, new_spec("a"), limit=0.3, stall=0.2)


async def test_a_canary_that_panics_is_refused(engine: FakeEngine, new_spec: NewSpec) -> None:
    engine.die_after, engine.die_as = 0.01, MachineExit(ExitKind.PANIC)
    with pytest.raises(EngineError, match="ended with a panic"):
        await run(engine, new_spec("a"), limit=60, stall=60)


async def test_a_cancelled_canary_is_killed(engine: FakeEngine, new_spec: NewSpec) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await run(engine, new_spec("a"), limit=60, stall=60)
