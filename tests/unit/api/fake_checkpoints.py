"""Checkpoints in memory, for the API's tests and the command line's."""

from collections.abc import Sequence
from dataclasses import replace

from hutch.errors import error
from hutch.models import SandboxInfo, SnapshotInfo
from hutch.reports import Checkpoint
from tests.unit.api.fake_snapshots import FakeSnapshots


class FakeCheckpoints:
    """Checkpoints of fake sandboxes: snapshots that are marked."""

    def __init__(self, snapshots: FakeSnapshots) -> None:
        self._snapshots = snapshots

    async def create(
        self, ref: str, *, message: str = "", command: Sequence[str] = ()
    ) -> SnapshotInfo:
        made = await self._snapshots.create(ref)
        marked = replace(made, checkpoint=True, message=message, command=list(command))
        self._snapshots.all[-1] = marked
        return marked

    async def list(self, ref: str) -> Sequence[Checkpoint]:
        info = await self._snapshots.sandboxes.get(ref)
        found = [s for s in self._snapshots.all if s.checkpoint and s.sandbox_id == info.id]
        return [Checkpoint(number, each) for number, each in enumerate(reversed(found), 1)]

    async def undo(self, ref: str, number: int = 1, *, to: str | None = None) -> SandboxInfo:
        info: SandboxInfo = await self._snapshots.sandboxes.get(ref)
        for each in await self.list(ref):
            if to == each.snapshot.id or (to is None and each.number == number):
                back = replace(info, undone_to=each.snapshot.id)
                self._snapshots.sandboxes.rows[info.id] = back
                return back
        raise error("checkpoint_not_found", f"sandbox {info.name} has no such checkpoint")
