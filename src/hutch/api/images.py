"""Routes of the image store."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response

from hutch.api.bodies import BuildBody, LoadBody, PruneBody, PullBody
from hutch.api.ndjson import MEDIA_TYPE, long_work
from hutch.api.operations import Operations
from hutch.api.responses import answer
from hutch.content import ImageInfo
from hutch.models import Removed

LINES: dict[int | str, dict[str, Any]] = {
    200: {"content": {MEDIA_TYPE: {}}, "description": "progress, then a result or an error"}
}


def routes(operations: Operations) -> APIRouter:
    """Return the routes of this module."""
    router = APIRouter(prefix="/v1/images", tags=["images"])
    images = operations.images

    @router.get("", response_model=list[ImageInfo])
    async def list_images() -> Response:
        return answer(list(await images.list()))

    @router.get("/inspect", response_model=ImageInfo)
    async def inspect_image(ref: str) -> Response:
        return answer(await images.inspect(ref))

    @router.delete("", response_model=Removed)
    async def remove_image(ref: str, force: bool = False) -> Response:
        return answer(await images.remove(ref, force=force))

    @router.post("/prune", response_model=Removed)
    async def prune_images(body: PruneBody | None = None) -> Response:
        return answer(await images.prune(everything=(body or PruneBody()).all))

    @router.post("/pull", response_class=Response, responses=LINES)
    async def pull_image(body: PullBody) -> Response:
        return long_work(lambda report: images.pull(body.reference, report))

    @router.post("/load", response_class=Response, responses=LINES)
    async def load_image(body: LoadBody) -> Response:
        return long_work(lambda report: images.load(Path(body.path), report, tag=body.tag))

    @router.post("/build", response_class=Response, responses=LINES)
    async def build_image(body: BuildBody) -> Response:
        dockerfile = None if body.dockerfile is None else Path(body.dockerfile)
        return long_work(
            lambda report: images.build(
                Path(body.context), report, tag=body.tag, dockerfile=dockerfile, args=body.args
            )
        )

    return router
