"""Pause and resume, as a client sees them.

A paused machine's process must use no time, and a resumed one must answer a command.
"""

import time

from hutch.models import SandboxInfo, SandboxState
from hutch.sdk import AsyncClient
from tests.bench.boots import cold
from tests.bench.lab import Lab, cpu_seconds, pause
from tests.bench.lives import tell_marker
from tests.bench.samples import Measured, Series, part_of

_PART = 200
_LOOKS = 3
_TO_REST = 3.0
"""Seconds within which a paused process sleeps: some of its timers go off once more."""


def pause_and_resume(lab: Lab) -> Measured:
    """Measure pauses and resumes of a running sandbox against cold boots."""
    pauses, resumes = [], []
    with lab.sandbox(template=True) as info, lab.session() as session:
        boots = cold(lab, lab.recipe(info))
        warm, rounds = lab.rounds(3, 1), lab.rounds(40, 5)
        for _ in range(warm + rounds):
            pauses.append(session(lambda client: _pause(client, info)))
            _assert_stands(info)
            resumes.append(session(lambda client: _resume(client, info)))
            session(lambda client: tell_marker(client, info))
    paused = Series("hutch, pause: request to reply", "s", pauses[warm:])
    resumed = Series("hutch, resume: request to reply", "s", resumes[warm:])
    return Measured(
        "Pause and resume",
        [boots, paused, resumed],
        [
            part_of("pause, of a cold boot", paused, boots, _PART),
            part_of("resume, of a cold boot", resumed, boots, _PART),
        ],
        "Each paused machine was seen to use no processor time, each resumed one ran a command.",
    )


async def _pause(client: AsyncClient, info: SandboxInfo) -> float:
    started = time.monotonic()
    now = await client.pause(info.id)
    seconds = time.monotonic() - started
    assert now.state is SandboxState.PAUSED, now
    return seconds


async def _resume(client: AsyncClient, info: SandboxInfo) -> float:
    started = time.monotonic()
    now = await client.resume(info.id)
    seconds = time.monotonic() - started
    assert now.state is SandboxState.RUNNING, now
    return seconds


def _assert_stands(info: SandboxInfo) -> None:
    """Check that the process comes to rest, and stays so: it is about its last answer at first."""
    assert info.pid is not None
    deadline = time.monotonic() + _TO_REST
    while True:
        before = cpu_seconds(info.pid)
        for _ in range(_LOOKS):
            pause()
        if cpu_seconds(info.pid) == before:
            return
        assert time.monotonic() < deadline, "a paused machine uses the processor"
