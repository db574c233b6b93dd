"""Routes of sandboxes: their lives, and what they say of themselves."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from hutch.api.bodies import KillBody, RenameBody, StartBody, StopBody
from hutch.api.operations import Operations, SandboxFilter
from hutch.api.responses import answer, until_gone
from hutch.images.base import no_report
from hutch.models import Removed, SandboxInfo, SandboxSpec, SandboxState
from hutch.reports import ProcessInfo, SandboxStats


def routes(operations: Operations) -> APIRouter:
    """Return the routes of this module."""
    router = APIRouter(prefix="/v1/sandboxes", tags=["sandboxes"])
    sandboxes = operations.sandboxes

    @router.post("", status_code=201, response_model=SandboxInfo)
    async def create_sandbox(request: Request, spec: SandboxSpec) -> Response:
        return answer(await until_gone(request, sandboxes.create(spec, no_report)), 201)

    @router.get("", response_model=list[SandboxInfo])
    async def list_sandboxes(
        everything: Annotated[bool, Query(alias="all")] = False,
        label: Annotated[list[str], Query()] = [],  # noqa: B006 - read for the schema only
        state: Annotated[list[SandboxState], Query()] = [],  # noqa: B006 - as above
        name: str | None = None,
        image: str | None = None,
    ) -> Response:
        which = SandboxFilter(everything, tuple(state), tuple(label), name, image)
        return answer(list(await sandboxes.list(which)))

    @router.get("/{ref}", response_model=SandboxInfo)
    async def inspect_sandbox(ref: str) -> Response:
        return answer(await sandboxes.get(ref))

    @router.delete("/{ref}", response_model=Removed)
    async def remove_sandbox(ref: str, force: bool = False) -> Response:
        return answer(await sandboxes.remove(ref, force=force))

    @router.post("/{ref}/start", response_model=SandboxInfo)
    async def start_sandbox(request: Request, ref: str, body: StartBody | None = None) -> Response:
        how = body or StartBody()
        return answer(await until_gone(request, sandboxes.start(ref, template=how.template)))

    _add_rests(router, operations)
    _add_ends(router, operations)
    _add_views(router, operations)
    return router


def _add_rests(router: APIRouter, operations: Operations) -> None:
    sandboxes = operations.sandboxes

    @router.post("/{ref}/pause", response_model=SandboxInfo)
    async def pause_sandbox(ref: str) -> Response:
        return answer(await sandboxes.pause(ref))

    @router.post("/{ref}/resume", response_model=SandboxInfo)
    async def resume_sandbox(ref: str) -> Response:
        return answer(await sandboxes.resume(ref))

    @router.post("/{ref}/park", response_model=SandboxInfo)
    async def park_sandbox(ref: str) -> Response:
        return answer(await sandboxes.park(ref))


def _add_ends(router: APIRouter, operations: Operations) -> None:
    sandboxes = operations.sandboxes

    @router.post("/{ref}/stop", response_model=SandboxInfo)
    async def stop_sandbox(ref: str, body: StopBody | None = None) -> Response:
        how = body or StopBody()
        return answer(await sandboxes.stop(ref, timeout=how.timeout, signal=how.signal))

    @router.post("/{ref}/restart", response_model=SandboxInfo)
    async def restart_sandbox(ref: str, body: StopBody | None = None) -> Response:
        how = body or StopBody()
        return answer(await sandboxes.restart(ref, timeout=how.timeout, signal=how.signal))

    @router.post("/{ref}/kill", response_model=SandboxInfo)
    async def kill_sandbox(ref: str, body: KillBody | None = None) -> Response:
        return answer(await sandboxes.kill(ref, signal=(body or KillBody()).signal))

    @router.post("/{ref}/rename", response_model=SandboxInfo)
    async def rename_sandbox(ref: str, body: RenameBody) -> Response:
        return answer(await sandboxes.rename(ref, body.name))

    @router.get("/{ref}/wait", response_model=SandboxInfo)
    async def wait_for_sandbox(
        request: Request, ref: str, timeout: Annotated[float | None, Query(ge=0)] = None
    ) -> Response:
        return answer(await until_gone(request, sandboxes.wait(ref, timeout=timeout)))


def _add_views(router: APIRouter, operations: Operations) -> None:
    sandboxes = operations.sandboxes

    @router.get("/{ref}/stats", response_model=SandboxStats)
    async def sandbox_stats(ref: str) -> Response:
        return answer(await sandboxes.stats(ref))

    @router.get("/{ref}/processes", response_model=list[ProcessInfo])
    async def sandbox_processes(ref: str) -> Response:
        return answer(list(await sandboxes.processes(ref)))
