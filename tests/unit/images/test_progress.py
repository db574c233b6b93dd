"""Progress from threads, and the end of threads."""

import asyncio
import threading

import pytest

from hutch.images.base import no_report
from hutch.images.progress import Meter, Stopped, in_metered_thread
from tests.unit.images.making import Reports


async def test_reports_come_on_the_loop_and_not_too_often(reports: Reports) -> None:
    meter = Meter(reports, "s", "i", 10_000)

    def work(meter: Meter) -> str:
        for _ in range(10_000):
            meter.advance(1)
        return "result"

    assert await in_metered_thread(meter, work) == "result"
    meter.finish()
    assert len(reports) < 100
    assert (reports[-1].done, reports[-1].total, reports[-1].message) == (10_000, 10_000, "done")


async def test_cancelling_ends_the_thread_before_it_returns() -> None:
    meter = Meter(no_report, "s", "i")
    began, cleaned = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work(meter: Meter) -> None:
        loop.call_soon_threadsafe(began.set)
        try:
            while True:
                meter.advance(1)
        finally:
            cleaned.set()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(in_metered_thread(meter, work))
        await began.wait()
        task.cancel()
    assert task.cancelled()
    assert cleaned.is_set()
    with pytest.raises(Stopped):
        meter.advance(1)


async def test_errors_of_the_thread_come_through() -> None:
    def work(meter: Meter) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await in_metered_thread(Meter(no_report, "s", "i"), work)
