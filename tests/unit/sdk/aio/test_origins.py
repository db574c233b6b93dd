import pytest

from hutch.errors import InvalidInput
from hutch.models import Progress
from hutch.sdk import AsyncClient


async def test_images_and_kernels(api: str) -> None:
    async with AsyncClient(socket=api) as client:
        assert (await client.images.list())[0].architecture == "amd64"
        assert (await client.images.inspect("busybox")).config.workdir == "/"
        assert (await client.images.prune()).removed == []
        assert (await client.images.remove("busybox")).bytes == 10
        assert (await client.kernels.list())[0].active
        assert (await client.kernels.use("6.1")).name == "6.1"
        assert (await client.kernels.load("/x", name="n")).name == "n"
        assert (await client.kernels.remove("6.1")).removed == ["6.1"]


async def test_what_takes_long_tells_how_far_it_is(api: str) -> None:
    async with AsyncClient(socket=api) as client:
        steps: list[Progress] = []
        assert (await client.images.pull("x", on_progress=steps.append)).references == ["x"]
        assert {step.stage for step in steps} == {"pull"}
        pool = await client.pools.warm("busybox", 2, wait=False)
        assert [info.id for info in await client.pools.list()] == [pool.id]
        with pytest.raises(InvalidInput):
            await client.pools.warm("busybox", 0)
