"""Routes of programs in sandboxes, but for their streams (streams.py)."""

from dataclasses import replace

from fastapi import APIRouter, Response

from hutch.api.bodies import SignalBody
from hutch.api.operations import Operations
from hutch.api.responses import answer
from hutch.models import ExecInfo, ExecSpec


def routes(operations: Operations) -> APIRouter:
    """Return the routes of this module."""
    router = APIRouter(prefix="/v1/sandboxes/{ref}/execs", tags=["execs"])
    execs = operations.execs

    @router.get("", response_model=list[ExecInfo])
    async def list_execs(ref: str) -> Response:
        return answer(list(await execs.list(ref)))

    @router.post("", status_code=201, response_model=ExecInfo)
    async def spawn_exec(ref: str, spec: ExecSpec) -> Response:
        return answer(await execs.spawn(ref, replace(spec, detached=True)), 201)

    @router.get("/{exec_id}", response_model=ExecInfo)
    async def inspect_exec(ref: str, exec_id: str) -> Response:
        return answer(await execs.get(ref, exec_id))

    @router.post("/{exec_id}/signal", status_code=204, response_class=Response)
    async def signal_exec(ref: str, exec_id: str, body: SignalBody) -> Response:
        await execs.signal(ref, exec_id, body.signal, everything=body.all)
        return Response(status_code=204)

    return router
