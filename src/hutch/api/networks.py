"""Routes of networks: what sandboxes may reach, changed while they run, and what they tried."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Response

from hutch.api.images import LINES
from hutch.api.ndjson import MEDIA_TYPE
from hutch.api.operations import Operations
from hutch.api.responses import ByteStream, answer, encode
from hutch.networking import (
    Connection,
    NetworkChange,
    NetworkChanged,
    NetworkInfo,
    NetworkRecord,
)


def routes(operations: Operations) -> APIRouter:
    """Return the routes of this module."""
    router = APIRouter(prefix="/v1/sandboxes/{ref}/network", tags=["networks"])
    networks = operations.networks

    @router.get("", response_model=NetworkInfo)
    async def show_network(ref: str) -> Response:
        return answer(await networks.show(ref))

    @router.patch("", response_model=NetworkChanged)
    async def update_network(ref: str, change: NetworkChange) -> Response:
        return answer(await networks.update(ref, change))

    @router.get("/connections", response_model=list[Connection])
    async def list_connections(ref: str) -> Response:
        return answer(list(await networks.connections(ref)))

    @router.get("/log", response_class=Response, responses=LINES)
    async def network_log(
        ref: str,
        since: int | None = None,
        tail: Annotated[int | None, Query(ge=0)] = None,
        follow: bool = False,
    ) -> Response:
        records = networks.log(ref, since=since, tail=tail, follow=follow)
        return ByteStream(_lines(records), MEDIA_TYPE)

    return router


async def _lines(records: AsyncIterator[NetworkRecord]) -> AsyncIterator[bytes]:
    async for record in records:
        yield encode({"record": record}) + b"\n"
