"""Checkpoints in memory, for the API's tests and the command line's."""

from collections.abc import Sequence
from dataclasses import replace

from hutch.errors import error
from hutch.models import SandboxInfo, SnapshotInfo
from hutch.reports import Checkpoint, Difference, FileChange, ProcessChange
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


class FakeDiffs:
    """Any two moments differ in a file and a process; one does not differ from itself."""

    async def diff(self, before: str, after: str | None = None) -> Difference:
        if "nosuch" in (before, after):
            raise error("sandbox_not_found", "there is no sandbox nosuch")
        if before == after:
            return Difference(before, before, [], [], True)
        files = [FileChange("added", "/d", "dir", 0, 0o755)]
        files += [FileChange("removed", "/f\x1b", "file", 3, 0o644)]
        ran = [ProcessChange("gone", 7, "root", "sleep 1000")]
        return Difference(before, after or before, files, ran, after is not None)
