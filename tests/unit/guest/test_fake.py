"""What the fake promises beyond the protocol; test_conformance.py holds it to that."""

import asyncio
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.guest.base import ExecResult, Guest, GuestExec
from hutch.guest.fake import FakeAgent
from hutch.guest.session import connect_guest


async def test_state_outlives_the_agent_s_connections(agent: FakeAgent, guest: Guest) -> None:
    await guest.files.mkdir("/data/d")
    agent.disconnect()
    await asyncio.wait_for(guest.wait_closed(), 60)
    again = await connect_guest(agent.path, timeout=60)
    assert (await again.files.stat("/data/d")).name == "d"
    await again.close()


async def test_a_silent_agent_answers_nothing(agent: FakeAgent, guest: Guest) -> None:
    agent.silent = True
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(guest.ping(), 0.05)


async def test_stopping_removes_the_socket(short_tmp: Path) -> None:
    async with FakeAgent(short_tmp / "a.sock", ready=True) as agent:
        guest = await connect_guest(agent.path, timeout=60)
        await guest.spawn_exec(GuestExec("s", ["sleep", "600"]))
    await asyncio.wait_for(guest.wait_closed(), 60)
    assert list(short_tmp.glob("*.sock")) == []


async def test_what_does_not_exist_is_unsupported(guest: Guest) -> None:
    call = guest._link.call  # type: ignore[attr-defined]
    for request, code in (({"op": "x"}, "unsupported"), ({}, "bad_request")):
        operation = "fly" if code == "unsupported" else "exec.signal"
        with pytest.raises(HutchError) as caught:
            await call(operation, "x", request | {"op": operation}, dict, seconds=5)
        assert caught.value.details["guest_code"] == code


async def test_only_the_latest_ended_sessions_are_kept(agent: FakeAgent, guest: Guest) -> None:
    for number in range(260):
        stream = await guest.start_exec(GuestExec(f"e{number}", ["true"]))
        assert isinstance([event async for event in stream][-1], ExecResult)
    assert len(agent.sessions) == 256
    assert "e259" in agent.sessions
