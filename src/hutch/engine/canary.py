"""The canary: a short boot that proves an accelerator and measures the guest's TSC rate.

With `hutch.canary` on its command line the guest agent prints its counter every 10 ms for some
seconds and powers off. Set against the host's monotonic clock that gives a rate good to a few parts
in a hundred thousand, where the MHz of /proc/cpuinfo are those of the moment.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hutch.engine.base import ExitKind, Machine
from hutch.errors import EngineError, error
from hutch.models import CpuInfo

CMDLINE = ("hutch.canary", "loglevel=6")
_LINE = re.compile(rb"hutch-canary tsc=(\d{1,20})\s")
_LINE_LIMIT = 4096
_SAMPLE_LIMIT = 1000
_SAMPLES_NEEDED = 20
_SPAN_NEEDED = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """A reading of the guest's counter, and the monotonic time (s) at which it arrived."""

    host: float
    tsc: int


class SampleReader:
    """Finds the readings in a console's chunks; whatever else the guest writes costs no memory."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._rest = b""

    def __call__(self, now: float, data: bytes) -> None:
        """Take a chunk that arrived at `now`."""
        head, newline, rest = (self._rest + data).rpartition(b"\n")
        if newline:
            self.samples += [Sample(now, int(tsc)) for tsc in _LINE.findall(head + newline)]
            del self.samples[_SAMPLE_LIMIT:]
        self._rest = rest[-_LINE_LIMIT:]


@dataclass(frozen=True, slots=True)
class Trial:
    """What a canary has told: the readings of its counter, and the CPU that it saw."""

    samples: Sequence[Sample]
    cpu: CpuInfo


async def collect(
    start: Callable[[SampleReader], Awaitable[Machine]], *, limit: float, stall: float
) -> Trial:
    """Boot a canary with `start` and return what it tells; the machine is gone afterwards.

    It has `limit` seconds in all, and must write something every `stall` seconds. Raises
    EngineError.
    """
    reader = SampleReader()
    machine = await start(reader)
    loop = asyncio.get_running_loop()
    end = loop.time() + limit
    try:
        async with asyncio.timeout(min(stall, limit)) as deadline:
            cpu = await _cpu(machine)
            async for _ in machine.console_progress():
                deadline.reschedule(min(loop.time() + stall, end))
            outcome = await machine.wait()
    except TimeoutError:
        what = f"did not end within {limit:g} s"
        if loop.time() < end:
            what = f"made no progress in {stall:g} s"
        raise error("engine_failed", f"a canary VM {what}") from None
    finally:
        await machine.kill()
    if outcome.kind is not ExitKind.POWEROFF:
        detail = f": {outcome.message}" if outcome.message else ""
        raise error("engine_failed", f"a canary VM ended with a {outcome.kind.value}{detail}")
    if cpu is None:
        raise error("engine_failed", "a canary VM ended before it was asked for its CPU")
    return Trial(reader.samples, cpu)


async def _cpu(machine: Machine) -> CpuInfo | None:
    """Return what CPU it sees; None for one that is gone, the reason of which is its end's."""
    try:
        return await machine.cpu()
    except EngineError as cause:
        if cause.code != "sandbox_died":
            raise
        return None


def calibrate(samples: Sequence[Sample]) -> int:
    """Return the counter's rate in kHz. Raises ValueError when the readings cannot tell.

    A reading arrives late, never early. So the line sought is the one below all points that lies
    closest to them: the edge of their lower convex hull under the mean, which the least delayed
    readings make up.
    """
    if len(samples) < _SAMPLES_NEEDED:
        raise ValueError(f"{len(samples)} readings of the counter, {_SAMPLES_NEEDED} are needed")
    if any(later.tsc <= earlier.tsc for earlier, later in pairwise(samples)):
        raise ValueError("the counter went backwards")
    first = samples[0]
    points = [(s.tsc - first.tsc, s.host - first.host) for s in samples]
    if points[-1][1] < _SPAN_NEEDED:
        raise ValueError(f"the readings cover {points[-1][1]:.2f} s, {_SPAN_NEEDED:g} s are needed")
    mean = sum(x for x, _ in points) / len(points)
    hull = _lower_hull(points)
    (x1, y1), (x2, y2) = next((a, b) for a, b in pairwise(hull) if a[0] <= mean <= b[0])
    if y2 <= y1:
        raise ValueError("the readings arrived all at once")
    return round((x2 - x1) / (y2 - y1) / 1000)


def _lower_hull(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    hull: list[tuple[int, float]] = []
    for x, y in points:
        while len(hull) > 1:
            (x1, y1), (x2, y2) = hull[-2:]
            if (x2 - x1) * (y - y1) > (y2 - y1) * (x - x1):
                break
            hull.pop()
        hull.append((x, y))
    return hull
