"""Routes of pools."""

from fastapi import APIRouter, Response

from hutch.api.bodies import PoolWarmBody
from hutch.api.images import LINES
from hutch.api.ndjson import long_work
from hutch.api.operations import Operations
from hutch.api.responses import answer
from hutch.models import PoolInfo, Removed, SandboxSpec


def routes(operations: Operations) -> APIRouter:
    """Return the routes of this module."""
    router = APIRouter(prefix="/v1/pools", tags=["pools"])
    pools = operations.pools

    @router.get("", response_model=list[PoolInfo])
    async def list_pools() -> Response:
        return answer(list(await pools.list()))

    @router.post("/warm", response_class=Response, responses=LINES)
    async def warm_pool(body: PoolWarmBody) -> Response:
        spec = SandboxSpec(
            body.image, idle=True, cpus=body.cpus, memory=body.memory, pull=body.pull
        )
        return long_work(lambda report: pools.warm(spec, body.size, report, wait=body.wait))

    @router.delete("", response_model=Removed)
    async def drain_pools(image: str | None = None) -> Response:
        return answer(await pools.drain(image))

    return router
