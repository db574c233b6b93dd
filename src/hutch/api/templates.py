"""Routes of templates."""

from fastapi import APIRouter, Response

from hutch.api.bodies import TemplateBuildBody
from hutch.api.images import LINES
from hutch.api.ndjson import long_work
from hutch.api.operations import Operations
from hutch.api.responses import answer
from hutch.models import Removed, SandboxSpec, TemplateInfo


def routes(operations: Operations) -> APIRouter:
    """Return the routes of this module."""
    router = APIRouter(prefix="/v1/templates", tags=["templates"])
    templates = operations.templates

    @router.get("", response_model=list[TemplateInfo])
    async def list_templates() -> Response:
        return answer(list(await templates.list()))

    @router.post("/build", response_class=Response, responses=LINES)
    async def build_template(body: TemplateBuildBody) -> Response:
        spec = SandboxSpec(
            body.image,
            idle=True,
            cpus=body.cpus,
            memory=body.memory,
            kernel=body.kernel,
            pull=body.pull,
        )
        return long_work(lambda report: templates.build(spec, report))

    @router.delete("", response_model=Removed)
    async def remove_template(ref: str) -> Response:
        return answer(await templates.remove(ref))

    @router.post("/prune", response_model=Removed)
    async def prune_templates() -> Response:
        return answer(await templates.prune())

    return router
