"""Checkpoints of sandboxes: taken, listed, and what `undo` puts a sandbox back to."""

from collections.abc import Sequence

from hutch.models import SandboxInfo, SnapshotInfo, from_json
from hutch.reports import Checkpoint, Difference
from hutch.sdk.aio.transport import Transport
from hutch.sdk.http1 import quote


class AsyncCheckpoints:
    """Moments that sandboxes can be put back to themselves."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def create(self, sandbox: str, message: str = "") -> SnapshotInfo:
        """Take a checkpoint of a sandbox, which goes on. Raises Conflict (wrong_state)."""
        path = f"/v1/sandboxes/{quote(sandbox)}/checkpoints"
        answer = await self._transport.request("POST", path, json={"message": message})
        return from_json(SnapshotInfo, await answer.json())

    async def list(self, sandbox: str) -> Sequence[Checkpoint]:
        """Return the checkpoints of a sandbox, the newest first."""
        path = f"/v1/sandboxes/{quote(sandbox)}/checkpoints"
        answer = await self._transport.request("GET", path)
        return [from_json(Checkpoint, item) for item in await answer.json()]

    async def undo(self, sandbox: str, number: int = 1, *, to: str | None = None) -> SandboxInfo:
        """Put a sandbox back to its `number`th last checkpoint, or `to` one by id or name.

        It is the same sandbox with memory, programs and disk of then, and as it was when that
        fails. Raises NotFound (checkpoint_not_found).
        """
        path = f"/v1/sandboxes/{quote(sandbox)}/undo"
        answer = await self._transport.request("POST", path, json={"number": number, "to": to})
        return from_json(SandboxInfo, await answer.json())

    async def diff(self, before: str, after: str | None = None) -> Difference:
        """Compare two moments; without `after` a sandbox's last checkpoint with it as it is now.

        A moment is a sandbox, `SANDBOX@N` for its Nth last checkpoint, or a snapshot.
        """
        query = {"before": before, "after": after}
        answer = await self._transport.request("GET", "/v1/diff", query)
        return from_json(Difference, await answer.json())
