"""How snapshots get on record and off it, and what there is of them with it: directories, layers.

A row comes first and is ready last; one that is not ready is undone at the next start. It must not
know how snapshots are made, nor what is in them.
"""

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

from hutch.engine.base import Frozen
from hutch.errors import HutchError
from hutch.models import SandboxInfo, SnapshotInfo
from hutch.service.layers import Layers
from hutch.service.manifest import read_manifest
from hutch.service.parts import Parts
from hutch.service.registry import Registry
from hutch.service.shelf import Shelf
from hutch.service.stats import uses_of
from hutch.state.base import LayerRow, SnapshotRow
from hutch.tasks import in_thread

log = logging.getLogger(__name__)


class SnapshotRecords:
    """The records of one host's snapshots.

    Invariant: what is on the shelf is on record, and its layer is kept.
    """

    def __init__(self, parts: Parts, registry: Registry, layers: Layers) -> None:
        self._parts = parts
        self._layers = layers
        self.shelf = Shelf(registry)
        self._sources: dict[str, SandboxInfo] = {}
        layers.add_holder(self._held)
        registry.also_needs(self._sources.values)

    def _held(self) -> Iterable[str | None]:
        return [row.layer for row in self.shelf.values()]

    async def put(
        self,
        snapshot: SnapshotInfo,
        layer: str | None,
        source: SandboxInfo,
        new: LayerRow | None = None,
    ) -> SnapshotRow:
        """Record one that is about to be made of `source`; `new` is a layer of its own for it.

        Raises name_taken, disk_full.
        """
        row = await self._parts.store.add_snapshot(snapshot, layer, new=new)
        if new is not None:
            self._layers.know(new)
        self.shelf[snapshot.id] = row
        self._sources[snapshot.id] = source
        return row

    async def finish(self, snapshot: SnapshotInfo) -> None:
        """Record that one is complete."""
        self.shelf[snapshot.id] = await self._parts.store.finish_snapshot(snapshot)

    async def discard(self, snapshot_id: str) -> None:
        """Remove what there is of a snapshot that was not finished."""
        row = self.shelf.get(snapshot_id)
        if row is not None:
            directory = self._parts.places.snapshot(snapshot_id)
            await self._parts.engine.drop(Frozen(directory, row.info.memory))
            await self.forget(row)

    async def forget(self, row: SnapshotRow) -> int:
        """Take one off the record, and remove what there is of it; returns the bytes freed."""
        snapshot_id, directory = row.info.id, self._parts.places.snapshot(row.info.id)
        freed = (await in_thread(uses_of, directory)).own
        try:
            await self._parts.store.remove_snapshot(snapshot_id)
        except HutchError as failure:
            if failure.code != "disk_full":
                raise
            # The records need a little room themselves: make it first.
            await in_thread(shutil.rmtree, directory, ignore_errors=True)
            await self._parts.store.remove_snapshot(snapshot_id)
        self.shelf.pop(snapshot_id, None)
        self._sources.pop(snapshot_id, None)
        # From here on a crash leaves a directory without a row, which the next start removes.
        await in_thread(shutil.rmtree, directory, ignore_errors=True)
        return freed + await self._layers.release(row.layer)

    async def open(self) -> None:
        """Take up what is complete, and undo the rest; before the layers are opened."""
        for row in await self._parts.store.snapshots():
            directory = self._parts.places.snapshot(row.info.id)
            if not row.ready:
                log.warning("undoing the snapshot %s, which was being made", row.info.name)
                await in_thread(shutil.rmtree, directory, ignore_errors=True)
                try:
                    await self._parts.store.remove_snapshot(row.info.id)
                except HutchError as failure:
                    log.error("the snapshot %s stays on record: %s", row.info.name, failure)
                continue
            self.shelf[row.info.id] = row
            try:
                manifest = await in_thread(read_manifest, directory, row.info.name)
                self._sources[row.info.id] = manifest.info
            except HutchError as failure:
                log.warning("%s", failure)
        for directory in await in_thread(_directories, self._parts.places.snapshots):
            if directory.name not in self.shelf:
                log.warning("removing what is left of %s", directory.name)
                await in_thread(shutil.rmtree, directory, ignore_errors=True)


def _directories(parent: Path) -> list[Path]:
    return sorted(parent.iterdir()) if parent.is_dir() else []
