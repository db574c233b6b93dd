"""Routes of checkpoints: moments that a sandbox can be put back to itself."""

from fastapi import APIRouter, Request, Response

from hutch.api.bodies import CheckpointBody, UndoBody
from hutch.api.operations import Operations
from hutch.api.responses import answer, until_gone
from hutch.models import SandboxInfo, SnapshotInfo
from hutch.reports import Checkpoint


def routes(operations: Operations) -> APIRouter:
    """Return the routes of this module."""
    router = APIRouter(prefix="/v1/sandboxes/{ref}", tags=["checkpoints"])
    checkpoints = operations.checkpoints

    @router.get("/checkpoints", response_model=list[Checkpoint])
    async def list_checkpoints(ref: str) -> Response:
        return answer(list(await checkpoints.list(ref)))

    @router.post("/checkpoints", status_code=201, response_model=SnapshotInfo)
    async def create_checkpoint(
        request: Request, ref: str, body: CheckpointBody | None = None
    ) -> Response:
        why = body or CheckpointBody()
        work = checkpoints.create(ref, message=why.message, command=why.command)
        return answer(await until_gone(request, work), 201)

    @router.post("/undo", response_model=SandboxInfo)
    async def undo_sandbox(ref: str, body: UndoBody | None = None) -> Response:
        how = body or UndoBody()
        return answer(await checkpoints.undo(ref, how.number, to=how.to))

    return router
