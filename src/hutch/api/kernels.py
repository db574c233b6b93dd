"""Routes of the kernel store."""

from pathlib import Path

from fastapi import APIRouter, Response

from hutch.api.bodies import KernelLoadBody, KernelPullBody, KernelUseBody
from hutch.api.images import LINES
from hutch.api.ndjson import long_work
from hutch.api.operations import Operations
from hutch.api.responses import answer
from hutch.content import KernelInfo
from hutch.models import Removed


def routes(operations: Operations) -> APIRouter:
    """Return the routes of this module."""
    router = APIRouter(prefix="/v1/kernels", tags=["kernels"])
    kernels = operations.kernels

    @router.get("", response_model=list[KernelInfo])
    async def list_kernels() -> Response:
        return answer(list(await kernels.list()))

    @router.post("/use", response_model=KernelInfo)
    async def use_kernel(body: KernelUseBody) -> Response:
        return answer(await kernels.use(body.name))

    @router.post("/load", response_model=KernelInfo)
    async def load_kernel(body: KernelLoadBody) -> Response:
        modules = None if body.modules is None else Path(body.modules)
        return answer(await kernels.load(Path(body.path), modules=modules, name=body.name))

    @router.delete("", response_model=Removed)
    async def remove_kernel(name: str) -> Response:
        return answer(await kernels.remove(name))

    @router.post("/pull", response_class=Response, responses=LINES)
    async def pull_kernel(body: KernelPullBody | None = None) -> Response:
        package = None if body is None else body.package
        return long_work(lambda report: kernels.pull(report, package=package))

    return router
