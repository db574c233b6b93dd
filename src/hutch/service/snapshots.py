"""The snapshots of one host: made of living sandboxes, kept on disk, restored, removed.

Each is a row, a directory with the memory and a manifest that comes last, and a layer that nobody
writes any more. It must not know how a moment is captured, nor how a sandbox begins from one.
"""

import contextlib
import dataclasses
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Container, Sequence

from hutch.engine.base import Frozen, MachineType
from hutch.errors import HutchError, error
from hutch.models import Removed, SandboxInfo, SnapshotInfo, SnapshotKind, timestamp
from hutch.service.beside import Past
from hutch.service.capture import Captures, Point, Source
from hutch.service.diskdigests import DiskDigests
from hutch.service.diskimage import fill_layer
from hutch.service.lifecycle import wrong_state
from hutch.service.lives import Lives
from hutch.service.manifest import (
    FORMAT,
    Manifest,
    damaged,
    digests_of,
    needs_of,
    write_manifest,
)
from hutch.service.moments import Moments
from hutch.service.names import SNAPSHOT_PREFIX, check_name, new_id, numbered_name
from hutch.service.parts import Parts, host_errors
from hutch.service.registry import Registry
from hutch.service.revival import Revivals
from hutch.service.sealing import Key, no_key
from hutch.service.snapshotrecords import SnapshotRecords
from hutch.service.stats import uses_of
from hutch.service.travel import LOGS, Arrived, Travel, at_home
from hutch.service.vault import Sealing, Vault
from hutch.state.base import SandboxRow, SnapshotRow
from hutch.tasks import in_thread, settle, settle_in_thread

Mark = Callable[[SnapshotInfo, Container[str]], SnapshotInfo]
"""Returns what is put on record of a new snapshot; gets the names that others have."""

Over = Callable[[SnapshotInfo, SandboxInfo], Sequence[Frozen]]
"""Returns the memories at rest that one of a sandbox may be kept over: see `Engine.keep`."""


