"""Files of the guest: entries, contents and tar trees, streamed both ways without a size limit."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, Final

from hutch.guest import fields
from hutch.guest.base import DEFAULT_TIMEOUT, FileEntry, FileType
from hutch.guest.link import Link
from hutch.guest.messages import GuestProtocolError, MapStream
from hutch.guest.streams import Chunk, End, Gap, Stream

STALL_TIMEOUT: Final = 60.0
"""Seconds without any progress after which a transfer is given up."""

_TREE_TIMEOUT: Final = 300.0
"""Seconds that an operation on a whole tree may take."""

_TYPES: Final = frozenset(str(kind) for kind in FileType)


class Files:
    """`base.GuestFiles` over a link; every path is absolute, in the guest's own view."""

    def __init__(self, link: Link, *, stall: float = STALL_TIMEOUT) -> None:
        """`stall` is how many seconds a transfer may stand still."""
        self._link = link
        self._stall = stall

    async def stat(self, path: str, *, follow: bool = True) -> FileEntry:
        """Return what is at `path`. Raises path_not_found."""
        request = {"path": fields.path_bytes(path), "follow": follow}
        return await self._link.call(
            "fs.stat",
            path,
            request,
            lambda reply: parse_entry(fields.table(reply, "entry")),
            seconds=DEFAULT_TIMEOUT,
        )

    async def list(self, path: str) -> AsyncGenerator[FileEntry, None]:
        """Yield the entries of a directory by name. Raises path_not_found before the first."""
        decoder = MapStream()
        count = 0
        request = {"path": fields.path_bytes(path)}
        result: dict[str, Any] = {}
        async for data in self._download("fs.list", path, request, result):
            with self._link.strict():
                entries = [parse_entry(row, listed=True) for row in decoder.feed(data)]
            count += len(entries)
            for entry in entries:
                yield entry
        with self._link.strict():
            if decoder.pending or fields.integer(result, "entries") != count:
                raise GuestProtocolError("a listing is not complete")

    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a file; path_not_found and the like are raised before the first.

        Raises guest_timeout when nothing comes for a minute.
        """
        request = {"path": fields.path_bytes(path), "offset": offset, "length": length}
        async for data in self._counted("fs.read", path, request):
            yield data

    async def read_tar(
        self, path: str, *, name: str | None = None, follow: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """Yield a tar stream whose top entry is `name` (default: the path's last part)."""
        request: dict[str, Any] = {"path": fields.path_bytes(path), "follow": follow}
        if name is not None:
            request["name"] = fields.to_bytes(name)
        async for data in self._counted("tar.read", path, request):
            yield data

    async def write(
        self,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        append: bool = False,
        parents: bool = False,
        exclusive: bool = False,
    ) -> int:
        """Write a whole file atomically; return its size. When `chunks` raises, nothing changes."""
        request = {
            "path": fields.path_bytes(path),
            **_given(mode=mode, uid=uid, gid=gid),
            "append": append,
            "parents": parents,
            "exclusive": exclusive,
        }
        sent, result = await self._upload("fs.write", path, request, chunks)
        with self._link.strict():
            if fields.integer(result, "bytes") != sent:
                raise GuestProtocolError("a file was written with another number of bytes")
        return sent

    async def write_tar(
        self,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        uid: int | None = None,
        gid: int | None = None,
        parents: bool = False,
    ) -> int:
        """Unpack a tar stream below the directory `path`; returns the number of entries."""
        request = {
            "path": fields.path_bytes(path),
            **_given(uid=uid, gid=gid),
            "parents": parents,
        }
        _, result = await self._upload("tar.write", path, request, chunks)
        with self._link.strict():
            return fields.integer(result, "entries")

    async def mkdir(
        self,
        path: str,
        *,
        mode: int = 0o755,
        parents: bool = False,
        uid: int | None = None,
        gid: int | None = None,
    ) -> None:
        """Make a directory, also the missing ones above it when `parents`."""
        owner = _given(uid=uid, gid=gid)
        await self._change("fs.mkdir", path, {"mode": mode, "parents": parents, **owner})

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, a link, an empty directory, or a tree when `recursive`."""
        await self._change("fs.remove", path, {"recursive": recursive})

    async def rename(self, source: str, target: str, *, replace: bool = True) -> None:
        """Rename; guest_refused when `target` exists and may not be replaced."""
        request = {
            "from": fields.path_bytes(source),
            "to": fields.path_bytes(target),
            "replace": replace,
        }
        await self._unary("fs.rename", source, request)

    async def chmod(self, path: str, mode: int, *, recursive: bool = False) -> None:
        """Set the permission bits."""
        await self._change("fs.chmod", path, {"mode": mode, "recursive": recursive})

    async def chown(
        self, path: str, uid: int, gid: int, *, recursive: bool = False, follow: bool = False
    ) -> None:
        """Set the owner, of a link itself unless `follow`."""
        request = {"uid": uid, "gid": gid, "recursive": recursive, "follow": follow}
        await self._change("fs.chown", path, request)

    async def symlink(self, target: str, path: str) -> None:
        """Make `path` a symbolic link to `target`."""
        await self._change("fs.symlink", path, {"target": fields.to_bytes(target)})

    # ---- how they travel

    async def _change(self, operation: str, path: str, request: Mapping[str, Any]) -> None:
        await self._unary(operation, path, {"path": fields.path_bytes(path), **request})

    async def _unary(self, operation: str, subject: str, request: dict[str, Any]) -> None:
        seconds = _TREE_TIMEOUT if request.get("recursive") else STALL_TIMEOUT
        await self._link.call(operation, subject, request, lambda _: None, seconds=seconds)

    async def _counted(
        self, operation: str, path: str, request: dict[str, Any]
    ) -> AsyncGenerator[bytes, None]:
        count = 0
        result: dict[str, Any] = {}
        async for data in self._download(operation, path, request, result):
            count += len(data)
            yield data
        with self._link.strict():
            if fields.integer(result, "bytes") != count:
                raise GuestProtocolError("a transfer has another number of bytes than announced")

    async def _download(
        self, operation: str, path: str, request: dict[str, Any], result: dict[str, Any]
    ) -> AsyncGenerator[bytes, None]:
        """Yield the data of channel 1 and put the RESULT's fields into `result` at the end."""
        stream = await self._link.open(operation, path, request, seconds=self._stall)
        try:
            await stream.reply(self._stall)
            while True:
                match await stream.next(self._stall):
                    case Chunk(channel, data):
                        yield data
                        # Only now has the consumer come back for more.
                        stream.ack(channel, len(data))
                    case Gap():
                        with self._link.strict():
                            raise GuestProtocolError("a GAP in a file transfer")
                    case End():
                        pass
                    case end:
                        result.update(end.message)
                        return
        finally:
            stream.close()

    async def _upload(
        self, operation: str, path: str, request: dict[str, Any], chunks: AsyncIterator[bytes]
    ) -> tuple[int, dict[str, Any]]:
        stream = await self._link.open(operation, path, request, seconds=self._stall)
        try:
            await stream.reply(self._stall)
            sent = await self._send_all(stream, chunks)
            await stream.end()
            with self._link.strict():
                return sent, await stream.result(self._stall)
        finally:
            # Before the result this is what undoes the transfer; after it, nothing.
            stream.close()

    async def _send_all(self, stream: Stream, chunks: AsyncIterator[bytes]) -> int:
        sent = 0
        async for data in chunks:
            await stream.write(data, seconds=self._stall)
            sent += len(data)
        return sent


def _given(**values: int | None) -> dict[str, int]:
    return {key: value for key, value in values.items() if value is not None}


def parse_entry(row: Mapping[str, Any], *, listed: bool = False) -> FileEntry:
    """Return a directory entry; one that is `listed` has a name that can stand in a directory."""
    name = fields.octets(row, "name", limit=fields.PATH_MAX)
    if listed and (not name or name in (b".", b"..") or b"/" in name or b"\0" in name):
        raise GuestProtocolError("an entry of a directory has an impossible name")
    kind = fields.text(row, "type", limit=16)
    if kind not in _TYPES:
        raise GuestProtocolError("an entry of an unknown type")
    target = row.get("target")
    return FileEntry(
        name=fields.to_text(name),
        type=FileType(kind),
        mode=fields.integer(row, "mode", high=(1 << 32) - 1),
        uid=fields.integer(row, "uid", high=(1 << 32) - 1),
        gid=fields.integer(row, "gid", high=(1 << 32) - 1),
        size=fields.integer(row, "size"),
        mtime_ns=fields.signed(row, "mtime_ns"),
        nlink=fields.integer(row, "nlink", 1),
        rdev=fields.integer(row, "rdev", 0),
        target=None if target is None else fields.to_text(fields.octets(row, "target")),
    )
