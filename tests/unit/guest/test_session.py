import asyncio
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.guest.base import Guest
from hutch.guest.fake import FakeAgent
from hutch.guest.frames import FrameType, Preamble, PreambleKind
from hutch.guest.session import connect_guest
from tests.unit.guest.scripted import ScriptedGuest, message


async def test_a_socket_that_does_not_listen_yet_is_waited_for(short_tmp: Path) -> None:
    path = short_tmp / "late.sock"
    async with asyncio.TaskGroup() as group:
        connecting = group.create_task(connect_guest(path, timeout=60))
        await asyncio.sleep(0)
        agent = FakeAgent(path)
        await agent.start()
    assert connecting.result().info.stage == "boot"
    await connecting.result().close()
    await agent.stop()


async def test_a_socket_that_never_comes(short_tmp: Path) -> None:
    with pytest.raises(HutchError) as caught:
        await connect_guest(short_tmp / "none.sock", timeout=0.1)
    assert caught.value.code == "guest_timeout"


async def test_a_first_event_that_is_not_hello(scripted: ScriptedGuest) -> None:
    async with asyncio.TaskGroup() as group:
        connecting = group.create_task(code_of(scripted))
        hello = await scripted.hello()
        scripted.send(Preamble(PreambleKind.WELCOME, 1, hello.nonce).encode())
        scripted.send(message(FrameType.EVENT, 0, {"event": "oom"}))
    assert connecting.result() == "guest_protocol"


async def code_of(scripted: ScriptedGuest) -> str:
    with pytest.raises(HutchError) as caught:
        await connect_guest(scripted.path, timeout=60)
    return caught.value.code


async def test_a_cancelled_connect_leaves_no_connection(agent: FakeAgent) -> None:
    agent.silent = True
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(connect_guest(agent.path, timeout=60), 0.1)
    agent.silent = False
    guest = await connect_guest(agent.path, timeout=60)
    await guest.close()


async def test_events_go_on_until_the_connection_ends(agent: FakeAgent, guest: Guest) -> None:
    agent.emit("oom", exec_id="a", process="p", count=1)
    events = guest.events()
    first = await anext(aiter(events))
    assert (first.kind, dict(first.fields)) == ("oom", {"exec_id": "a", "process": "p", "count": 1})
    asyncio.get_running_loop().call_soon(agent.disconnect)
    assert [event async for event in events] == []
    assert guest.closed
