"""The seam between the service and its records.

A row is written **before** the act that it describes, so that a crash at any point can be finished
or undone at the next start. Methods are named by intent; a cluster will bring another
implementation. All calls may block for milliseconds and are made through a worker thread by the
implementation itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hutch.models import ExitStatus, SandboxInfo, SandboxSpec, SandboxState


@dataclass(frozen=True, slots=True)
class SandboxRow:
    """A sandbox on record: what was asked for, what it is now, and how to find its machine again.

    `machine` is engine.base.MachineRecord as JSON (None: no machine). `slot` numbers the VM on this
    host (uid = base + slot). `log_offsets` are the output offsets of execs already written to log
    files, by "exec:channel".
    """

    spec: SandboxSpec
    info: SandboxInfo
    slot: int
    machine: Mapping[str, Any] | None = None
    generation: int = 0


@dataclass(frozen=True, slots=True)
class ExecRow:
    """An exec session on record (detached, or attached by a client that may come back)."""

    id: str
    sandbox_id: str
    argv: Sequence[str]
    detached: bool
    user: str
    tty: bool
    started_at: str


class Store(Protocol):
    """The records of one daemon.

    Raises sandbox_not_found, name_taken, no_capacity (slots), disk_full.
    """

    async def open(self) -> None:
        """Migrate to the newest schema. Raises DaemonError (daemon_version) for a newer one."""

    async def close(self) -> None:
        """Finish what was begun and let go of the database."""

    async def add_sandbox(self, spec: SandboxSpec, info: SandboxInfo, *, slots: int) -> SandboxRow:
        """Record a new sandbox; takes its name and the lowest free slot below `slots` with it."""

    async def sandbox(self, reference: str) -> SandboxRow:
        """Find by id, name, or a unique prefix (≥ 4 characters) of an id."""

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

    async def set_machine(self, sandbox_id: str, machine: Mapping[str, Any] | None) -> None:
        """Record the VM that is about to run (before it does), or None once it is gone."""

    async def set_exit(self, sandbox_id: str, status: ExitStatus) -> None:
        """Record how the last run ended."""

    async def next_generation(self, sandbox_id: str) -> int:
        """Count up and return the generation number that the guest is told at each start."""

    async def rename(self, sandbox_id: str, name: str) -> SandboxRow:
        """Give a sandbox another name. Raises Conflict (name_taken)."""

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Forget a sandbox and its execs, and free its slot."""

    async def add_exec(self, row: ExecRow) -> None:
        """Record an exec session."""

    async def execs(self, sandbox_id: str) -> Sequence[ExecRow]:
        """Return the exec sessions on record for a sandbox, oldest first."""

    async def remove_exec(self, sandbox_id: str, exec_id: str) -> None:
        """Forget an exec session; nothing happens when it is not on record."""
