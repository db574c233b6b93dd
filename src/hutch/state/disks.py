"""The records of disks' layers and of snapshots: a part of `SqliteStore`, in the same file.

It must not know which layers are in use, nor what a snapshot holds.
"""

import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

from hutch.errors import error
from hutch.models import SnapshotInfo, from_json, to_json
from hutch.state.base import LayerRow, SnapshotRow

T = TypeVar("T")


def insert_layer(db: sqlite3.Connection, layer: LayerRow) -> None:
    """Record a new layer."""
    db.execute(
        "INSERT INTO layers (id, parent, template, created_at) VALUES (?, ?, ?, ?)",
        (layer.id, layer.parent, layer.template, layer.created_at),
    )


class DiskRecords(ABC):
    """The calls of `Store` for layers and snapshots that touch no sandbox's row."""

    @abstractmethod
    async def _call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do the work in a transaction of its own."""

    async def layers(self) -> Sequence[LayerRow]:
        """Return all layers, oldest first."""

        def work(db: sqlite3.Connection) -> list[LayerRow]:
            found = db.execute(
                "SELECT id, parent, template, created_at FROM layers ORDER BY number"
            )
            return [LayerRow(*values) for values in found]

        return await self._call(work)

    async def add_layer(self, layer: LayerRow) -> None:
        """Record a layer that no sandbox has yet."""
        await self._call(lambda db: insert_layer(db, layer))

    async def join_layers(self, joined: LayerRow, above: str) -> None:
        """Record a layer as the one behind `above`, in place of those that it says the same as."""

        def work(db: sqlite3.Connection) -> None:
            insert_layer(db, joined)
            changed = "UPDATE layers SET parent = ?, template = NULL WHERE id = ?"
            db.execute(changed, (joined.id, above))

        await self._call(work)

    async def remove_layer(self, layer_id: str) -> None:
        """Forget a layer, if it is on record."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM layers WHERE id = ?", (layer_id,))

        await self._call(work)

    async def snapshots(self) -> Sequence[SnapshotRow]:
        """Return all rows, oldest first."""

        def work(db: sqlite3.Connection) -> list[SnapshotRow]:
            found = db.execute("SELECT info, ready, layer FROM snapshots ORDER BY number")
            return [
                SnapshotRow(from_json(SnapshotInfo, json.loads(info)), bool(ready), layer)
                for info, ready, layer in found
            ]

        return await self._call(work)

    async def add_snapshot(
        self, info: SnapshotInfo, layer: str | None, *, new: LayerRow | None = None
    ) -> SnapshotRow:
        """Record a snapshot that is about to be made. Raises name_taken."""

        def work(db: sqlite3.Connection) -> SnapshotRow:
            if db.execute("SELECT 1 FROM snapshots WHERE name = ?", (info.name,)).fetchone():
                raise error(
                    "name_taken",
                    f"there is already a snapshot named {info.name}",
                    hint=f"choose another name, or remove it with `hutch snapshot rm {info.name}`",
                )
            if new is not None:
                insert_layer(db, new)
            db.execute(
                "INSERT INTO snapshots (id, name, ready, layer, info) VALUES (?, ?, 0, ?, ?)",
                (info.id, info.name, layer, json.dumps(to_json(info))),
            )
            return SnapshotRow(info, False, layer)

        return await self._call(work)

    async def finish_snapshot(self, info: SnapshotInfo) -> SnapshotRow:
        """Record that a snapshot is complete. Raises snapshot_not_found."""

        def work(db: sqlite3.Connection) -> SnapshotRow:
            found = db.execute(
                "UPDATE snapshots SET ready = 1, info = ? WHERE id = ? RETURNING layer",
                (json.dumps(to_json(info)), info.id),
            ).fetchone()
            if found is None:
                raise error("snapshot_not_found", f"there is no snapshot {info.id}")
            return SnapshotRow(info, True, found[0])

        return await self._call(work)

    async def remove_snapshot(self, snapshot_id: str) -> None:
        """Forget a snapshot and free its name, if it is on record."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM snapshots WHERE id = ?", (snapshot_id,))

        await self._call(work)
