"""What the API can ask for of moments of sandboxes: snapshots, forks, checkpoints, differences.

Protocols, as those of `operations`, and under the same rules.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from hutch.models import Forked, Removed, SandboxInfo, SnapshotInfo
from hutch.reports import Checkpoint, Difference
from hutch.service.sealing import Key


class Snapshots(Protocol):
    """Points in time of sandboxes. A snapshot's `ref` is its id, name or unique id prefix."""

    async def create(
        self,
        ref: str,
        *,
        name: str | None = None,
        disk_only: bool = False,
        freeze: bool = True,
        key: Key | None = None,
    ) -> SnapshotInfo:
        """Take a snapshot of the sandbox `ref`, which goes on; of its disk alone also at rest.

        With a key it is encrypted: it is needed to restore it.
        Its programs stand still meanwhile. Without `freeze`, for a disk alone, only its VM does.
        Raises wrong_state, name_taken, guest_timeout, disk_full.
        """

    async def list(
        self, sandbox: str | None = None, *, checkpoints: bool = False
    ) -> Sequence[SnapshotInfo]:
        """Return all snapshots, oldest first, or those of one sandbox, which may be gone.

        With `checkpoints` those that are checkpoints, too.
        """

    async def get(self, ref: str) -> SnapshotInfo:
        """Return one snapshot."""

    async def remove(self, ref: str) -> Removed:
        """Remove a snapshot. What was restored from it goes on."""

    async def collect(self, keep: int, sandbox: str | None = None) -> Removed:
        """Remove all but the `keep` newest of each sandbox, or of one."""

    async def restore(
        self,
        ref: str,
        name: str | None = None,
        *,
        disk_only: bool = False,
        key: Key | None = None,
    ) -> SandboxInfo:
        """Make a sandbox that goes on from a snapshot, or boots from its disk; return it running.

        `key` is that of an encrypted one. Raises wrong_key, snapshot_damaged,
        snapshot_incompatible, name_taken, no_capacity, boot_failed.
        """

    def export(self, ref: str, key: Key | None = None) -> AsyncIterator[bytes]:
        """Yield a snapshot as one file, with all that another host needs to restore it.

        With a key it is encrypted. Raises snapshot_damaged, image_not_found, tool_missing,
        disk_full.
        """

    async def load(
        self, pieces: AsyncIterator[bytes], name: str | None = None, key: Key | None = None
    ) -> SnapshotInfo:
        """Take in the file of an exported snapshot, under its own name or another.

        Raises wrong_key, snapshot_damaged, snapshot_incompatible, name_taken, disk_full; nothing is
        left then.
        """


class Forks(Protocol):
    """Children of running sandboxes."""

    async def fork(self, ref: str, names: Sequence[str] = (), count: int | None = None) -> Forked:
        """Make running children of a sandbox, all from one moment of it; it goes on.

        `names` are those of the first, `count` is how many there shall be. Raises what became of
        the first when none came up; wrong_state, name_taken, guest_timeout.
        """


class Checkpoints(Protocol):
    """Moments that sandboxes can be put back to themselves."""

    async def create(
        self, ref: str, *, message: str = "", command: Sequence[str] = ()
    ) -> SnapshotInfo:
        """Take a checkpoint of a running or paused sandbox, which goes on.

        `command` is what will be done next. Raises wrong_state, guest_timeout, disk_full.
        """

    async def list(self, ref: str) -> Sequence[Checkpoint]:
        """Return the checkpoints of a sandbox, the newest first."""

    async def undo(self, ref: str, number: int = 1, *, to: str | None = None) -> SandboxInfo:
        """Put a sandbox back to its `number`th last checkpoint, or to one by id or name.

        It is as it was when that fails. Raises checkpoint_not_found, snapshot_damaged,
        snapshot_incompatible, no_capacity, boot_failed.
        """


class Diffs(Protocol):
    """Moments of sandboxes, compared."""

    async def diff(self, before: str, after: str | None = None) -> Difference:
        """Compare files and processes of two moments.

        A moment is a sandbox as it is now, `SANDBOX@N` for its Nth last checkpoint, or a snapshot.
        Without `after` it is the last checkpoint of the sandbox `before` with it as it is now.
        """
