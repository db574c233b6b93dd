"""What differs between two moments: checkpoints, snapshots, and sandboxes as they are now.

A moment of the past is looked into in a VM of its own, whose programs stay frozen. It must not know
how files are compared, nor how such a VM is started.
"""

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

from hutch.errors import HutchError, error
from hutch.guest.base import Guest
from hutch.models import SnapshotKind
from hutch.reports import Difference, ProcessChange, ProcessInfo
from hutch.service.beside import Beside
from hutch.service.checkpoints import Checkpoints
from hutch.service.lives import Lives
from hutch.service.parts import Parts
from hutch.service.registry import Registry
from hutch.service.snapshots import Snapshots
from hutch.service.stats import processes
from hutch.service.trees import Tree, changed_files

_KERNEL_THREADS = 2
"""The process that all threads of a guest's kernel come from."""

_ZOMBIE = "Z"


class Diffs:
    """Compares moments of one host's sandboxes."""

    def __init__(
        self,
        parts: Parts,
        registry: Registry,
        lives: Lives,
        snapshots: Snapshots,
        checkpoints: Checkpoints,
    ) -> None:
        self._parts = parts
        self._registry = registry
        self._lives = lives
        self._snapshots = snapshots
        self._checkpoints = checkpoints
        self._beside = Beside(parts, lives.booter)

    async def diff(self, before: str, after: str | None = None) -> Difference:
        """Compare two moments; without `after` a sandbox's last checkpoint with it as it is.

        A moment is a sandbox, `SANDBOX@N` for its Nth last checkpoint, or a snapshot. Raises
        sandbox_not_found, checkpoint_not_found, snapshot_not_found, wrong_state, and what taking up
        a snapshot raises.
        """
        if after is None:
            before, after = f"{self._registry.find(before).info.name}@1", before
        async with AsyncExitStack() as stack:
            old = await stack.enter_async_context(self._look_into(before))
            new = await stack.enter_async_context(self._look_into(after))
            ran, runs = await processes(old), await processes(new)
            files, complete = await changed_files(Tree(old.files), Tree(new.files))
        return Difference(before, after, files, _changed_processes(ran, runs), complete)

    @contextlib.asynccontextmanager
    async def _look_into(self, ref: str) -> AsyncIterator[Guest]:
        name, at, number = ref.rpartition("@")
        if at and number.isdecimal():
            info = self._registry.find(name).info
            async with self._past(self._checkpoints.chosen(info, int(number)).id) as guest:
                yield guest
            return
        with contextlib.suppress(HutchError):
            ref = self._registry.find(ref).info.id
        if ref not in {entry.info.id for entry in self._registry}:
            async with self._past(ref) as guest:
                yield guest
            return
        sandbox = await self._lives.awake(self._registry.find(ref))
        with sandbox.activity.use():
            yield await sandbox.connection.get()

    @contextlib.asynccontextmanager
    async def _past(self, ref: str) -> AsyncIterator[Guest]:
        snapshot = self._snapshots.shelf.find(ref).info
        if snapshot.kind is not SnapshotKind.FULL:
            raise error(
                "bad_request",
                f"the snapshot {snapshot.name} holds a disk alone, which nobody can look into",
                hint=f"compare what `hutch restore {snapshot.name}` makes of it",
            )
        entry = self._registry.by_id(snapshot.sandbox_id)
        if entry is None:
            raise error(
                "bad_request",
                f"the sandbox of the snapshot {snapshot.name} is gone",
                hint=f"compare what `hutch restore {snapshot.name}` makes of it",
            )
        async with (
            self._snapshots.opened(snapshot.id) as past,
            self._beside.peek(entry.row, past) as guest,
        ):
            yield guest


def _changed_processes(
    before: Sequence[ProcessInfo], after: Sequence[ProcessInfo]
) -> list[ProcessChange]:
    old, new = _programs(before), _programs(after)
    gone = [("gone", each) for key, each in old.items() if key not in new]
    added = [("added", each) for key, each in new.items() if key not in old]
    return [ProcessChange(how, each.pid, each.user, each.command) for how, each in gone + added]


def _programs(found: Sequence[ProcessInfo]) -> dict[tuple[int, str], ProcessInfo]:
    """Return the processes that run, and are no part of the guest's kernel, nor its agent."""
    kernel = (0, _KERNEL_THREADS)
    programs = [each for each in found if each.ppid not in kernel and each.state != _ZOMBIE]
    return {(each.pid, each.command): each for each in programs}
