"""Routes of published ports."""

from fastapi import APIRouter, Response

from hutch.api.bodies import PublishBody
from hutch.api.operations import Operations
from hutch.api.responses import answer
from hutch.networking import PublishedPort


def routes(operations: Operations) -> APIRouter:
    """Return the routes of this module."""
    router = APIRouter(prefix="/v1/sandboxes/{ref}/ports", tags=["ports"])
    ports = operations.ports

    @router.get("", response_model=list[PublishedPort])
    async def list_ports(ref: str) -> Response:
        return answer(list(await ports.list(ref)))

    @router.post("", status_code=201, response_model=list[PublishedPort])
    async def publish_ports(ref: str, body: PublishBody) -> Response:
        return answer(list(await ports.publish(ref, body.ports)), 201)

    @router.delete("/{host_port}", response_model=list[PublishedPort])
    async def unpublish_port(ref: str, host_port: int, address: str | None = None) -> Response:
        return answer(list(await ports.unpublish(ref, host_port, address)))

    return router
