import asyncio

import pytest

from hutch.errors import HutchError
from hutch.guest.base import Guest
from hutch.guest.fake import FakeAgent


async def test_streams_need_a_root(agent: FakeAgent, guest: Guest) -> None:
    agent.stage = "root"
    with pytest.raises(HutchError) as caught:
        await anext(aiter(guest.files.read("/etc/hostname")))
    assert caught.value.details["guest_code"] == "not_ready"


async def test_an_empty_file_ends_at_once(agent: FakeAgent, guest: Guest) -> None:
    agent.files.nodes["/etc/hostname"].data = b""
    assert [part async for part in guest.files.read("/etc/hostname")] == []


async def test_a_window_of_data_waits_for_credit(agent: FakeAgent, guest: Guest) -> None:
    agent.files.nodes["/etc/hostname"].data = bytes(3 << 20)
    chunks = guest.files.read("/etc/hostname")
    sizes = []
    async with asyncio.timeout(60):
        async for part in chunks:
            sizes.append(len(part))
    assert sum(sizes) == 3 << 20
