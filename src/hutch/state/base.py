"""The seam between the service and its records.

A row is written **before** the act that it describes, so that a crash at any point can be finished
or undone at the next start. Methods are named by intent; a cluster will bring another
implementation. Exec sessions have no rows: the guest itself holds them and lists them again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hutch.models import SandboxInfo, SandboxSpec, SandboxState, SnapshotInfo


@dataclass(frozen=True, slots=True)
class SandboxRow:
    """A sandbox on record: what was asked for, what it is now, and how to find its machine again.

    `machine` is engine.base.MachineRecord as JSON (None: no machine). `slot` numbers the VM on this
    host (uid = base + slot). `generation` counts its starts. `layer` is the uppermost one of
    its disk (None: it has no disk yet).
    """

    spec: SandboxSpec
    info: SandboxInfo
    slot: int
    machine: Mapping[str, Any] | None = None
    generation: int = 0
    layer: str | None = None
    pool: str | None = None
    """The pool whose member this is, until a sandbox claims it."""


@dataclass(frozen=True, slots=True)
class PoolRow:
    """A pool on record: `size` clones of an image and size are to be ready."""

    id: str
    image: str
    cpus: int
    memory: int
    size: int
    created_at: str


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A layer of a disk: a qcow2 file over `parent`, or else over the disk of `template`.

    One with neither is over the empty base.
    """

    id: str
    parent: str | None
    template: str | None
    created_at: str


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A snapshot on record. One that is not `ready` is being made, or was when a daemon died.

    `layer` is the uppermost one of its disk, which nobody writes any more.
    """

    info: SnapshotInfo
    ready: bool
    layer: str | None


class Store(Protocol):
    """The records of one daemon.

    A call that is cancelled is carried out to its end before the cancellation shows, so that
    whoever undoes it finds a settled record. Errors: sandbox_not_found, name_taken, wrong_state,
    no_capacity (slots), disk_full, daemon_version.
    """

    async def open(self) -> None:
        """Migrate to the newest schema. Raises DaemonError (daemon_version) for a newer one."""

    async def close(self) -> None:
        """Finish what was begun and let go of the records."""

    async def add_sandbox(
        self,
        spec: SandboxSpec,
        info: SandboxInfo,
        *,
        slots: int,
        layer: LayerRow | None = None,
        generation: int = 0,
    ) -> SandboxRow:
        """Record a new sandbox; takes its name and the lowest free slot below `slots` with it.

        A disk that is there from the beginning comes with a new `layer`, and `generation` is that
        of the sandbox that it goes on from.
        """

    async def sandboxes(self) -> Sequence[SandboxRow]:
        """Return all rows, oldest first."""

    async def move(
        self,
        sandbox_id: str,
        expected: Sequence[SandboxState],
        state: SandboxState,
        *,
        vm: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> SandboxRow:
        """Change the state, and fields of `info`, if it is one of `expected` now.

        With `vm` only if that is its machine on record. Raises Conflict (wrong_state) otherwise.
        """

    async def amend(self, sandbox_id: str, **changes: Any) -> SandboxRow:
        """Change fields of `info`, whatever the state is. Raises sandbox_not_found."""

    async def begin_start(
        self, sandbox_id: str, expected: Sequence[SandboxState], **changes: Any
    ) -> SandboxRow:
        """Move to STARTING as `move` does, and count up the generation, in one step."""

    async def set_machine(self, sandbox_id: str, machine: Mapping[str, Any] | None) -> SandboxRow:
        """Record the VM that has just been started, or None once it is gone."""

    async def next_generation(self, sandbox_id: str) -> SandboxRow:
        """Count up the generation, the number that the guest is told at each start."""

    async def rename(self, sandbox_id: str, name: str) -> SandboxRow:
        """Give a sandbox another name. Raises Conflict (name_taken)."""

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Forget a sandbox and free its name and slot; nothing happens when it is not on record."""

    # ---- pools

    async def pools(self) -> Sequence[PoolRow]:
        """Return all rows, oldest first."""

    async def put_pool(self, pool: PoolRow) -> None:
        """Record a pool, or another size of one that is on record."""

    async def remove_pool(self, pool_id: str) -> None:
        """Forget a pool, if it is on record. Its members stay."""

    async def add_member(self, info: SandboxInfo, pool_id: str, *, slots: int) -> SandboxRow:
        """Record a new member of a pool, with the lowest free slot below `slots`.

        It has all that a sandbox has, and is none before it is claimed.
        """

    async def members(self) -> Sequence[SandboxRow]:
        """Return the members of all pools, oldest first."""

    async def claim_member(
        self, spec: SandboxSpec, info: SandboxInfo, machine: Mapping[str, Any]
    ) -> SandboxRow:
        """Make the member with the id of `info` that sandbox; returns its row.

        It keeps its slot and its disk. Raises Conflict (name_taken), NotFound (sandbox_not_found)
        when there is no such member any more.
        """

    # ---- disks

    async def layers(self) -> Sequence[LayerRow]:
        """Return all layers, oldest first."""

    async def put_layer(
        self, sandbox_id: str, layer: LayerRow, *, template: str | None
    ) -> SandboxRow:
        """Record a new layer as the uppermost one of a sandbox.

        `template` becomes the one that the sandbox's disk is based on.
        """

    async def set_layer(self, sandbox_id: str, layer_id: str | None) -> SandboxRow:
        """Record which layer on record is the uppermost one of a sandbox."""

    async def add_layer(self, layer: LayerRow) -> None:
        """Record a layer that no sandbox has yet."""

    async def join_layers(self, joined: LayerRow, above: str) -> None:
        """Record a layer that says what several do, as the one behind `above` in their place."""

    async def put_back(
        self,
        sandbox_id: str,
        expected: Sequence[SandboxState],
        state: SandboxState,
        *,
        machine: Mapping[str, Any] | None,
        layer: str | None,
        vm: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> SandboxRow:
        """Give a sandbox another VM and another disk, with what `move` does, all in one step.

        `layer` is on record already. Raises as `move`.
        """

    async def remove_layer(self, layer_id: str) -> None:
        """Forget a layer, if it is on record."""

    # ---- snapshots

    async def snapshots(self) -> Sequence[SnapshotRow]:
        """Return all rows, oldest first."""

    async def add_snapshot(
        self, info: SnapshotInfo, layer: str | None, *, new: LayerRow | None = None
    ) -> SnapshotRow:
        """Record a snapshot that is about to be made. Raises Conflict (name_taken).

        Its layer, if it has one of its own, comes as `new`.
        """

    async def finish_snapshot(self, info: SnapshotInfo) -> SnapshotRow:
        """Record that a snapshot is complete. Raises NotFound (snapshot_not_found)."""

    async def remove_snapshot(self, snapshot_id: str) -> None:
        """Forget a snapshot and free its name, if it is on record."""
