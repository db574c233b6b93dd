"""Snapshots and forks in memory, for the API's tests and the command line's."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from hutch.errors import error
from hutch.models import (
    ErrorInfo,
    Forked,
    ForkFailure,
    Removed,
    SandboxInfo,
    SandboxState,
    SnapshotInfo,
    SnapshotKind,
)
from hutch.service.sealing import Key, no_key


class FakeSnapshots:
    """Snapshots of fake sandboxes; `sandboxes` is where those are, and what is restored goes."""

    def __init__(self, sandboxes: Any) -> None:
        self.sandboxes = sandboxes
        self.all: list[SnapshotInfo] = []
        self._made = 0

    async def create(
        self,
        ref: str,
        *,
        name: str | None = None,
        disk_only: bool = False,
        freeze: bool = True,
        key: Key | None = None,
    ) -> SnapshotInfo:
        source = await self.sandboxes.get(ref)
        if not freeze and not disk_only:
            raise error("bad_request", "the programs must stand still")
        self._made += 1
        info = SnapshotInfo(
            id=f"sn_{self._made:04d}",
            name=name or f"{source.name}-{self._made}",
            kind=SnapshotKind.DISK if disk_only else SnapshotKind.FULL,
            sandbox_id=source.id,
            sandbox_name=source.name,
            image=source.image,
            image_id=source.image_id,
            created_at=source.created_at,
            cpus=source.cpus,
            memory=source.memory,
            disk=source.disk,
            engine="fake",
            engine_version="1",
            machine="microvm",
            accelerator="tcg",
            tsc_khz=None,
            disk_bytes=10 << 20,
            encrypted=key is not None,
        )
        self.all.append(info)
        return info

    async def list(
        self, sandbox: str | None = None, *, checkpoints: bool = False
    ) -> Sequence[SnapshotInfo]:
        found = [info for info in self.all if checkpoints or not info.checkpoint]
        return [info for info in found if sandbox in (None, info.sandbox_id, info.sandbox_name)]

    async def get(self, ref: str) -> SnapshotInfo:
        for info in self.all:
            if ref in (info.id, info.name):
                return info
        raise error("snapshot_not_found", f"there is no snapshot {ref}")

    async def remove(self, ref: str) -> Removed:
        info = await self.get(ref)
        self.all.remove(info)
        return Removed([info.id], info.disk_bytes)

    async def collect(self, keep: int, sandbox: str | None = None) -> Removed:
        found = await self.list(sandbox)
        gone = [info.id for info in found[: max(0, len(found) - keep)]]
        self.all = [info for info in self.all if info.id not in gone]
        return Removed(gone, len(gone) << 20)

    async def restore(
        self,
        ref: str,
        name: str | None = None,
        *,
        disk_only: bool = False,
        key: Key | None = None,
    ) -> SandboxInfo:
        snapshot = await self.get(ref)
        if snapshot.encrypted and key is None:
            raise no_key("the snapshot is encrypted")
        source = await self.sandboxes.get(snapshot.sandbox_id)
        return self.add(source, name or "restored", snapshot.id)

    async def export(self, ref: str, key: Key | None = None) -> AsyncIterator[bytes]:
        """Yield the name, which is all that `load` needs."""
        info = await self.get(ref)
        yield b"hutch " if key is None else b"sealed "
        yield info.name.encode()

    async def load(
        self, pieces: AsyncIterator[bytes], name: str | None = None, key: Key | None = None
    ) -> SnapshotInfo:
        data = b"".join([piece async for piece in pieces])
        if data.startswith(b"sealed "):
            if key is None:
                raise no_key("the file is encrypted")
            data = b"hutch " + data.removeprefix(b"sealed ")
        if not data.startswith(b"hutch "):
            raise error("snapshot_damaged", "it is no snapshot")
        source = await self.get(data.removeprefix(b"hutch ").decode())
        self._made += 1
        info = replace(source, id=f"sn_{self._made:04d}", name=name or f"{source.name}-1")
        self.all.append(info)
        return info

    def add(self, source: SandboxInfo, name: str, origin: str) -> SandboxInfo:
        """Make a sandbox like another."""
        number = len(self.sandboxes.rows) + 100
        child = replace(
            source, id=f"sb_{number:04d}", name=name, origin=origin, state=SandboxState.RUNNING
        )
        self.sandboxes.rows[child.id] = child
        return child


class FakeForks:
    """Forks of fake sandboxes; a child named `bad` does not come up."""

    def __init__(self, snapshots: FakeSnapshots) -> None:
        self._snapshots = snapshots

    async def fork(self, ref: str, names: Sequence[str] = (), count: int | None = None) -> Forked:
        source = await self._snapshots.sandboxes.get(ref)
        number = max(len(names), 1) if count is None else count
        chosen = [*names, *(f"{source.name}-{n}" for n in range(len(names), number))]
        children = [self._snapshots.add(source, n, source.id) for n in chosen if n != "bad"]
        failed = [
            ForkFailure(n, ErrorInfo("no_capacity", "told to", None)) for n in chosen if n == "bad"
        ]
        return Forked(source.id, children, failed, 0.05)
