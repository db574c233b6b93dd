"""A real server on a real unix socket, over operations in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hutch.api.app import create_app
from hutch.api.server import ApiServer, listen
from hutch.tasks import Scope
from tests.unit.api.fake_operations import FakeOperations


@asynccontextmanager
async def serving(operations: FakeOperations, path: Path) -> AsyncIterator[ApiServer]:
    """Serve `operations` at `path` until the end of the block."""
    server = ApiServer(create_app(operations, on_stop=lambda: server.stop()))
    ready = asyncio.Event()
    async with Scope("server", grace=10) as scope:
        scope.start("serve", server.run_on(listen(path), ready.set))
        await ready.wait()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
async def fake() -> AsyncIterator[FakeOperations]:
    async with FakeOperations() as operations:
        yield operations


@pytest.fixture
async def api(fake: FakeOperations, short_tmp: Path) -> AsyncIterator[Path]:
    """The path of a socket that serves `fake`."""
    path = short_tmp / "api.sock"
    async with serving(fake, path):
        yield path
