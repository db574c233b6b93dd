"""A guest's files in a dictionary, and a port that echoes."""

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
from dataclasses import replace

from hutch.errors import error
from hutch.guest.base import FileEntry, FileType


class FakeFiles:
    """Files in a dictionary; /dev/zero and /dev/null are as on Unix, for measuring."""

    def __init__(self) -> None:
        self.entries: dict[str, FileEntry] = {"/": self.entry("/", FileType.DIR)}
        self.data: dict[str, bytes] = {}
        self.chunk = 256 << 10

    @staticmethod
    def entry(path: str, kind: FileType, size: int = 0, mode: int | None = None) -> FileEntry:
        name = path.rpartition("/")[2] or "/"
        default = 0o755 if kind is FileType.DIR else 0o644
        return FileEntry(name, kind, default if mode is None else mode, 0, 0, size, 10**18)

    def find(self, path: str) -> FileEntry:
        if path not in self.entries:
            raise error("path_not_found", f"{path} does not exist")
        return self.entries[path]

    async def stat(self, path: str, *, follow: bool = True) -> FileEntry:
        return self.find(path)

    async def list(self, path: str) -> AsyncIterator[FileEntry]:
        self.find(path)
        for name, entry in self.entries.items():
            if name != path and name.rpartition("/")[0] == path.rstrip("/"):
                yield entry

    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        if path == "/dev/zero":
            zeros = bytes(self.chunk)
            for _ in range((length or 0) // len(zeros)):
                yield zeros
            return
        if path == "/broken":
            yield b"some"
            raise error("guest_failed", "the disk broke")
        self.find(path)
        data = self.data[path][offset:]
        data = data if length is None else data[:length]
        for at in range(0, len(data), self.chunk):
            yield data[at : at + self.chunk]

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
        if path == "/dev/null":
            return sum([len(chunk) async for chunk in chunks])
        if path.startswith("/nosuch/"):
            raise error("path_not_found", f"{path}: no such directory")
        if exclusive and path in self.entries:
            raise error("guest_refused", f"{path} exists")
        parts = [self.data.get(path, b"")] if append else []
        parts += [bytes(chunk) async for chunk in chunks]
        self.data[path] = b"".join(parts)
        entry = self.entry(path, FileType.FILE, len(self.data[path]), mode)
        self.entries[path] = replace(entry, uid=uid or 0, gid=gid or 0)
        return len(self.data[path])

    async def mkdir(
        self,
        path: str,
        *,
        mode: int = 0o755,
        parents: bool = False,
        uid: int | None = None,
        gid: int | None = None,
    ) -> None:
        if path in self.entries and not parents:
            raise error("guest_refused", f"{path} exists")
        self.entries[path] = self.entry(path, FileType.DIR, mode=mode)

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        self.find(path)
        gone = [name for name in self.entries if name == path or name.startswith(path + "/")]
        if len(gone) > 1 and not recursive:
            raise error("guest_refused", f"{path} is not empty")
        for name in gone:
            del self.entries[name]
            self.data.pop(name, None)

    async def rename(self, source: str, target: str, *, replace: bool = True) -> None:
        entry = self.find(source)
        self.entries[target] = FileEntry(
            target.rpartition("/")[2], entry.type, entry.mode, 0, 0, entry.size, entry.mtime_ns
        )
        del self.entries[source]
        if source in self.data:
            self.data[target] = self.data.pop(source)

    async def chmod(self, path: str, mode: int, *, recursive: bool = False) -> None:
        self.entries[path] = replace(self.find(path), mode=mode)

    async def chown(
        self, path: str, uid: int, gid: int, *, recursive: bool = False, follow: bool = False
    ) -> None:
        self.entries[path] = replace(self.find(path), uid=uid, gid=gid)

    async def symlink(self, target: str, path: str) -> None:
        self.entries[path] = replace(self.entry(path, FileType.SYMLINK), target=target)

    async def read_tar(
        self, path: str, *, name: str | None = None, follow: bool = False
    ) -> AsyncIterator[bytes]:
        self.find(path)
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for at, entry in sorted(self.entries.items()):
                if at == path or at.startswith(path.rstrip("/") + "/"):
                    top = name or path.rpartition("/")[2]
                    item = tarfile.TarInfo(top + at[len(path.rstrip("/")) :])
                    item.mode = entry.mode
                    if entry.type is FileType.DIR:
                        item.type = tarfile.DIRTYPE
                        tar.addfile(item)
                    else:
                        item.size = len(self.data[at])
                        tar.addfile(item, io.BytesIO(self.data[at]))
        yield out.getvalue()

    async def write_tar(
        self,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        uid: int | None = None,
        gid: int | None = None,
        parents: bool = False,
    ) -> int:
        self.find(path)
        whole = b"".join([bytes(chunk) async for chunk in chunks])
        count = 0
        with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
            for item in tar:
                count += 1
                at = f"{path.rstrip('/')}/{item.name}"
                kind = FileType.DIR if item.isdir() else FileType.FILE
                self.entries[at] = self.entry(at, kind, item.size, item.mode)
                if item.isfile():
                    file = tar.extractfile(item)
                    assert file is not None
                    self.data[at] = file.read()
        return count


class EchoTunnel:
    """A port whose server sends back what it gets, and ends when its client does."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue(4)
        self.closed = False

    async def read(self) -> bytes:
        return await self.queue.get()

    async def write(self, data: bytes) -> None:
        await self.queue.put(data)

    async def write_eof(self) -> None:
        await self.queue.put(b"")

    async def finished(self) -> None:
        pass

    async def close(self) -> None:
        self.closed = True
