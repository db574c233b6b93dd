"""Routes of files in sandboxes: metadata, whole files and tar trees, streamed both ways.

Paths are any bytes but NUL: in queries percent-encoded, in JSON with lone surrogates for what is no
UTF-8.
"""

import contextlib
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Query, Request, Response
from starlette.requests import ClientDisconnect

from hutch.api.bodies import (
    ChmodBody,
    ChownBody,
    MkdirBody,
    MoveBody,
    RemoveBody,
    SymlinkBody,
)
from hutch.api.operations import FileEntry, Operations
from hutch.api.responses import ByteStream, answer, encode, opened
from hutch.errors import error
from hutch.models import FileInfo

_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}, "description": "the bytes"}
}
_TAR: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/x-tar": {}}, "description": "a tar stream"}
}


def file_info(path: str, entry: FileEntry) -> FileInfo:
    """Return the public value of an entry at `path`; a time that no calendar has becomes 1970."""
    try:
        moment = datetime.fromtimestamp(entry.mtime_ns / 1e9, UTC)
    except (ValueError, OverflowError, OSError):
        moment = datetime.fromtimestamp(0, UTC)
    modified = moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
    return FileInfo(
        name=entry.name,
        path=path,
        type=entry.type.value,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        size=entry.size,
        modified_at=modified,
        target=entry.target,
    )


def exact(request: Request, name: str) -> str:
    """Return a query parameter with its bytes kept. Raises InvalidInput (bad_request)."""
    query = request.url.query
    for key, value in parse_qsl(query, keep_blank_values=True, errors="surrogateescape"):
        if key == name and "\0" not in value:
            return value
    raise error("bad_request", f"query.{name}: not a path")


def octal(text: str | None) -> int | None:
    """Return a mode written in octal. Raises InvalidInput (bad_request)."""
    if text is None:
        return None
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o7777:
        raise error("bad_request", f"query.mode: {text!r} is no octal mode", hint="as in mode=644")
    return mode


async def body_of(request: Request) -> AsyncGenerator[bytes, None]:
    """Yield the pieces of a request's body. Raises DaemonError (cancelled) when it is cut off."""
    try:
        async for piece in request.stream():
            if piece:
                yield piece
    except ClientDisconnect:
        raise error("cancelled", "the client went away in the middle of its upload") from None


def routes(operations: Operations) -> APIRouter:
    """Return the routes of this module."""
    router = APIRouter(prefix="/v1/sandboxes/{ref}", tags=["files"])
    _add_contents(router, operations)
    _add_archives(router, operations)
    _add_lookups(router, operations)
    _add_changes(router, operations)
    return router


def _add_contents(router: APIRouter, operations: Operations) -> None:
    @router.get("/files", response_class=Response, responses=_BYTES)
    async def read_file(
        request: Request,
        ref: str,
        path: str,
        offset: Annotated[int, Query(ge=0)] = 0,
        length: Annotated[int | None, Query(ge=0)] = None,
    ) -> Response:
        files = await operations.files.of(ref)
        pieces = files.read(exact(request, "path"), offset=offset, length=length)
        return ByteStream(await opened(pieces))

    @router.put("/files", response_model=dict[str, int])
    async def write_file(
        request: Request,
        ref: str,
        path: str,
        mode: str | None = None,
        uid: int | None = None,
        gid: int | None = None,
        append: bool = False,
        parents: bool = False,
        exclusive: bool = False,
    ) -> Response:
        files = await operations.files.of(ref)
        async with contextlib.aclosing(body_of(request)) as body:
            size = await files.write(
                exact(request, "path"),
                body,
                mode=octal(mode),
                uid=uid,
                gid=gid,
                append=append,
                parents=parents,
                exclusive=exclusive,
            )
        return answer({"bytes": size})


def _add_archives(router: APIRouter, operations: Operations) -> None:
    @router.get("/archive", response_class=Response, responses=_TAR)
    async def read_archive(
        request: Request, ref: str, path: str, name: str | None = None, follow: bool = False
    ) -> Response:
        files = await operations.files.of(ref)
        where = exact(request, "path")
        entry = file_info(where, await files.stat(where, follow=follow))
        top = None if name is None else exact(request, "name")
        pieces = await opened(files.read_tar(where, name=top, follow=follow))
        headers = {"hutch-entry": encode(entry).decode("ascii")}
        return ByteStream(pieces, "application/x-tar", headers)

    @router.put("/archive", response_model=dict[str, int])
    async def write_archive(
        request: Request,
        ref: str,
        path: str,
        uid: int | None = None,
        gid: int | None = None,
        parents: bool = False,
    ) -> Response:
        files = await operations.files.of(ref)
        async with contextlib.aclosing(body_of(request)) as body:
            entries = await files.write_tar(
                exact(request, "path"), body, uid=uid, gid=gid, parents=parents
            )
        return answer({"entries": entries})


def _add_lookups(router: APIRouter, operations: Operations) -> None:
    @router.get("/files/stat", response_model=FileInfo)
    async def stat_file(request: Request, ref: str, path: str, follow: bool = True) -> Response:
        files = await operations.files.of(ref)
        where = exact(request, "path")
        return answer(file_info(where, await files.stat(where, follow=follow)))

    @router.get("/files/list", response_model=list[FileInfo])
    async def list_files(request: Request, ref: str, path: str) -> Response:
        files = await operations.files.of(ref)
        where = exact(request, "path")
        base = where.rstrip("/")
        found = [file_info(f"{base}/{entry.name}", entry) async for entry in files.list(where)]
        return answer(sorted(found, key=lambda info: info.name))


def _add_changes(router: APIRouter, operations: Operations) -> None:
    @router.post("/files/mkdir", status_code=204, response_class=Response)
    async def make_directory(ref: str, body: MkdirBody) -> Response:
        files = await operations.files.of(ref)
        await files.mkdir(
            body.path, mode=body.mode, parents=body.parents, uid=body.uid, gid=body.gid
        )
        return Response(status_code=204)

    @router.post("/files/remove", status_code=204, response_class=Response)
    async def remove_file(ref: str, body: RemoveBody) -> Response:
        await (await operations.files.of(ref)).remove(body.path, recursive=body.recursive)
        return Response(status_code=204)

    @router.post("/files/rename", status_code=204, response_class=Response)
    async def rename_file(ref: str, body: MoveBody) -> Response:
        files = await operations.files.of(ref)
        await files.rename(body.source, body.target, replace=body.replace)
        return Response(status_code=204)

    @router.post("/files/chmod", status_code=204, response_class=Response)
    async def change_mode(ref: str, body: ChmodBody) -> Response:
        files = await operations.files.of(ref)
        await files.chmod(body.path, body.mode, recursive=body.recursive)
        return Response(status_code=204)

    @router.post("/files/chown", status_code=204, response_class=Response)
    async def change_owner(ref: str, body: ChownBody) -> Response:
        files = await operations.files.of(ref)
        await files.chown(
            body.path, body.uid, body.gid, recursive=body.recursive, follow=body.follow
        )
        return Response(status_code=204)

    @router.post("/files/symlink", status_code=204, response_class=Response)
    async def make_symlink(ref: str, body: SymlinkBody) -> Response:
        await (await operations.files.of(ref)).symlink(body.target, body.path)
        return Response(status_code=204)
