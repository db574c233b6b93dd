"""A fake agent, a session with it, and a guest whose every byte the test chooses."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hutch.guest.base import Guest
from hutch.guest.fake import FakeAgent
from hutch.guest.session import connect_guest
from tests.unit.guest.scripted import ScriptedGuest


@pytest.fixture
async def agent(short_tmp: Path) -> AsyncIterator[FakeAgent]:
    async with FakeAgent(short_tmp / "agent.sock", ready=True) as agent:
        yield agent


@pytest.fixture
async def guest(agent: FakeAgent) -> AsyncIterator[Guest]:
    guest = await connect_guest(agent.path, timeout=60)
    yield guest
    await guest.close()


@pytest.fixture
async def scripted(short_tmp: Path) -> AsyncIterator[ScriptedGuest]:
    async with ScriptedGuest(short_tmp / "scripted.sock") as scripted:
        yield scripted
