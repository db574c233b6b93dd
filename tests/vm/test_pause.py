"""A paused sandbox costs no CPU, and goes on where it was, with the right time."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from hutch.guest.base import Guest
from hutch.guest.session import connect_guest
from hutch.images.base import no_report
from hutch.models import ExecSpec, SandboxSpec, SandboxState
from tests.harness.hutch import Hutch
from tests.harness.service import serving
from tests.harness.stores import SharedStore
from tests.vm.resting import COUNTER, count, goes_on, look

PAUSE = 1.0
CLOCK = 0.02
ATTEMPTS = 12
"""Pauses of which one must end with the right time: a busy host may be late in telling it."""
NEVER = 1e9
"""A tolerance with which `keep_clock` only looks."""


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, as its kernel counts it."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@pytest.fixture
def counter(hutch: Hutch) -> Hutch:
    hutch.run("run", "-d", "--name", "box", "-l", "k=v", "busybox", "sh", "-c", COUNTER)
    return hutch


def test_a_paused_sandbox_stands_still(counter: Hutch) -> None:
    counter.run("pause", "box")
    paused = look(counter, "box")
    assert (paused["state"], paused["labels"]) == ("paused", {"k": "v"})
    before = cpu_seconds(paused["pid"])
    end = time.monotonic() + PAUSE
    while time.monotonic() < end:
        for command in ("ps", "inspect", "logs", "pause"):
            counter.run(command, *(["box"] * (command != "ps")))
    assert cpu_seconds(paused["pid"]) - before < 0.1 * PAUSE
    assert look(counter, "box")["state"] == "paused"
    counter.run("unpause", "box")
    assert look(counter, "box")["state"] == "running"
    counter.run("resume", "box")


def test_whoever_needs_it_wakes_it(counter: Hutch, short_tmp: Path) -> None:
    pid, before = count(counter, "box")
    for command in (
        ("exec", "box", "true"),
        ("top", "box"),
        ("cp", "box:/run/count", str(short_tmp / "count")),
    ):
        counter.run("pause", "box")
        counter.run(*command)
        assert look(counter, "box")["state"] == "running"
    goes_on(counter, "box", pid, before)


def test_a_paused_sandbox_outlives_the_daemon_and_can_be_ended(counter: Hutch) -> None:
    pid, before = count(counter, "box")
    counter.run("pause", "box")
    counter.kill_daemon()
    assert look(counter, "box")["state"] == "paused"
    goes_on(counter, "box", pid, before)
    counter.run("pause", "box")
    counter.run("stop", "-t", "60s", "box")
    stopped = look(counter, "box")
    assert stopped["exit"]["reason"] == "stopped"
    assert stopped["exit"]["code"] == 143  # so it was asked, not killed
    counter.run("start", "box")
    counter.run("pause", "box")
    counter.run("kill", "box")
    assert look(counter, "box")["exit"]["reason"] == "killed"


async def test_the_clock_is_right_after_a_pause(shared_store: SharedStore, short_tmp: Path) -> None:
    guests: list[Any] = []

    async def connect(path: Path, *, timeout: float) -> Guest:
        guests.append(await connect_guest(path, timeout=timeout))
        return guests[-1]  # type: ignore[no-any-return]

    async with serving(shared_store, short_tmp / "r", connect) as service:
        info = await service.sandboxes.create(SandboxSpec("busybox", idle=True), no_report)
        await service.sandboxes.start(info.id)
        guest = guests[-1]
        # The machine itself, below all that corrects clocks: it falls behind by all of a stop.
        running = service._registry.find(info.id).running()
        await running.machine.pause()
        await asyncio.sleep(PAUSE)
        await running.machine.resume()
        assert await guest.keep_clock(tolerance=NEVER) < -PAUSE / 2
        for _ in range(ATTEMPTS):
            await service.sandboxes.pause(info.id)
            await asyncio.sleep(PAUSE)
            info = await service.sandboxes.resume(info.id)
            assert info.state is SandboxState.RUNNING
            off = await guest.keep_clock(tolerance=NEVER)
            if abs(off) <= CLOCK:
                break
        else:
            pytest.fail(f"the clock is off by {off} s")
        session = await service.execs.start(info.id, ExecSpec(["true"]))
        await session.close(detach=False)
