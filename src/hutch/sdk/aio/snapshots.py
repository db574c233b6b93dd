"""The snapshots of a daemon: made, restored, and carried from host to host as files."""

import os
from collections.abc import AsyncIterator

from hutch.models import Removed, SandboxInfo, SnapshotInfo, from_json
from hutch.sdk.aio.transport import Transport, file_pieces, write_file
from hutch.sdk.http1 import Query, key_header, quote


class AsyncSnapshots:
    """Points in time of sandboxes, by id, name or unique id prefix."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(
        self, sandbox: str | None = None, *, checkpoints: bool = False
    ) -> list[SnapshotInfo]:
        """Return all snapshots, oldest first, or those of one sandbox; with its checkpoints."""
        query: Query = {"sandbox": sandbox, "checkpoints": checkpoints}
        answer = await self._transport.request("GET", "/v1/snapshots", query)
        return [from_json(SnapshotInfo, item) for item in await answer.json()]

    async def create(
        self,
        sandbox: str,
        *,
        name: str | None = None,
        disk_only: bool = False,
        freeze: bool = True,
        key: bytes | str | None = None,
    ) -> SnapshotInfo:
        """Take a snapshot of a sandbox, which goes on; `disk_only` without its memory.

        `freeze` off, with `disk_only`, leaves its programs running meanwhile. With `key` it is
        encrypted.
        """
        body = {"sandbox": sandbox, "name": name, "disk_only": disk_only, "freeze": freeze}
        if key is not None:
            body["encrypt"] = True
        answer = await self._transport.request(
            "POST", "/v1/snapshots", json=body, headers=key_header(key)
        )
        return from_json(SnapshotInfo, await answer.json())

    async def get(self, ref: str) -> SnapshotInfo:
        """Return a snapshot. Raises NotFound."""
        answer = await self._transport.request("GET", f"/v1/snapshots/{quote(ref)}")
        return from_json(SnapshotInfo, await answer.json())

    async def restore(
        self,
        ref: str,
        name: str | None = None,
        *,
        disk_only: bool = False,
        key: bytes | str | None = None,
    ) -> SandboxInfo:
        """Make a sandbox that goes on from a snapshot; with `disk_only` it boots from its disk.

        `key` is that of an encrypted one.
        """
        path, body = f"/v1/snapshots/{quote(ref)}/restore", {"name": name, "disk_only": disk_only}
        answer = await self._transport.request("POST", path, json=body, headers=key_header(key))
        return from_json(SandboxInfo, await answer.json())

    async def remove(self, ref: str) -> Removed:
        """Remove a snapshot. What was restored from it goes on."""
        answer = await self._transport.request("DELETE", f"/v1/snapshots/{quote(ref)}")
        return from_json(Removed, await answer.json())

    async def collect(self, keep: int, sandbox: str | None = None) -> Removed:
        """Remove all but the `keep` newest snapshots of each sandbox, or of one."""
        body = {"keep": keep, "sandbox": sandbox}
        answer = await self._transport.request("POST", "/v1/snapshots/gc", json=body)
        return from_json(Removed, await answer.json())

    async def export(
        self, ref: str, local: str | os.PathLike[str], *, key: bytes | str | None = None
    ) -> int:
        """Write a snapshot into one local file, for `load` on any host; returns its bytes.

        The file appears whole or not at all, readable by its owner alone; with `key` encrypted.
        """
        return await write_file(local, self.stream(ref, key=key), name=f"{ref}.hutch", mode=0o600)

    async def stream(self, ref: str, *, key: bytes | str | None = None) -> AsyncIterator[bytes]:
        """Yield the file that `export` writes, as it comes."""
        query = None if key is None else {"encrypt": True}
        path = f"/v1/snapshots/{quote(ref)}/export"
        answer = await self._transport.request("GET", path, query, headers=key_header(key))
        try:
            async for piece in answer:
                yield piece
        finally:
            await answer.close()

    async def load(
        self,
        source: str | os.PathLike[str] | AsyncIterator[bytes],
        *,
        name: str | None = None,
        key: bytes | str | None = None,
    ) -> SnapshotInfo:
        """Take in an exported snapshot: a local file, or its bytes as they come.

        `key` is that of an encrypted one.
        """
        body = source if isinstance(source, AsyncIterator) else file_pieces(source)
        path = "/v1/snapshots/import"
        answer = await self._transport.request(
            "POST", path, {"name": name}, body=body, headers=key_header(key)
        )
        return from_json(SnapshotInfo, await answer.json())
