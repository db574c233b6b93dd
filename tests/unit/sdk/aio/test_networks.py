import pytest

from hutch.errors import InvalidInput
from hutch.networking import NetworkMode, NetworkPolicy
from hutch.sdk import AsyncClient, AsyncSandbox


async def test_shown_changed_and_told(api: str) -> None:
    async with AsyncClient(socket=api) as client:
        box = await AsyncSandbox.connect("box", client=client)
        assert (await box.network.show()).policy == NetworkPolicy()
        changed = await box.network.update(
            mode="deny", allow=["a.example.com"], deny=["x.example.com"], allow_host=[80]
        )
        policy = NetworkPolicy(NetworkMode.DENY, ["a.example.com"], ["x.example.com"], [80])
        assert (changed.network.policy, changed.ended) == (policy, 1)
        changed = await box.network.update(remove=["a.example.com"], close_host=[80])
        assert (changed.network.policy.allow, changed.network.policy.allow_host) == ([], [])
        assert (await box.network.update("open")).network.policy.mode is NetworkMode.OPEN
        with pytest.raises(InvalidInput):
            await box.network.update(allow=["bad"])
        assert [each.name for each in await box.network.connections()] == ["a.example.com"]
        assert [each.number async for each in box.network.log()] == [1, 2]
        assert [each.number async for each in box.network.log(tail=1)] == [2]


async def test_made_with_one(api: str) -> None:
    async with AsyncClient(socket=api) as client:
        policy = NetworkPolicy(NetworkMode.DENY, ["a.example.com"])
        async with await AsyncSandbox.create("busybox", network=policy, client=client) as box:
            assert box.info.network == policy
        async with await AsyncSandbox.create("busybox", network="none", client=client) as box:
            assert box.info.network.mode is NetworkMode.NONE
