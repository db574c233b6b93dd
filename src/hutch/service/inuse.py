"""The files and tunnels of a sandbox as it hands them out: each use of them counts as activity."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TypeVar, cast

from hutch.guest.base import FileEntry, GuestFiles, TunnelStream
from hutch.service.activity import Activity

T = TypeVar("T")


def _closing(items: AsyncIterator[T]) -> aclosing[AsyncGenerator[T, None]]:
    return aclosing(cast(AsyncGenerator[T, None], items))


class UsedFiles:
    """`GuestFiles` whose every operation is a use of the sandbox until it has ended."""

    def __init__(self, files: GuestFiles, activity: Activity) -> None:
        self._files = files
        self._activity = activity

    async def stat(self, path: str, *, follow: bool = True) -> FileEntry:
        """See GuestFiles."""
        with self._activity.use():
            return await self._files.stat(path, follow=follow)

    async def list(self, path: str) -> AsyncIterator[FileEntry]:
        """See GuestFiles."""
        with self._activity.use():
            async with _closing(self._files.list(path)) as entries:
                async for entry in entries:
                    yield entry

    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """See GuestFiles."""
        with self._activity.use():
            async with _closing(self._files.read(path, offset=offset, length=length)) as pieces:
                async for piece in pieces:
                    yield piece

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
        """See GuestFiles."""
        with self._activity.use():
            return await self._files.write(
                path,
                chunks,
                mode=mode,
                uid=uid,
                gid=gid,
                append=append,
                parents=parents,
                exclusive=exclusive,
            )

    async def mkdir(
        self,
        path: str,
        *,
        mode: int = 0o755,
        parents: bool = False,
        uid: int | None = None,
        gid: int | None = None,
    ) -> None:
        """See GuestFiles."""
        with self._activity.use():
            await self._files.mkdir(path, mode=mode, parents=parents, uid=uid, gid=gid)

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """See GuestFiles."""
        with self._activity.use():
            await self._files.remove(path, recursive=recursive)

    async def rename(self, source: str, target: str, *, replace: bool = True) -> None:
        """See GuestFiles."""
        with self._activity.use():
            await self._files.rename(source, target, replace=replace)

    async def chmod(self, path: str, mode: int, *, recursive: bool = False) -> None:
        """See GuestFiles."""
        with self._activity.use():
            await self._files.chmod(path, mode, recursive=recursive)

    async def chown(
        self, path: str, uid: int, gid: int, *, recursive: bool = False, follow: bool = False
    ) -> None:
        """See GuestFiles."""
        with self._activity.use():
            await self._files.chown(path, uid, gid, recursive=recursive, follow=follow)

    async def symlink(self, target: str, path: str) -> None:
        """See GuestFiles."""
        with self._activity.use():
            await self._files.symlink(target, path)

    async def read_tar(
        self, path: str, *, name: str | None = None, follow: bool = False
    ) -> AsyncIterator[bytes]:
        """See GuestFiles."""
        with self._activity.use():
            async with _closing(self._files.read_tar(path, name=name, follow=follow)) as pieces:
                async for piece in pieces:
                    yield piece

    async def write_tar(
        self,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        uid: int | None = None,
        gid: int | None = None,
        parents: bool = False,
    ) -> int:
        """See GuestFiles."""
        with self._activity.use():
            return await self._files.write_tar(path, chunks, uid=uid, gid=gid, parents=parents)


class UsedTunnel:
    """A `TunnelStream` that is a use of the sandbox until it is closed."""

    def __init__(self, stream: TunnelStream, activity: Activity) -> None:
        self._stream = stream
        self._activity = activity
        activity.begin(self)

    async def read(self) -> bytes:
        """See TunnelStream."""
        return await self._stream.read()

    async def write(self, data: bytes) -> None:
        """See TunnelStream."""
        await self._stream.write(data)

    async def write_eof(self) -> None:
        """See TunnelStream."""
        await self._stream.write_eof()

    async def finished(self) -> None:
        """See TunnelStream."""
        await self._stream.finished()

    async def close(self) -> None:
        """See TunnelStream."""
        self._activity.end(self)
        await self._stream.close()
