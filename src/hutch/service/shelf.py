"""The snapshots of one host as they are on record, and how one of them is found.

It must not know how snapshots are made, nor what is in them.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from hutch.errors import HutchError, error
from hutch.models import SnapshotInfo
from hutch.service.names import SNAPSHOT_PREFIX
from hutch.service.registry import Registry
from hutch.state.base import LayerRow, SnapshotRow

_PREFIX_MIN: Final = 4


class Shelf(dict[str, SnapshotRow]):
    """The rows by id, in the order of their making. `leaving` are those that are being removed."""

    def __init__(self, registry: Registry) -> None:
        super().__init__()
        self._registry = registry
        self.leaving: set[str] = set()
        self._users: Counter[str] = Counter()
        self._unused: list[Callable[[SnapshotRow], None]] = []

    def find(self, ref: str) -> SnapshotRow:
        """Find one that is ready by id, name, or the beginning of an id.

        Raises snapshot_not_found.
        """
        ready = [row for row in self.of(None) if row.info.id not in self.leaving]
        for row in ready:
            if ref in (row.info.id, row.info.name):
                return row
        prefix = ref if ref.startswith(SNAPSHOT_PREFIX) else SNAPSHOT_PREFIX + ref
        found = [row for row in ready if row.info.id.startswith(prefix)]
        if len(ref) >= _PREFIX_MIN and len(prefix) > len(SNAPSHOT_PREFIX) and len(found) == 1:
            return found[0]
        raise error(
            "snapshot_not_found",
            f"there is no snapshot {ref}",
            hint="`hutch snapshot ls` lists all of them",
        )

    def of(self, sandbox: str | None) -> Sequence[SnapshotRow]:
        """Return all that are ready, or those of one sandbox, which may be gone."""
        ready = [row for row in self.values() if row.ready]
        if sandbox is None:
            return ready
        with contextlib.suppress(HutchError):
            sandbox = self._registry.find(sandbox).info.id
        return [r for r in ready if sandbox in (r.info.sandbox_id, r.info.sandbox_name)]

    def checkpoints(self, sandbox_id: str | None = None) -> Sequence[SnapshotInfo]:
        """Return the checkpoints of a sandbox, or of all, oldest first, as they were made."""
        rows = [row for row in self.of(None) if row.info.id not in self.leaving]
        wanted = [row.info for row in rows if row.info.checkpoint]
        return [info for info in wanted if sandbox_id in (None, info.sandbox_id)]

    # ---- their use

    @contextlib.contextmanager
    def used(self, row: SnapshotRow) -> Iterator[None]:
        """Let nobody remove one for the length of the block."""
        self._users[row.info.id] += 1
        try:
            yield
        finally:
            self._users[row.info.id] -= 1
            if not self.busy(row) and row.info.id in self:
                for follow in self._unused:
                    follow(row)

    def busy(self, row: SnapshotRow) -> bool:
        """Tell whether somebody uses it."""
        return self._users[row.info.id] > 0

    def when_unused(self, follow: Callable[[SnapshotRow], None]) -> None:
        """Have `follow` called with each that its last user leaves. It must not raise."""
        self._unused.append(follow)

    def nearest(self, chain: Iterable[LayerRow]) -> str | None:
        """Return the snapshot that a disk, whose layers these are, was last a part of."""
        by_layer = {row.layer: row.info.id for row in self.values() if row.ready}
        return next((by_layer[each.id] for each in chain if each.id in by_layer), None)
