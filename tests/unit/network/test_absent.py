"""A host without networks: it says why, and attaches nobody."""

from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.network.absent import NoNetwork
from hutch.network.base import Attachment, Network
from hutch.networking import NetworkPolicy


async def test_it_refuses_and_says_why() -> None:
    network: Network = NoNetwork("there is no tap", "load it")
    await network.open()
    assert not network.ability.taps
    with pytest.raises(HutchError, match="there is no tap") as caught:
        await network.attach(Attachment("sb_1", "web", Path("/dev/null")))
    assert (caught.value.code, caught.value.hint) == ("network_missing", "load it")
    with pytest.raises(HutchError, match="there is no tap"):
        await network.update("sb_1", NetworkPolicy())


async def test_nothing_is_there() -> None:
    network = NoNetwork()
    await network.adopt([])
    await network.detach("sb_1")
    assert await network.info("sb_1") is None
    assert await network.connections("sb_1") == ()
    assert [record async for record in network.records()] == []
    await network.close()
    await network.stop()
