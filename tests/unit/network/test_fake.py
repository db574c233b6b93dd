"""The network that the tests of the service use does as its Protocol says, and fails when told."""

import os
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.network.base import Attachment, Network
from hutch.network.fake import FakeNetwork
from hutch.networking import NetworkLayer, NetworkMode, NetworkPolicy, NetworkRecord, Reason

DENY = NetworkPolicy(NetworkMode.DENY)


def attachment(policy: NetworkPolicy | None = None) -> Attachment:
    return Attachment("sb_1", "web", Path("/dev/null"), policy)


async def test_attached_updated_detached() -> None:
    fake = FakeNetwork()
    network: Network = fake
    await network.open()
    os.close(await network.attach(attachment()))
    assert fake.policies == {"sb_1": None}
    assert await network.update("sb_1", DENY) == 0
    info = await network.info("sb_1")
    assert info is not None
    assert (info.name, info.attached, info.policy) == ("web", True, DENY)
    await network.detach("sb_1")
    await network.detach("sb_1")
    assert (fake.attached, fake.policies) == ({}, {})
    assert await network.info("sb_1") is None
    with pytest.raises(HutchError, match="not attached"):
        await network.update("sb_1", DENY)


async def test_adopt_removes_all_others() -> None:
    fake = FakeNetwork()
    os.close(await fake.attach(attachment()))
    await fake.adopt([Attachment("sb_2", "db", Path("/dev/null"), DENY)])
    assert fake.policies == {"sb_2": DENY}
    await fake.stop()
    assert fake.stopped
    assert fake.policies == {}


async def test_it_fails_as_often_as_it_is_told() -> None:
    fake = FakeNetwork()
    fake.failing["attach"] = 1
    with pytest.raises(HutchError, match="lets attach fail"):
        await fake.attach(attachment())
    assert fake.attached == {}
    os.close(await fake.attach(attachment()))
    assert fake.told == [("attach", "sb_1"), ("attach", "sb_1")]


async def test_what_is_decided_is_told() -> None:
    fake = FakeNetwork()
    record = NetworkRecord(1, "now", "sb_1", NetworkLayer.DNS, False, Reason.NOT_ALLOWED)
    fake.decide(record)
    async for told in fake.records():
        assert told == record
        break
