"""Routes of checkpoints: moments that a sandbox can be put back to itself, and compared with."""

from fastapi import APIRouter, Request, Response

from hutch.api.bodies import CheckpointBody, UndoBody
from hutch.api.operations import Operations
from hutch.api.responses import answer, until_gone
from hutch.models import SandboxInfo, SnapshotInfo
from hutch.reports import Checkpoint, Difference


def routes(operations: Operations) -> APIRouter:
    """Return the routes of this module."""
    router = APIRouter(prefix="/v1", tags=["checkpoints"])
    checkpoints = operations.checkpoints

    @router.get("/sandboxes/{ref}/checkpoints", response_model=list[Checkpoint])
    async def list_checkpoints(ref: str) -> Response:
        return answer(list(await checkpoints.list(ref)))

    @router.post("/sandboxes/{ref}/checkpoints", status_code=201, response_model=SnapshotInfo)
    async def create_checkpoint(
        request: Request, ref: str, body: CheckpointBody | None = None
    ) -> Response:
        why = body or CheckpointBody()
        work = checkpoints.create(ref, message=why.message, command=why.command)
        return answer(await until_gone(request, work), 201)

    @router.post("/sandboxes/{ref}/undo", response_model=SandboxInfo)
    async def undo_sandbox(ref: str, body: UndoBody | None = None) -> Response:
        how = body or UndoBody()
        return answer(await checkpoints.undo(ref, how.number, to=how.to))

    @router.get("/diff", response_model=Difference)
    async def diff(request: Request, before: str, after: str | None = None) -> Response:
        return answer(await until_gone(request, operations.diffs.diff(before, after)))

    return router
