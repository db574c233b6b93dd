"""Whether somebody uses a sandbox, and since when nobody has."""

import asyncio
import time

import pytest

from hutch.service.activity import Activity
from tests.waiting import until


def test_each_use_counts() -> None:
    activity = Activity()
    assert not activity.busy
    activity.begin("a")
    activity.begin("a")
    with activity.use(), activity.use():
        activity.end("a")
        activity.end("never begun")
        assert activity.busy
    assert not activity.busy


async def test_idle_is_the_time_since_the_last_use() -> None:
    activity = Activity()
    idle = asyncio.ensure_future(activity.until_idle(0.3))
    await asyncio.sleep(0)
    with activity.use():
        await asyncio.sleep(0.4)
        assert not idle.done()
        left = time.monotonic()
    await idle
    assert time.monotonic() - left >= 0.3


async def test_a_touch_counts_anew() -> None:
    activity = Activity()
    activity.since -= 100
    await asyncio.wait_for(activity.until_idle(50), 60)
    activity.touch()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(activity.until_idle(50), 0.05)


async def test_one_timer_however_often_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    activity = Activity()
    sleeps = []
    sleep = asyncio.sleep

    async def counted(seconds: float) -> None:
        sleeps.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr("hutch.service.activity.asyncio.sleep", counted)
    idle = asyncio.ensure_future(activity.until_idle(0.2))
    await until(lambda: sleeps)
    for _ in range(1000):
        with activity.use():
            pass
    await idle
    assert len(sleeps) <= 3
