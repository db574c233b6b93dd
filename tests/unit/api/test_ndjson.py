import asyncio

import pytest

from hutch.api.ndjson import ProgressFeed
from hutch.errors import NotFound
from hutch.models import Progress
from hutch.sdk import AsyncClient
from tests.unit.api.conftest import given_up
from tests.unit.api.fake_operations import FakeOperations


async def test_progress_then_the_result(api: str) -> None:
    steps: list[Progress] = []
    async with AsyncClient(socket=api) as client:
        image = await client.images.pull("debian", on_progress=steps.append)
    assert image.references == ["debian"]
    assert {step.id: step.done for step in steps} == {"sha256:0": 998, "sha256:1": 999}


async def test_an_error_after_the_head(api: str) -> None:
    async with AsyncClient(socket=api) as client:
        with pytest.raises(NotFound, match="nosuch") as caught:
            await client.images.pull("nosuch")
        assert caught.value.hint == "check its name"
        with pytest.raises(Exception, match="ZeroDivisionError") as bug:
            await client.images.pull("bug")
        assert bug.value.code == "internal"  # type: ignore[attr-defined]


async def test_a_client_that_closes_cancels_the_work(api: str, fake: FakeOperations) -> None:
    async with AsyncClient(socket=api) as client:
        await given_up(client.images.pull("hang"), fake.images.started)
    async with asyncio.timeout(60):
        await fake.images.cancelled.wait()


async def test_followed_events_end_with_their_client(api: str, fake: FakeOperations) -> None:
    seen = []
    async with AsyncClient(socket=api) as client:
        events = client.events(since=1, follow=True)
        async for event in events:
            seen.append(event.seq)
            if event.seq == 2:
                break
        await events.aclose()  # type: ignore[attr-defined]
    assert seen == [1, 2]
    async with asyncio.timeout(60):
        await fake.sandboxes.cancelled.wait()


async def test_a_slow_client_costs_no_memory() -> None:
    feed = ProgressFeed()
    for done in range(100_000):
        feed.report(Progress("pull", f"layer {done % 3}", done))
    feed.end()
    assert [step.done async for step in feed] == [99_999, 99_997, 99_998]
