"""Files in a sandbox: read, written, listed, copied in and out."""

import os
from collections.abc import AsyncIterator, Iterable
from typing import Any

from hutch.errors import NotFound
from hutch.models import FileInfo, from_json
from hutch.sdk.aio.transport import Transport, each, file_pieces, write_file
from hutch.sdk.http1 import quote


class AsyncFiles:
    """The files of one sandbox. Paths are absolute, in the guest's own view."""

    def __init__(self, transport: Transport, ref: str) -> None:
        self._transport = transport
        self._base = f"/v1/sandboxes/{quote(ref)}"

    async def read(self, path: str) -> str:
        """Return a file's text (UTF-8, what is none of it replaced)."""
        return (await self.read_bytes(path)).decode("utf-8", "replace")

    async def read_bytes(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return a file's bytes, or some of them."""
        parts = [piece async for piece in self.stream(path, offset=offset, length=length)]
        return b"".join(parts)

    async def stream(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield a file's bytes as they come, whatever its size."""
        query = {"path": path, "offset": offset, "length": length}
        answer = await self._transport.request("GET", f"{self._base}/files", query)
        try:
            async for piece in answer:
                yield piece
        finally:
            await answer.close()

    async def write(
        self,
        path: str,
        data: str | bytes | Iterable[bytes] | AsyncIterator[bytes],
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        append: bool = False,
        parents: bool = True,
        exclusive: bool = False,
    ) -> int:
        """Write a whole file, atomically; returns its bytes.

        `mode` is its permission bits (0o644), `parents` makes missing directories, `exclusive`
        refuses a file that exists.
        """
        if isinstance(data, str):
            body: bytes | AsyncIterator[bytes] = data.encode()
        else:
            body = data if isinstance(data, bytes) else each(data)
        query = {
            "path": path,
            "mode": None if mode is None else f"{mode:o}",
            "uid": uid,
            "gid": gid,
            "append": append,
            "parents": parents,
            "exclusive": exclusive,
        }
        answer = await self._transport.request("PUT", f"{self._base}/files", query, body=body)
        return int((await answer.json())["bytes"])

    async def upload(
        self, local: str | os.PathLike[str], path: str, *, mode: int | None = None
    ) -> int:
        """Copy a local file into the sandbox, with its permission bits; returns its bytes."""
        bits = os.stat(local).st_mode & 0o777 if mode is None else mode
        return await self.write(path, file_pieces(local), mode=bits)

    async def download(self, path: str, local: str | os.PathLike[str]) -> int:
        """Copy a file out of the sandbox; the local one appears whole or not at all.

        In a directory it gets the name that it has in the sandbox.
        """
        return await write_file(local, self.stream(path), name=path.rpartition("/")[2])

    async def stat(self, path: str, *, follow: bool = True) -> FileInfo:
        """Return what is at a path; a link itself when not `follow`."""
        query = {"path": path, "follow": follow}
        answer = await self._transport.request("GET", f"{self._base}/files/stat", query)
        return from_json(FileInfo, await answer.json())

    async def exists(self, path: str) -> bool:
        """Tell whether something is at a path, a link's target included."""
        try:
            await self.stat(path)
        except NotFound as failure:
            if failure.code == "path_not_found":
                return False
            raise
        return True

    async def list(self, path: str) -> list[FileInfo]:
        """Return the entries of a directory, by name."""
        answer = await self._transport.request("GET", f"{self._base}/files/list", {"path": path})
        return [from_json(FileInfo, item) for item in await answer.json()]

    async def mkdir(self, path: str, *, mode: int = 0o755, parents: bool = True) -> None:
        """Make a directory; with `parents` those above it, and one that exists is fine."""
        await self._post("mkdir", {"path": path, "mode": mode, "parents": parents})

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file or an empty directory; with `recursive` a whole tree."""
        await self._post("remove", {"path": path, "recursive": recursive})

    async def rename(self, source: str, target: str, *, replace: bool = True) -> None:
        """Move within the sandbox; without `replace` an existing target is refused."""
        await self._post("rename", {"source": source, "target": target, "replace": replace})

    async def chmod(self, path: str, mode: int, *, recursive: bool = False) -> None:
        """Set the permission bits."""
        await self._post("chmod", {"path": path, "mode": mode, "recursive": recursive})

    async def chown(self, path: str, uid: int, gid: int, *, recursive: bool = False) -> None:
        """Set owner and group, by number."""
        body = {"path": path, "uid": uid, "gid": gid, "recursive": recursive}
        await self._post("chown", body)

    async def symlink(self, target: str, path: str) -> None:
        """Make `path` a symbolic link to `target`."""
        await self._post("symlink", {"target": target, "path": path})

    async def _post(self, verb: str, body: dict[str, Any]) -> None:
        answer = await self._transport.request("POST", f"{self._base}/files/{verb}", json=body)
        await answer.close()
