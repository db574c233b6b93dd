"""The checkpoints of sandboxes: snapshots that are cheap to take, numbered back from now, capped.

A checkpoint belongs to its sandbox and goes with it. It must not know how a moment is captured, nor
how a sandbox is put back to one.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Container, Sequence

from hutch.engine.base import Frozen
from hutch.errors import HutchError, error
from hutch.models import SandboxInfo, SnapshotInfo, SnapshotKind
from hutch.reports import Checkpoint
from hutch.service.capture import Captures
from hutch.service.lives import Lives
from hutch.service.names import numbered_name
from hutch.service.parts import Parts
from hutch.service.registry import Entry, Registry
from hutch.service.snapshots import Snapshots
from hutch.service.undo import Undos
from hutch.state.base import SnapshotRow
from hutch.tasks import Scope, settle

log = logging.getLogger(__name__)

MESSAGE_MAX = 1000
COMMAND_MAX = 100
"""What is kept of a message, in characters, and of a command, in words of as many characters."""


class Checkpoints:
    """The checkpoints of one host's sandboxes."""

    def __init__(
        self,
        parts: Parts,
        registry: Registry,
        lives: Lives,
        captures: Captures,
        snapshots: Snapshots,
    ) -> None:
        self._parts = parts
        self._registry = registry
        self._snapshots = snapshots
        self._thinning = captures.thinning
        self._undos = Undos(parts, lives, captures)
        self._scope: Scope | None = Scope("checkpoints")
        lives.when_erased(self._forget_all)
        snapshots.shelf.when_unused(self._forget_one)

    async def create(
        self, ref: str, *, message: str = "", command: Sequence[str] = ()
    ) -> SnapshotInfo:
        """Take a checkpoint of a running or paused sandbox, which goes on.

        The oldest beyond the setting `checkpoint_keep` go, and those that were undone. Raises what
        `Snapshots.create` raises.
        """
        entry = self._registry.find(ref)
        undone: list[SnapshotInfo] = []

        def mark(snapshot: SnapshotInfo, taken: Container[str]) -> SnapshotInfo:
            known = numbered(entry.info, self._of(entry.info))
            undone.extend(each.snapshot for each in known if each.number is None)
            return dataclasses.replace(
                snapshot,
                name=numbered_name(f"{entry.info.name}-cp", taken),
                checkpoint=True,
                message=message[:MESSAGE_MAX],
                command=[word[:MESSAGE_MAX] for word in command[:COMMAND_MAX]],
            )

        made = await self._snapshots.create(entry.info.id, mark=mark, over=self._over)
        if entry.removed:  # after its capture: whoever removed it did not know of this one
            await settle(self._remove([made]))
            entry.check_present()
        await self._remove(undone)
        await self._remove(self._of(entry.info)[: -self._parts.settings.checkpoint_keep])
        self._thinning.begin(entry)  # not before: what the others leave is joined at best
        return made

    def _over(self, checkpoint: SnapshotInfo, info: SandboxInfo) -> Sequence[Frozen]:
        """Return the memories at rest that are much like a sandbox's now: see `Engine.keep`."""
        places, found = self._parts.places, []
        before = self._snapshots.shelf.get(checkpoint.parent or "")
        if before is not None and before.info.kind is SnapshotKind.FULL:
            found.append(places.snapshot(before.info.id))  # an encrypted one has no such files
        if info.template is not None:
            found.append(places.template(info.template))
        return [Frozen(directory, info.memory) for directory in found]

    def _of(self, info: SandboxInfo) -> Sequence[SnapshotInfo]:
        return self._snapshots.shelf.checkpoints(info.id)

    async def _remove(self, checkpoints: Sequence[SnapshotInfo]) -> None:
        for each in checkpoints:
            try:
                await self._snapshots.remove(each.id)
            except HutchError as failure:
                # It is in use, or gone already. The next one that is taken tries again.
                log.info("the checkpoint %s stays: %s", each.name, failure)

    async def list(self, ref: str) -> Sequence[Checkpoint]:
        """Return the checkpoints of a sandbox, the newest first."""
        info = self._registry.find(ref).info
        found = []
        for each in numbered(info, self._of(info)):
            with contextlib.suppress(HutchError):  # it was removed in this moment
                snapshot = await self._snapshots.get(each.snapshot.id)
                found.append(Checkpoint(each.number, snapshot))
        return found

    async def undo(self, ref: str, number: int = 1, *, to: str | None = None) -> SandboxInfo:
        """Put a sandbox back to its `number`th last checkpoint, or to one by id or name.

        It is the same sandbox, with the memory, programs and disk of then. When it fails the
        sandbox is as it was. Raises checkpoint_not_found, and what `Undos.put_back` raises.
        """
        entry = self._registry.find(ref)
        checkpoint = self.chosen(entry.info, number, to)
        opened = functools.partial(self._snapshots.opened, checkpoint.id)
        undone = functools.partial(self._undone_by, entry, checkpoint.id)
        await self._undos.put_back(entry, opened, undone)
        return entry.info

    def _undone_by(self, entry: Entry, checkpoint_id: str) -> Sequence[str]:
        # In the order of their making, also those that are not complete yet: clocks step back.
        info = entry.info
        rows = [row.info for row in self._snapshots.shelf.values()]
        known = [each.id for each in rows if each.checkpoint and each.sandbox_id == info.id]
        return left_behind(info.undone, known, checkpoint_id)

    def chosen(self, info: SandboxInfo, number: int, to: str | None = None) -> SnapshotInfo:
        """Return a checkpoint by number, or by id or name. Raises checkpoint_not_found."""
        for each in numbered(info, self._of(info)):
            names = (each.snapshot.id, each.snapshot.name)
            if to in names if to is not None else each.number == number:
                return each.snapshot
        which = f"no checkpoint {number}" if to is None else f"no checkpoint {to}"
        raise error(
            "checkpoint_not_found",
            f"sandbox {info.name} has {which}",
            hint=f"`hutch checkpoints {info.name}` lists those that it has",
        )

    # ---- their end

    async def _forget_all(self, sandbox_id: str) -> None:
        await self._remove(self._snapshots.shelf.checkpoints(sandbox_id))

    def _forget_one(self, row: SnapshotRow) -> None:
        """Remove one that was in use as its sandbox was removed."""
        gone = row.info.checkpoint and self._registry.by_id(row.info.sandbox_id) is None
        if gone and self._scope is not None:
            self._scope.start(f"forget {row.info.id}", self._remove([row.info]))

    async def open(self) -> None:
        """Remove the checkpoints of sandboxes that are gone."""
        known = {entry.info.id for entry in self._registry}
        everything = self._snapshots.shelf.checkpoints()
        await self._remove([each for each in everything if each.sandbox_id not in known])

    async def close(self) -> None:
        """Undo what is under way."""
        await self._undos.close()
        if (scope := self._scope) is not None:
            self._scope = None
            await scope.close()


def numbered(info: SandboxInfo, checkpoints: Sequence[SnapshotInfo]) -> list[Checkpoint]:
    """Return a sandbox's checkpoints, given oldest first, numbered back from where it is now."""
    line = [each.id for each in reversed(checkpoints) if each.id not in info.undone]
    numbers = {each: number for number, each in enumerate(line, 1)}
    return [Checkpoint(numbers.get(each.id), each) for each in reversed(checkpoints)]


def left_behind(undone: Sequence[str], known: Sequence[str], to: str) -> list[str]:
    """Return which of the checkpoints `known`, oldest first, are no part of what leads to one.

    `undone` are those of which that is known already, unless it is one of them.
    """
    later = known[known.index(to) + 1 :]
    before = () if to in undone else undone
    return [each for each in known if each in later or each in before]
