"""Many clones of one template at once: what each takes of memory and processor, running and paused.

Memory is the kernel's proportional set size, read by the benchmark itself and compared with Hutch's
own account; it is taken after each machine has run a command, so that what starting a program costs
is in it.
"""

import asyncio
import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hutch.models import SandboxInfo, SandboxState
from hutch.sdk import AsyncClient
from tests.bench.lab import Lab, Session, cpu_seconds
from tests.bench.lives import tell_marker
from tests.bench.samples import Check, Measured, Series

_RUNNING, _PAUSED = 40, 100
_AT_ONCE = 2
_SETTLE, _WINDOW = 12.0, 20.0
"""QEMU's own threads end when they had nothing to do for 10 s; then a machine is at rest."""
_MIB = 1 << 20
_MEMORY_LIMIT = 30.0
_IDLE_LIMIT = 0.5
_ACCOUNT = 0.05
"""How far Hutch's account of all memory may be from ours, which is taken a moment later."""


def density(lab: Lab) -> Measured:
    """Measure 40 clones that run, then 100 that are paused (4 and 8 in a quick run)."""
    running, paused = lab.rounds(_RUNNING, 4), lab.rounds(_PAUSED, 8)
    with lab.session() as session, _herd(session) as herd:
        _grow(lab, session, herd, running)
        time.sleep(_SETTLE)
        idle = _processor(herd, _WINDOW)
        memory = [_proportional(info) / _MIB for info in herd]
        _compare(session, memory)
        session(lambda client: _prove(client, herd))
        session(lambda client: _pause(client, herd))
        time.sleep(_SETTLE)
        still = _processor(herd, _SETTLE)
        while len(herd) < paused:
            fresh = _grow(lab, session, herd, min(_AT_ONCE, paused - len(herd)))
            session(functools.partial(_pause, herd=fresh))
        time.sleep(_SETTLE)
        still_all = _processor(herd, _SETTLE)
        rest = [_proportional(info) / _MIB for info in herd]
        session(lambda client: _prove_paused(client, herd))
    used = Series(f"PSS of each of {running} running clones", "MiB", memory)
    share = Series(f"processor time of each of {running} idle clones", "% of one core", idle)
    none = Series(f"processor time of each of {paused} paused clones", "%", [*still, *still_all])
    rested = Series(f"PSS of each of {paused} paused clones", "MiB", rest)
    return Measured(
        f"Density: {running} running and {paused} paused clones",
        [used, share, none, rested],
        [
            Check("memory of a running clone, the largest", max(memory), _MEMORY_LIMIT, "MiB"),
            Check("processor time of an idle clone, median", share.median, _IDLE_LIMIT, "%"),
            Check("processor time of a paused clone, the most", max(none.samples), 0.0, "%"),
            Check("paused clones at once", len(rest), paused, "", at_most=False),
        ],
        f"Sandboxes of the default sizes. Each has run one command before; idle is {_WINDOW:g} s,"
        f" after {_SETTLE:g} s of rest. All ran a command of their own afterwards, the paused ones"
        " (a sample of them) by being woken with it.",
    )


@contextmanager
def _herd(session: Session) -> Iterator[list[SandboxInfo]]:
    made: list[SandboxInfo] = []
    try:
        yield made
    finally:
        session(lambda client: _remove(client, made))


async def _remove(client: AsyncClient, herd: Sequence[SandboxInfo]) -> None:
    for info in herd:
        await client.remove(info.id, force=True)


def _grow(lab: Lab, session: Session, herd: list[SandboxInfo], count: int) -> list[SandboxInfo]:
    """Make `count` more, each of which has run a command, and return them."""

    async def make(client: AsyncClient, turns: asyncio.Semaphore) -> SandboxInfo:
        async with turns:
            info = await client.create(lab.spec(template=True))
            herd.append(info)
            await tell_marker(client, info)
        assert info.template is not None, "it is no clone"
        return info

    async def make_all(client: AsyncClient) -> list[SandboxInfo]:
        turns = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(make(client, turns)) for _ in range(count)]
        return [task.result() for task in tasks]

    return session(make_all)


def _processor(herd: Sequence[SandboxInfo], seconds: float) -> list[float]:
    """Return the share of one core that each machine uses in that time, in percent."""
    pids = [_pid(info) for info in herd]
    before, started = [cpu_seconds(pid) for pid in pids], time.monotonic()
    assert all(used > 0 for used in before), "a machine is gone, or nobody keeps account"
    time.sleep(seconds)
    passed = time.monotonic() - started
    return [
        100 * (cpu_seconds(pid) - used) / passed for pid, used in zip(pids, before, strict=True)
    ]


def _proportional(info: SandboxInfo) -> int:
    text = Path(f"/proc/{_pid(info)}/smaps_rollup").read_text()
    (size,) = (line.split()[1] for line in text.splitlines() if line.startswith("Pss:"))
    return int(size) << 10


def _pid(info: SandboxInfo) -> int:
    assert info.pid is not None
    return info.pid


def _compare(session: Session, memory: Sequence[float]) -> None:
    """Check that Hutch tells the same of all machines together."""
    usage = session(lambda client: client.usage())
    told = sum(each.memory for each in usage.sandboxes) / _MIB
    assert abs(told - sum(memory)) <= _ACCOUNT * told, (told, sum(memory))


async def _pause(client: AsyncClient, herd: Sequence[SandboxInfo]) -> None:
    for info in herd:
        await client.pause(info.id)


async def _prove(client: AsyncClient, herd: Sequence[SandboxInfo]) -> None:
    for info in herd:
        await tell_marker(client, info)


async def _prove_paused(client: AsyncClient, herd: Sequence[SandboxInfo]) -> None:
    """Check that all are paused, and that some of them go on when they are used."""
    for info in herd:
        now = await client.get(info.id)
        assert now.state is SandboxState.PAUSED, now
    await _prove(client, herd[:: max(1, len(herd) // 10)])
