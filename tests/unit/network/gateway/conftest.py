import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from hutch.network.gateway.limits import DEFAULTS, Limits
from hutch.networking import NetworkPolicy
from tests.unit.network.gateway.world import World


@pytest.fixture
async def worlds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Awaitable[World]]]:
    async with contextlib.AsyncExitStack() as stack:

        async def make(policy: NetworkPolicy | None, limits: Limits = DEFAULTS) -> World:
            world = World(tmp_path, monkeypatch)
            await world.open(policy, limits)
            stack.push_async_callback(world.close)
            return world

        yield make
