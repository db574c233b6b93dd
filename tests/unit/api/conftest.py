"""A real server on a real unix socket, over operations in memory, for both kinds of client."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from hutch.api.app import create_app
from hutch.api.server import ApiServer, listen
from hutch.images.base import no_report
from hutch.models import SandboxSpec
from hutch.sdk.aio.transport import Transport
from hutch.tasks import Scope
from tests.unit.api.fake_operations import FakeOperations

T = TypeVar("T")


@asynccontextmanager
async def serving(operations: FakeOperations, path: Path) -> AsyncIterator[ApiServer]:
    """Serve `operations` at `path` until the end of the block."""
    stopping, ready = asyncio.Event(), asyncio.Event()
    server = ApiServer(create_app(operations, on_stop=stopping.set), stopping)
    async with Scope("server", grace=10) as scope:
        scope.start("serve", server.run_on(listen(path), ready.set))
        await ready.wait()
        try:
            yield server
        finally:
            server.stop()


async def given_up(request: Coroutine[Any, Any, Any], begun: asyncio.Event) -> None:
    """Send a request, and cancel it once the server has begun with it."""
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        task = group.create_task(request)
        await begun.wait()
        task.cancel()


async def with_box(operations: FakeOperations) -> FakeOperations:
    """Put a running, idle sandbox `box` into `operations`."""
    info = await operations.sandboxes.create(SandboxSpec("busybox", "box", idle=True), no_report)
    await operations.sandboxes.start(info.id)
    return operations


@pytest.fixture
async def fake() -> AsyncIterator[FakeOperations]:
    """Operations with a running sandbox `box`."""
    async with FakeOperations() as operations:
        yield await with_box(operations)


@pytest.fixture
async def api(fake: FakeOperations, short_tmp: Path) -> AsyncIterator[str]:
    """The path of a socket that serves `fake` in this event loop."""
    path = short_tmp / "api.sock"
    async with serving(fake, path):
        yield str(path)


@pytest.fixture
async def transport(api: str) -> AsyncIterator[Transport]:
    """A client's connections to `api`."""
    made = Transport(socket=api)
    yield made
    await made.close()


class Served:
    """A server in a thread of its own, for clients that block."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.fake: FakeOperations
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._end: asyncio.Event
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._live()])

    async def _live(self) -> None:
        self._end = asyncio.Event()
        async with FakeOperations() as self.fake, serving(self.fake, Path(self.path)):
            await with_box(self.fake)
            self._ready.set()
            await self._end.wait()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine where the server is."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    def __enter__(self) -> "Served":
        self._thread.start()
        assert self._ready.wait(timeout=60)
        return self

    def stop(self) -> None:
        """End the server; once is enough."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(timeout=60)
            assert not self._thread.is_alive()
            self._loop.close()

    def __exit__(self, *exc: object) -> None:
        self.stop()


@pytest.fixture
def served(short_tmp: Path) -> Iterator[Served]:
    """A server in a thread of its own."""
    with Served(short_tmp / "api.sock") as running:
        yield running
