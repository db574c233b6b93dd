"""Forks of a sandbox whose memory is in use: how long it stands still, how soon children answer.

Standing still is measured from outside, as the longest that a program in the source takes to answer
while a fork is under way: one that gives back each line, asked for one every millisecond. How soon
a child answers is measured in forks of its own, while nobody asks the source for anything.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

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
"""Lines that are asked for while nothing else happens, before the fork."""
_EVERY = 0.001
"""Seconds from one line to the next, unless an answer takes longer."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """How a source stood still: as its programs saw it, and as the reply tells, in seconds."""

    silence: float
    told: float
    quiet: float
    children: int


def forks(lab: Lab) -> Measured:
    """Measure forks with 64 MiB in use against cold boots: one child, then 32 of one pause."""
    count = lab.rounds(_FAN, 4)
    with lab.sandbox(template=True) as source:
        boots = cold(lab, lab.recipe(source))
        family = _Family(lab, source)
        warm, rounds, fans = lab.rounds(1, 0), lab.rounds(8, 2), lab.rounds(3, 1)
        single = [family.silence(1) for _ in range(warm + rounds)][warm:]
        replies = [family.answer(1) for _ in range(warm + rounds)][warm:]
        fan = [family.silence(count) for _ in range(fans)]
        fan_replies = [family.answer(count) for _ in range(fans)]
    silence = Series("longest silence of the source", "s", [it.silence for it in single])
    told = Series("the pause that the reply tells", "s", [it.told for it in single])
    quiet = Series("longest silence before", "s", [it.quiet for it in single])
    answer = Series("request to reply, the source idle: the child runs and has its identity", "s",
                    replies)  # fmt: skip
    fan_silence = Series(f"{count} children: longest silence of the source", "s",
                         [it.silence for it in fan])  # fmt: skip
    fan_reply = Series(f"{count} children: request to reply, the source idle", "s", fan_replies)
    return Measured(
        "Fork of a sandbox with 64 MiB in use",
        [boots, silence, told, quiet, answer, fan_silence, fan_reply],
        [
            part_of("fork: the source stands still, of a cold boot", silence, boots, _PAUSE_PART),
            part_of("fork: the child's answer, of a cold boot", answer, boots, _ANSWER_PART),
            part_of(f"{count} children: it stands still, of a cold boot", fan_silence, boots,
                    _PAUSE_PART),
            Check("children of one pause", min(it.children for it in fan), count, "",
                  at_most=False),
        ],
        "The silence is that of a program in the source which is asked for a line every "
        "millisecond; it has a line's round trip in it, and the times that its programs are frozen "
        "before and after. Replies are timed in other forks, in which nobody asks it for anything. "
        "Each child told its own machine id, each only child the digest of the 64 MiB, too.",
    )  # fmt: skip


class _Family:
    """Takes samples of forks of one source, the children of which are checked and removed."""

    def __init__(self, lab: Lab, source: SandboxInfo) -> None:
        self._lab = lab
        self._source = source
        self._filled = lab.hutch.run("exec", source.name, "sh", "-c", _FILL).text

    def answer(self, children: int) -> float:
        """Fork while the source is idle; return the seconds until the reply."""

        async def sample(client: AsyncClient) -> float:
            await client.info()  # so that its connection is there
            started = time.monotonic()
            forked = await client.fork(self._source.id, count=children)
            reply = time.monotonic() - started
            await self._meet(client, forked)
            return reply

        return self._lab.with_client(sample)

    def silence(self, children: int) -> _Sample:
        """Fork while a program in the source is asked for lines all the time."""

        async def sample(client: AsyncClient) -> _Sample:
            forking: list[float] = []
            done = asyncio.Event()
            async with _echo(client, self._source) as ask:

                async def go_on_asking() -> None:
                    while not done.is_set():
                        forking.append(await ask())
                        await asyncio.sleep(_EVERY - forking[-1])

                quiet = [await ask() for _ in range(_STILL)][1:]
                async with asyncio.TaskGroup() as group:
                    group.create_task(go_on_asking())
                    forked = await client.fork(self._source.id, count=children)
                    done.set()
            await self._meet(client, forked)
            told = forked.pause_seconds
            return _Sample(max(forking), told, max(quiet), len(forked.children))

        return self._lab.with_client(sample)

    async def _meet(self, client: AsyncClient, forked: Forked) -> None:
        """Check that all children are what they are to be, and remove them."""
        assert not forked.failed, forked
        for child in forked.children:
            try:
                await tell_marker(client, child)
                if len(forked.children) == 1:
                    box = AsyncSandbox(child, client, owned=False, own_client=False)
                    said = await box.commands.run("sha256sum </dev/shm/dirty")
                    assert said.stdout.strip() == self._filled, (said, self._filled)
            finally:
                await client.remove(child.id, force=True)


@asynccontextmanager
async def _echo(
    client: AsyncClient, source: SandboxInfo
) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """Have what asks a program in the source for a line, and tells how long that took."""
    box = AsyncSandbox(source, client, owned=False, own_client=False)
    async with await box.commands.run(["cat"], stdin=True, background=True) as echo:

        async def ask() -> float:
            started = time.monotonic()
            await echo.send_stdin(b"x\n")
            async for chunk in echo:
                assert chunk.data == b"x\n", chunk
                break
            return time.monotonic() - started

        yield ask