class Snapshots:
    """All snapshots of one host."""

    def __init__(
        self,
        parts: Parts,
        registry: Registry,
        lives: Lives,
        captures: Captures,
        revivals: Revivals,
    ) -> None:
        self._parts = parts
        self._registry = registry
        self._lives = lives
        self._layers = lives.booter.layers
        self._captures = captures
        self._revivals = revivals
        self._records = SnapshotRecords(parts, registry, self._layers)
        self.shelf = self._records.shelf
        self._vault = Vault(parts, self._layers)
        self._disks = DiskDigests(self._layers)
        self._moments = Moments(parts, lives, self._vault, self._disks)
        self._travel = Travel(parts, self._layers)

    # ---- making

    async def create(
        self,
        ref: str,
        *,
        name: str | None = None,
        disk_only: bool = False,
        freeze: bool = True,
        mark: Mark | None = None,
        over: Over | None = None,
        key: Key | None = None,
    ) -> SnapshotInfo:
        """Make a snapshot of a sandbox, which goes on; nothing is left of it when that fails.

        With a key it is encrypted. `mark` changes what is put on record of it, and is called while
        the sandbox is held. With `over` it shares what others have, and need not outlive the host.
        Raises wrong_state, name_taken, guest_timeout, disk_full, engine_failed, sandbox_died.
        """
        entry = self._registry.find(ref)
        if name is not None:
            check_name(name, "snapshot", SNAPSHOT_PREFIX)
        if not freeze and not disk_only:
            raise error(
                "bad_request",
                "the programs must stand still for a snapshot with memory",
                hint="leave out --no-freeze, or take the disk alone with --disk-only",
            )
        kind = SnapshotKind.DISK if disk_only else SnapshotKind.FULL
        snapshot_id = new_id(SNAPSHOT_PREFIX)
        await self._captures.thinning.make_room(entry)
        try:
            with host_errors():
                async with self._vault.sealing(snapshot_id, key) as sealing:
                    async with self._captures.hold(entry) as source:
                        if not source.alive and not disk_only:
                            raise _cannot_run(source.row.info)
                        row = await self._begin(snapshot_id, source, name, kind, mark, sealing)
                        taken = await self._take(row, source, sealing, freeze=freeze)
                    await self._complete(row, *taken, sealing, over)
                return await self.get(snapshot_id)
        except BaseException:
            await settle(self._records.discard(snapshot_id))
            raise

    async def _begin(
        self,
        snapshot_id: str,
        source: Source,
        name: str | None,
        kind: SnapshotKind,
        mark: Mark | None,
        sealing: Sealing | None,
    ) -> SnapshotRow:
        info, layer = source.row.info, source.layer
        if source.alive or kind is SnapshotKind.FULL:
            recipe = await self._lives.booter.recipe(info)
            version, rate = recipe.verdict.engine_version, recipe.verdict.tsc_khz
        else:
            version, rate = "", None  # no engine is asked for a disk
        taken = {row.info.name for row in self.shelf.values()}
        snapshot = SnapshotInfo(
            id=snapshot_id,
            name=name or numbered_name(info.name, taken),
            kind=kind,
            sandbox_id=info.id,
            sandbox_name=info.name,
            image=info.image,
            image_id=info.image_id,
            created_at=timestamp(),
            cpus=info.cpus,
            memory=info.memory,
            disk=info.disk,
            engine=self._parts.engine.name,
            engine_version=version,
            machine=info.machine or "",
            accelerator=info.accelerator or "",
            tsc_khz=rate,
            cpu=await source.cpu() if kind is SnapshotKind.FULL else None,
            labels=dict(info.labels),
            parent=self.shelf.nearest(self._layers.chain(layer)),
        )
        if mark is not None:
            snapshot = mark(snapshot, taken)
        if sealing is None:
            return await settle(self._records.put(snapshot, layer, info))
        sealing.hold(layer)
        snapshot = dataclasses.replace(snapshot, encrypted=True)
        return await settle(self._records.put(snapshot, None, info))

    async def _take(
        self, row: SnapshotRow, source: Source, sealing: Sealing | None, *, freeze: bool
    ) -> tuple[SandboxRow, Point | None]:
        directory = self._parts.places.snapshot(row.info.id)
        await settle_in_thread(directory.mkdir, mode=0o700, parents=True)
        if not source.alive:
            before = source.row
            await source.switch()
            return before, None
        full = row.info.kind is SnapshotKind.FULL
        logs = sealing.take_logs if sealing is not None else directory / LOGS
        point = await source.capture(
            directory, logs=logs if full else None, freeze=freeze, sync=True
        )
        if not full:
            await self._parts.engine.drop(point.frozen)
        return point.row, point

    async def _complete(
        self,
        row: SnapshotRow,
        source: SandboxRow,
        point: Point | None,
        sealing: Sealing | None,
        over: Over | None,
    ) -> None:
        directory = self._parts.places.snapshot(row.info.id)
        snapshot, needs, digests = row.info, None, dict[str, str]()
        if point is not None:
            snapshot = dataclasses.replace(snapshot, pause_seconds=point.seconds)
        frozen = point.frozen if point and snapshot.kind is SnapshotKind.FULL else None
        try:
            if point is not None and frozen is not None:
                recipe = await self._lives.booter.recipe(source.info)
                spec = self._lives.booter.machine_spec(source, recipe, point.layer)
                record = point.machine.record
                spec = dataclasses.replace(
                    spec, machine=record.machine, accelerator=record.accelerator
                )
                held = 0
                if sealing is None:
                    others = [] if over is None else over(snapshot, source.info)
                    await self._parts.engine.keep(frozen, others, lasting=over is None)
                    digests = await in_thread(digests_of, frozen)
                    held = (await in_thread(uses_of, frozen.image)).own
                needs = await in_thread(needs_of, self._parts.engine, spec, recipe)
                snapshot = dataclasses.replace(
                    snapshot,
                    machine=record.machine.value,
                    accelerator=record.accelerator.value,
                    memory_bytes=min(held, frozen.memory),  # a file system counts its blocks, too
                )
            manifest = Manifest(
                FORMAT, snapshot, source.spec, source.info, source.generation, needs, digests
            )
            if row.layer is not None:
                layers = await self._disks.of(row.layer)
                manifest = dataclasses.replace(manifest, layers=layers)
            if sealing is not None:
                manifest = await sealing.finish(manifest, frozen)
        finally:
            if frozen is not None:
                await self._parts.engine.drop(frozen)
        await settle_in_thread(write_manifest, directory, manifest, lasting=over is None)
        await settle(self._records.finish(manifest.snapshot))
        self._parts.events.emit(
            "snapshot.created", snapshot.id, snapshot.name, sandbox=snapshot.sandbox_id
        )

    # ---- looking

    async def get(self, ref: str) -> SnapshotInfo:
        """Return one snapshot with what it takes on disk now. Raises snapshot_not_found."""
        row = self.shelf.find(ref)
        directory = self._parts.places.snapshot(row.info.id)
        files, layers = await in_thread(uses_of, directory), await self._layers.sizes(row.layer)
        own, shared = files.own + layers.own, files.shared + layers.shared
        return dataclasses.replace(row.info, disk_bytes=own, shared_bytes=shared)

    async def list(
        self, sandbox: str | None = None, *, checkpoints: bool = False
    ) -> Sequence[SnapshotInfo]:
        """Return all snapshots, oldest first, or those of one sandbox, which may be gone.

        With `checkpoints` those that are checkpoints, too.
        """
        rows = [row for row in self.shelf.of(sandbox) if checkpoints or not row.info.checkpoint]
        found = []
        for row in rows:
            with contextlib.suppress(HutchError):  # it was removed in this moment
                found.append(await self.get(row.info.id))
        return found

    # ---- restoring

    async def restore(
        self,
        ref: str,
        name: str | None = None,
        *,
        disk_only: bool = False,
        key: Key | None = None,
    ) -> SandboxInfo:
        """Make a sandbox that goes on from a snapshot, or boots from its disk; return it running.

        `key` is that of an encrypted one. Raises snapshot_not_found, wrong_key, snapshot_damaged,
        snapshot_incompatible, image_not_found, name_taken, no_capacity, disk_full, boot_failed;
        nothing is left of the sandbox then.
        """
        row = self.shelf.find(ref)
        if name is not None:
            check_name(name)
        with self._registry.reserve(name) as new_name, self.shelf.used(row):
            async with self._moments.opened(row, key, disk_only=disk_only) as moment:
                if moment.frozen is None:
                    entry = await self._revivals.boot(new_name, moment.origin)
                else:
                    board = MachineType(moment.manifest.snapshot.machine)
                    entry = await self._revivals.go_on(
                        new_name, moment.origin, moment.frozen, board
                    )
        self._parts.events.emit(
            "snapshot.restored", row.info.id, row.info.name, sandbox=entry.info.id
        )
        return entry.info

    @contextlib.asynccontextmanager
    async def opened(self, ref: str) -> AsyncIterator[Past]:
        """Hand out the moment of a snapshot, checked, for its own sandbox to go back to.

        Raises snapshot_not_found, snapshot_damaged, snapshot_incompatible, wrong_key for one that
        is encrypted.
        """
        row = self.shelf.find(ref)
        if row.info.encrypted:
            failure = no_key(f"the snapshot {row.info.name} is encrypted")
            failure.hint = "restore it with its key, and use the sandbox instead"
            raise failure
        with self.shelf.used(row):
            async with self._moments.opened(row) as moment:
                origin, frozen = moment.origin, moment.frozen
                if origin.layer is None or origin.logs is None or frozen is None:
                    raise damaged(moment.manifest.snapshot.name, "it has no memory")
                yield Past(moment.manifest.snapshot, frozen, origin.layer, origin.logs)

    # ---- travelling

    async def export(self, ref: str, key: Key | None = None) -> AsyncIterator[bytes]:
        """Yield a snapshot as one file, with all that another host needs to restore it.

        With a key it is encrypted.

        Raises snapshot_not_found, snapshot_damaged, image_not_found, tool_missing, disk_full.
        """
        row = self.shelf.find(ref)
        with self.shelf.used(row):
            async with contextlib.aclosing(self._travel.export(row, key)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    yield piece

    async def load(
        self, pieces: AsyncIterator[bytes], name: str | None = None, key: Key | None = None
    ) -> SnapshotInfo:
        """Take in the file of a snapshot, checked as a whole before anything is on record.

        Raises wrong_key, snapshot_damaged, snapshot_incompatible, name_taken, disk_full; nothing is
        left then.
        """
        if name is not None:
            check_name(name, "snapshot", SNAPSHOT_PREFIX)
        snapshot_id = new_id(SNAPSHOT_PREFIX)
        directory = self._parts.places.snapshot(snapshot_id)
        try:
            with host_errors():
                await settle_in_thread(directory.mkdir, mode=0o700, parents=True)
                path = await self._travel.receive(pieces, directory)
                arrived = await self._travel.unpack(path, directory, key)
                await settle_in_thread(path.unlink)
                return await self._enter(snapshot_id, arrived, name)
        except BaseException:
            await settle(self._records.discard(snapshot_id))
            await settle_in_thread(shutil.rmtree, directory, ignore_errors=True)
            raise

    async def _enter(self, snapshot_id: str, arrived: Arrived, name: str | None) -> SnapshotInfo:
        directory = self._parts.places.snapshot(snapshot_id)
        image_id, root = await settle_in_thread(self._travel.settle_root, arrived)
        base = await self._parts.base_disk(self._parts.settings.home, arrived.manifest.info.disk)
        manifest = await in_thread(at_home, arrived.manifest, image_id, root, base)
        taken = {row.info.name for row in self.shelf.values()}
        given = manifest.snapshot.name
        if name is None:
            name = numbered_name(given, taken) if given in taken else given
        # No sandbox of this host is its source, whatever it says.
        snapshot = dataclasses.replace(
            manifest.snapshot, id=snapshot_id, name=name, sandbox_id="", checkpoint=False
        )
        if arrived.disk is None:
            await settle(self._records.put(snapshot, None, manifest.info))
        else:
            layer = self._layers.plan()
            await settle(self._records.put(snapshot, layer.id, manifest.info, layer))
            size = (await in_thread(arrived.disk.stat)).st_size
            await fill_layer(arrived.disk, await self._layers.make(layer, size, base))
            await settle_in_thread(arrived.disk.unlink)
            manifest = dataclasses.replace(manifest, layers=await self._disks.of(layer.id))
        await settle_in_thread(arrived.root.unlink, missing_ok=True)
        manifest = dataclasses.replace(manifest, snapshot=snapshot)
        await settle_in_thread(write_manifest, directory, manifest)
        await settle(self._records.finish(snapshot))
        self._parts.events.emit("snapshot.imported", snapshot_id, name)
        return await self.get(snapshot_id)

    # ---- removing

    async def remove(self, ref: str) -> Removed:
        """Remove a snapshot; what was restored from it goes on. Raises in_use."""
        row = self.shelf.find(ref)
        if self.shelf.busy(row):
            what = "restored" if self._moments.busy(row.info.id) else "exported"
            raise error(
                "in_use",
                f"the snapshot {row.info.name} is being {what}",
                hint="try again in a moment",
            )
        self.shelf.leaving.add(row.info.id)
        try:
            freed = await settle(self._records.forget(row))
        finally:
            self.shelf.leaving.discard(row.info.id)
        self._parts.events.emit("snapshot.removed", row.info.id, row.info.name)
        return Removed([row.info.id], freed)

    async def collect(self, keep: int, sandbox: str | None = None) -> Removed:
        """Remove all but the `keep` newest snapshots of each sandbox, or of one.

        Checkpoints have a limit of their own.
        """
        if keep < 0:
            raise error("bad_request", f"{keep} snapshots cannot be kept", hint="keep 0 or more")
        groups: defaultdict[str, list[SnapshotRow]] = defaultdict(list)
        for row in [row for row in self.shelf.of(sandbox) if not row.info.checkpoint]:
            groups[row.info.sandbox_id or row.info.sandbox_name].append(row)
        removed = Removed([])
        for rows in groups.values():
            for row in rows[: max(0, len(rows) - keep)]:
                if not self.shelf.busy(row) and row.info.id not in self.shelf.leaving:
                    one = await self.remove(row.info.id)
                    removed = Removed([*removed.removed, *one.removed], removed.bytes + one.bytes)
        return removed

    # ---- at the start of the daemon

    async def open(self) -> None:
        """Take up what is complete, and undo the rest; before the layers are opened."""
        await self._records.open()


def _cannot_run(info: SandboxInfo) -> HutchError:
    failure = wrong_state(info, "running or paused")
    failure.hint = f"take its disk alone with --disk-only, or start it: `hutch start {info.name}`"
    return failure
