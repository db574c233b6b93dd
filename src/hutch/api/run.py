"""The WebSocket `/v1/run`: create, start and attach in one connection.

A client that goes away before its program runs takes everything back: nothing is left of the
sandbox. From then on it is an exec's client like any other. Messages: spec/api.md.
"""

import asyncio
import contextlib

from fastapi import APIRouter
from starlette.websockets import WebSocket

from hutch.api.bodies import RunStart, validated
from hutch.api.ndjson import ProgressFeed
from hutch.api.operations import ExecSession, Operations
from hutch.api.relay import Relay
from hutch.api.sockets import Client, first_message, serve, until_lost
from hutch.errors import NotFound
from hutch.models import SandboxInfo
from hutch.tasks import Scope


def routes(operations: Operations) -> APIRouter:
    """Return the routes of this module."""
    router = APIRouter()

    async def handle(client: Client, socket: WebSocket) -> None:
        request = validated(RunStart, await first_message(client))
        session = await _launch(operations, client, request)
        if session is None:
            return
        info, main = session
        async with Scope("run") as scope:
            # From before its end, as a sandbox that removes itself is not found after it.
            ended = scope.start("wait", operations.sandboxes.wait(info.id))
            if await Relay(client, main).run():
                await client.send({"stopped": await ended})

    async def run(socket: WebSocket) -> None:
        await serve(socket, handle)

    router.add_websocket_route("/v1/run", run)
    return router


async def _launch(
    operations: Operations, client: Client, request: RunStart
) -> tuple[SandboxInfo, ExecSession] | None:
    """Create and start while the client is there; return what is attached, if that was asked."""
    attached: tuple[SandboxInfo, ExecSession] | None = None
    created: SandboxInfo | None = None

    async def work() -> None:
        nonlocal attached, created
        created = await _create(operations, client, request)
        await client.send({"created": created})
        if request.attach:
            attached = await operations.sandboxes.start_attached(created.id, size=request.size)
            running = attached[0]
        else:
            running = await operations.sandboxes.start(created.id, size=request.size)
        await client.send({"running": running})

    try:
        await until_lost(client, work)
    except BaseException:
        await _undo(operations, created, attached)
        raise
    return attached


async def _create(operations: Operations, client: Client, request: RunStart) -> SandboxInfo:
    feed = ProgressFeed()

    async def tell() -> None:
        async for step in feed:
            await client.send({"progress": step})

    async with asyncio.TaskGroup() as group:
        group.create_task(tell())
        try:
            return await operations.sandboxes.create(request.spec, feed.report)
        finally:
            feed.end()


async def _undo(
    operations: Operations,
    created: SandboxInfo | None,
    attached: tuple[SandboxInfo, ExecSession] | None,
) -> None:
    if attached is not None:
        await attached[1].close(detach=True)
    if created is not None:
        with contextlib.suppress(NotFound):
            await operations.sandboxes.remove(created.id, force=True)
