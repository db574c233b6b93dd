"""Forks of a sandbox whose memory is in use: how long it stands still, how soon children answer.

Standing still is measured from outside, as the longest that a program in the source takes to answer
while the fork is under way: a program that gives back each line, asked again and again.
"""

import asyncio
import time
from dataclasses import dataclass, field

from hutch.models import Forked, SandboxInfo
from hutch.sdk import AsyncClient, AsyncSandbox
from tests.bench.boots import cold
from tests.bench.lab import Lab
from tests.bench.lives import tell_marker
from tests.bench.samples import Check, Measured, Series, part_of

_PAUSE_PART, _ANSWER_PART = 25, 15
_DIRTY = 64 << 20
_FAN = 32
_FILL = f"head -c {_DIRTY} /dev/urandom >/dev/shm/dirty; sha256sum </dev/shm/dirty"
_STILL = 20
"""Lines that are asked for while nothing else happens, before and after."""


@dataclass(slots=True)
class _Asked:
    """How long each line took to come back, in seconds."""

    quiet: list[float] = field(default_factory=list)
    forking: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Sample:
    forked: Forked
    reply: float
    silence: float
    quiet: float


def forks(lab: Lab) -> Measured:
    """Measure forks with 64 MiB in use against cold boots: one child, then 32 of one pause."""
    count = lab.rounds(_FAN, 4)
    with lab.sandbox(template=True) as source:
        boots = cold(lab, lab.recipe(source))
        filled = lab.hutch.run("exec", source.name, "sh", "-c", _FILL).text

        async def sample(client: AsyncClient, children: int) -> _Sample:
            return await _fork(client, source, children, filled)

        warm, rounds = lab.rounds(1, 0), lab.rounds(10, 2)
        single = [lab.with_client(lambda c: sample(c, 1)) for _ in range(warm + rounds)][warm:]
        fan = lab.with_client(lambda c: sample(c, count))
    silence = Series("longest silence of the source", "s", [it.silence for it in single])
    told = Series("the pause that the reply tells", "s", [it.forked.pause_seconds for it in single])
    quiet = Series("longest silence before", "s", [it.quiet for it in single])
    answer = Series("request to reply: the child runs and has its identity", "s",
                    [it.reply for it in single])  # fmt: skip
    fan_silence = Series(f"{count} children: longest silence of the source", "s", [fan.silence])
    fan_reply = Series(f"{count} children: request to reply", "s", [fan.reply])
    return Measured(
        "Fork of a sandbox with 64 MiB in use",
        [boots, silence, told, quiet, answer, fan_silence, fan_reply],
        [
            part_of("fork: the source stands still, of a cold boot", silence, boots, _PAUSE_PART),
            part_of("fork: the child's answer, of a cold boot", answer, boots, _ANSWER_PART),
            part_of(f"{count} children: it stands still, of a cold boot", fan_silence, boots,
                    _PAUSE_PART),
            Check("children of one pause", len(fan.forked.children), count, "", at_most=False),
        ],
        "The silence has a line's round trip in it, and the times that its programs are frozen "
        "before and after. Each child told its own machine id and the digest of the 64 MiB.",
    )  # fmt: skip


async def _fork(client: AsyncClient, source: SandboxInfo, children: int, filled: str) -> _Sample:
    box = AsyncSandbox(source, client, owned=False, own_client=False)
    asked, done = _Asked(), asyncio.Event()
    async with await box.commands.run(["cat"], stdin=True, background=True) as echo:

        async def ask(into: list[float]) -> None:
            started = time.monotonic()
            await echo.send_stdin(b"x\n")
            async for chunk in echo:
                assert chunk.data == b"x\n", chunk
                break
            into.append(time.monotonic() - started)

        async def go_on_asking() -> None:
            while not done.is_set():
                await ask(asked.forking)

        for _ in range(_STILL):
            await ask(asked.quiet)
        async with asyncio.TaskGroup() as group:
            group.create_task(go_on_asking())
            started = time.monotonic()
            forked = await client.fork(source.id, count=children)
            reply = time.monotonic() - started
            done.set()
    assert not forked.failed, forked
    for child in forked.children:
        try:
            await tell_marker(client, child)
            if children == 1:
                await _assert_same(client, child, filled)
        finally:
            await client.remove(child.id, force=True)
    return _Sample(forked, reply, max(asked.forking), max(asked.quiet[1:]))


async def _assert_same(client: AsyncClient, child: SandboxInfo, filled: str) -> None:
    box = AsyncSandbox(child, client, owned=False, own_client=False)
    said = await box.commands.run("sha256sum </dev/shm/dirty")
    assert said.stdout.strip() == filled, (said, filled)
