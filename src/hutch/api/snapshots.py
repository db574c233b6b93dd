"""Routes of snapshots and forks."""

import contextlib
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from hutch.api.bodies import ForkBody, RestoreBody, SnapshotBody, SnapshotCollectBody
from hutch.api.files import body_of
from hutch.api.operations import Operations
from hutch.api.responses import ByteStream, answer, opened, until_gone
from hutch.errors import error
from hutch.models import Forked, Removed, SandboxInfo, SnapshotInfo
from hutch.service.sealing import Key, no_key

MEDIA_TYPE: Final = "application/x-hutch-snapshot"

_FILE: dict[int | str, dict[str, Any]] = {
    200: {"content": {MEDIA_TYPE: {}}, "description": "the snapshot, as one file"}
}


KEY_HEADER: Final = "hutch-snapshot-key"
"""Carries the key of what is encrypted, in base64. Never in a URL, which others log."""

KEY_OPTIONAL: Final = "hutch-snapshot-key-optional"
"""Beside a key: it may be of no use, which is refused otherwise."""


def key_of(request: Request, *, needed: bool = False) -> Key | None:
    """Return the key that a request carries. Raises bad_request, wrong_key where it is `needed`."""
    text = request.headers.get(KEY_HEADER)
    if text is not None:
        return Key.from_text(text, optional=KEY_OPTIONAL in request.headers)
    if needed:
        raise no_key("the snapshot is to be encrypted")
    return None


def _encryption(request: Request, encrypt: bool) -> Key | None:
    """Return the key to encrypt with. Raises bad_request for one that nothing is done with."""
    key = key_of(request, needed=encrypt)
    if key is not None and not encrypt:
        raise error("bad_request", "a key was given, and nothing is to be encrypted")
    return key


def routes(operations: Operations) -> APIRouter:
    """Return the routes of this module."""
    router = APIRouter(prefix="/v1", tags=["snapshots"])
    snapshots = operations.snapshots

    @router.get("/snapshots", response_model=list[SnapshotInfo])
    async def list_snapshots(sandbox: str | None = None, checkpoints: bool = False) -> Response:
        return answer(list(await snapshots.list(sandbox, checkpoints=checkpoints)))

    @router.post("/snapshots", status_code=201, response_model=SnapshotInfo)
    async def create_snapshot(request: Request, body: SnapshotBody) -> Response:
        work = snapshots.create(
            body.sandbox,
            name=body.name,
            disk_only=body.disk_only,
            freeze=body.freeze,
            key=_encryption(request, body.encrypt),
        )
        return answer(await until_gone(request, work), 201)

    @router.post("/snapshots/gc", response_model=Removed)
    async def collect_snapshots(body: SnapshotCollectBody) -> Response:
        return answer(await snapshots.collect(body.keep, body.sandbox))

    @router.get("/snapshots/{ref}", response_model=SnapshotInfo)
    async def inspect_snapshot(ref: str) -> Response:
        return answer(await snapshots.get(ref))

    @router.delete("/snapshots/{ref}", response_model=Removed)
    async def remove_snapshot(ref: str) -> Response:
        return answer(await snapshots.remove(ref))

    @router.post("/snapshots/{ref}/restore", status_code=201, response_model=SandboxInfo)
    async def restore_snapshot(
        request: Request, ref: str, body: RestoreBody | None = None
    ) -> Response:
        how = body or RestoreBody()
        key = key_of(request)
        work = snapshots.restore(ref, how.name, disk_only=how.disk_only, key=key)
        return answer(await until_gone(request, work), 201)

    @router.get("/snapshots/{ref}/export", response_class=Response, responses=_FILE)
    async def export_snapshot(request: Request, ref: str, encrypt: bool = False) -> Response:
        key = _encryption(request, encrypt)
        return ByteStream(await opened(snapshots.export(ref, key)), MEDIA_TYPE)

    @router.post("/snapshots/import", status_code=201, response_model=SnapshotInfo)
    async def import_snapshot(request: Request, name: str | None = None) -> Response:
        async with contextlib.aclosing(body_of(request)) as body:
            return answer(await snapshots.load(body, name, key_of(request)), 201)

    @router.post("/sandboxes/{ref}/fork", status_code=201, response_model=Forked)
    async def fork_sandbox(request: Request, ref: str, body: ForkBody | None = None) -> Response:
        how = body or ForkBody()
        work = operations.forks.fork(ref, how.names, how.count)
        return answer(await until_gone(request, work), 201)

    return router
