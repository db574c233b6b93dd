"""The routes of pools, and what the SDK makes of them."""

import pytest

from hutch.errors import InvalidInput, NotFound
from hutch.models import Progress
from hutch.sdk import AsyncClient
from tests.unit.api.contract import ask, refused

BASE = "/v1/pools"


async def test_the_routes(api: str) -> None:
    assert await ask(api, "GET", BASE) == []
    assert (await refused(api, "DELETE", BASE, {"image": "no"})).code == "pool_not_found"
    assert (await ask(api, "DELETE", BASE))["removed"] == []


async def test_the_sdk(api: str) -> None:
    steps: list[Progress] = []
    async with AsyncClient(socket=api) as client:
        one = await client.pools.warm("busybox", 2, cpus=2, on_progress=steps.append)
        assert (one.image, one.size, one.ready, one.cpus) == ("busybox", 2, 2, 2)
        two = await client.pools.warm("debian", wait=False)
        assert (two.ready, two.filling) == (0, 1)
        assert two.error is not None
        assert two.error.code == "no_capacity"
        with pytest.raises(InvalidInput):
            await client.pools.warm("debian", 0)
        assert [info.id for info in await client.pools.list()] == [one.id, two.id]
        assert (await client.pools.drain("busybox")).removed == [one.id]
        assert (await client.pools.drain()).removed == [two.id]
        with pytest.raises(NotFound):
            await client.pools.drain("debian")
    assert [step.message for step in steps] == ["2 of 2 ready"]
