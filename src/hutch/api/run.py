"""The WebSocket `/v1/run`: create, start and attach in one connection.

A client that goes away before its program runs takes everything back: nothing is left of the
sandbox. From then on it is an exec's client like any other. Messages: spec/api.md.
"""

import asyncio
import contextlib
from dataclasses import dataclass, replace

from fastapi import APIRouter
from starlette.websockets import WebSocket

from hutch.api.bodies import RunStart, validated
from hutch.api.ndjson import ProgressFeed
from hutch.api.operations import ExecSession, Operations
from hutch.api.relay import Relay
from hutch.api.sockets import Client, first_message, serve, until_lost
from hutch.errors import NotFound
from hutch.models import ExecOutcome, ExitStatus, SandboxInfo, SandboxState, StopReason
from hutch.tasks import Scope


def routes(operations: Operations) -> APIRouter:
    """Return the routes of this module."""
    router = APIRouter()

    async def handle(client: Client, socket: WebSocket) -> None:
        request = validated(RunStart, await first_message(client))
        async with Scope("run") as scope:
            launched = await _launch(operations, client, request, scope)
            if launched is None:
                return
            outcome = await Relay(client, launched.main).run()
            if outcome is not None:
                await client.send({"stopped": await launched.ended or launched.last(outcome)})

    async def run(socket: WebSocket) -> None:
        await serve(socket, handle)

    router.add_websocket_route("/v1/run", run)
    return router


@dataclass(frozen=True, slots=True)
class _Launched:
    """A sandbox that runs, its main process, and the wait for its end."""

    info: SandboxInfo
    main: ExecSession
    ended: asyncio.Task[SandboxInfo | None]

    def last(self, outcome: ExecOutcome) -> SandboxInfo:
        """Return what became of one that had removed itself before it could be waited for."""
        status = ExitStatus(StopReason.EXITED, outcome.exit_code)
        return replace(self.info, state=SandboxState.STOPPED, exit=status)


async def _launch(
    operations: Operations, client: Client, request: RunStart, scope: Scope
) -> _Launched | None:
    """Create and start while the client is there; return what is attached, if that was asked."""
    launched: _Launched | None = None
    created: SandboxInfo | None = None

    async def wait(ref: str) -> SandboxInfo | None:
        try:
            return await operations.sandboxes.wait(ref)
        except NotFound:
            return None

    async def work() -> None:
        nonlocal launched, created
        created = await _create(operations, client, request)
        await client.send({"created": created})
        if request.attach:
            info, main = await operations.sandboxes.start_attached(created.id, size=request.size)
            # At once, as a sandbox that removes itself is not found after its end.
            launched = _Launched(info, main, scope.start("wait", wait(info.id)))
        else:
            info = await operations.sandboxes.start(created.id, size=request.size)
        await client.send({"running": info})

    try:
        await until_lost(client, work)
    except BaseException:
        await _undo(operations, created, launched)
        raise
    return launched


async def _create(operations: Operations, client: Client, request: RunStart) -> SandboxInfo:
    feed = ProgressFeed()

    async def tell() -> None:
        async for step in feed:
            await client.send({"progress": step})

    async with asyncio.TaskGroup() as group:
        group.create_task(tell())
        try:
            spec = replace(request.spec, provisional=True)
            return await operations.sandboxes.create(spec, feed.report)
        finally:
            feed.end()


async def _undo(
    operations: Operations, created: SandboxInfo | None, launched: _Launched | None
) -> None:
    if launched is not None:
        await launched.main.close(detach=True)
    if created is not None:
        with contextlib.suppress(NotFound):
            await operations.sandboxes.remove(created.id, force=True)
