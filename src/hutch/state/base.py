"""The seam between the service and its records.

A row is written **before** the act that it describes, so that a crash at any point can be finished
or undone at the next start. Methods are named by intent; a cluster will bring another
implementation. Exec sessions have no rows: the guest itself holds them and lists them again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hutch.models import SandboxInfo, SandboxSpec, SandboxState


@dataclass(frozen=True, slots=True)
class SandboxRow:
    """A sandbox on record: what was asked for, what it is now, and how to find its machine again.

    `machine` is engine.base.MachineRecord as JSON (None: no machine). `slot` numbers the VM on this
    host (uid = base + slot). `generation` counts its starts.
    """

    spec: SandboxSpec
    info: SandboxInfo
    slot: int
    machine: Mapping[str, Any] | None = None
    generation: int = 0


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

    async def add_sandbox(self, spec: SandboxSpec, info: SandboxInfo, *, slots: int) -> SandboxRow:
        """Record a new sandbox; takes its name and the lowest free slot below `slots` with it."""

    async def sandboxes(self) -> Sequence[SandboxRow]:
        """Return all rows, oldest first."""

    async def move(
        self,
        sandbox_id: str,
        expected: Sequence[SandboxState],
        state: SandboxState,
        **changes: Any,
    ) -> SandboxRow:
        """Change the state, and fields of `info`, if it is one of `expected` now.

        Raises Conflict (wrong_state) otherwise.
        """

    async def set_machine(self, sandbox_id: str, machine: Mapping[str, Any] | None) -> SandboxRow:
        """Record the VM that has just been started, or None once it is gone."""

    async def set_template(self, sandbox_id: str, template: str | None) -> SandboxRow:
        """Record which template's disk is about to be behind the sandbox's own (None: none's)."""

    async def next_generation(self, sandbox_id: str) -> SandboxRow:
        """Count up the generation, the number that the guest is told at each start."""

    async def rename(self, sandbox_id: str, name: str) -> SandboxRow:
        """Give a sandbox another name. Raises Conflict (name_taken)."""

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Forget a sandbox and free its name and slot; nothing happens when it is not on record."""
