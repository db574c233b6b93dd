import asyncio

import pytest

from hutch.errors import Conflict, InvalidInput
from hutch.models import Progress, SandboxSpec, SandboxState
from hutch.sdk import AsyncClient
from tests.unit.api.conftest import given_up
from tests.unit.api.fake_operations import FakeOperations
from tests.waiting import until


async def test_a_life(api: str) -> None:
    async with AsyncClient(socket=api) as client:
        steps: list[Progress] = []
        spec = SandboxSpec("busybox", "two", idle=True)
        info = await client.create(spec, on_progress=steps.append)
        assert info.state is SandboxState.RUNNING
        assert [step.stage for step in steps] == ["pull"]
        assert (await client.rename("two", "three")).name == "three"
        assert (await client.stop("three", timeout=1)).state is SandboxState.STOPPED
        assert [info.name for info in await client.list()] == ["box"]
        assert len(await client.list(all=True)) == 2
        assert [info.name for info in await client.list(states=("stopped",))] == ["three"]
        assert (await client.start("three")).state is SandboxState.RUNNING
        assert (await client.pause("three")).state is SandboxState.PAUSED
        assert (await client.resume("three")).state is SandboxState.RUNNING
        assert (await client.park("three")).state is SandboxState.PARKED
        assert (await client.resume("three")).state is SandboxState.RUNNING
        assert (await client.kill("three")).exit is not None
        assert (await client.restart("three")).state is SandboxState.RUNNING
        with pytest.raises(Conflict):
            await client.remove("three")
        assert (await client.remove("three", force=True)).removed == [info.id]


async def test_a_cancelled_create_leaves_nothing(api: str, fake: FakeOperations) -> None:
    fake.sandboxes.create_gate = asyncio.Event()
    async with AsyncClient(socket=api) as client:
        await given_up(client.create(SandboxSpec("busybox")), fake.sandboxes.waiting)
        await until(fake.sandboxes.cancelled.is_set)
        with pytest.raises(InvalidInput):
            await client.create(SandboxSpec("busybox", cpus="x"))  # type: ignore[arg-type]


async def test_the_daemon(api: str) -> None:
    async with AsyncClient(socket=api) as client:
        assert (await client.info()).running == 1
        assert (await client.doctor())[0].name == "qemu"
        assert (await client.settings())["cpus"]["value"] == 1
        assert [event.seq async for event in client.events(since=1)] == [1, 2]
