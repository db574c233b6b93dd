import asyncio
import os

import pytest

from hutch.errors import HutchError
from hutch.guest.base import Guest
from hutch.guest.fake import FakeAgent


async def test_bytes_go_both_ways_and_ends_too(agent: FakeAgent, guest: Guest) -> None:
    agent.services[80] = b"welcome\n"
    tunnel = await guest.tunnel(80)
    payload = os.urandom(5 << 20)
    received = bytearray()

    async def send() -> None:
        await tunnel.write(payload)
        await tunnel.write_eof()

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        while data := await tunnel.read():
            received += data
    assert bytes(received) == b"welcome\n" + payload
    assert await tunnel.read() == b""
    await asyncio.wait_for(tunnel.finished(), 60)
    await tunnel.finished()
    await tunnel.close()


async def test_a_port_where_nobody_listens(guest: Guest) -> None:
    with pytest.raises(HutchError, match=r"port 81 of 127.0.0.1") as caught:
        await guest.tunnel(81)
    assert caught.value.code == "guest_refused"


async def test_a_closed_tunnel_wakes_its_reader(agent: FakeAgent, guest: Guest) -> None:
    agent.services[80] = b""
    tunnel = await guest.tunnel(80)
    asyncio.get_running_loop().call_soon(agent.disconnect)
    with pytest.raises(HutchError) as caught:
        await asyncio.wait_for(tunnel.read(), 60)
    assert caught.value.code == "sandbox_died"
    with pytest.raises(HutchError):
        await asyncio.wait_for(tunnel.finished(), 60)
