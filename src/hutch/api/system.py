"""Routes of the daemon itself."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Response

from hutch.api.bodies import DaemonStopBody
from hutch.api.images import LINES
from hutch.api.ndjson import event_lines
from hutch.api.operations import Operations
from hutch.api.responses import answer
from hutch.reports import Check, DaemonInfo, HostUsage


def routes(operations: Operations, on_stop: Callable[[], None]) -> APIRouter:
    """Return the routes of this module. `on_stop` ends the server."""
    router = APIRouter(prefix="/v1", tags=["system"])
    system = operations.system

    @router.get("/daemon", response_model=DaemonInfo)
    async def daemon_info() -> Response:
        return answer(await system.info())

    @router.post("/daemon/stop", status_code=202, response_class=Response)
    async def stop_daemon(body: DaemonStopBody | None = None) -> Response:
        stop_sandboxes = (body or DaemonStopBody()).stop_sandboxes
        await system.request_stop(stop_sandboxes=stop_sandboxes)
        on_stop()
        return Response(status_code=202)

    @router.get("/usage", response_model=HostUsage)
    async def usage() -> Response:
        return answer(await system.usage())

    @router.get("/doctor", response_model=list[Check])
    async def doctor() -> Response:
        return answer(list(await system.doctor()))

    @router.get("/settings", response_model=dict[str, dict[str, Any]])
    async def settings() -> Response:
        return answer(system.settings())

    @router.get("/events", response_class=Response, responses=LINES)
    async def events(since: int | None = None, follow: bool = False) -> Response:
        return event_lines(system.events(since=since, follow=follow))

    return router
