"""How the state of a sandbox gets on record, and what is told of it.

Steps that may be taken are compared with the record; what has come about is written whatever the
record says, and kept in memory while the disk is full. It must not know why a state changes.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hutch.errors import HutchError
from hutch.models import SandboxState
from hutch.service.lifecycle import sources
from hutch.service.parts import Parts, Places
from hutch.service.registry import Entry
from hutch.service.remains import clear_away
from hutch.state.base import LayerRow, SandboxRow, Store

log = logging.getLogger(__name__)


class Records:
    """Writes the rows of one host's sandboxes."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def move(self, entry: Entry, state: SandboxState, **changes: Any) -> None:
        """Record a step about to be taken. Raises wrong_state, disk_full."""
        entry.row = await self._parts.store.move(entry.info.id, sources(state), state, **changes)

    async def begin_start(self, entry: Entry) -> None:
        """Record that a start begins, the next of its sandbox. Raises wrong_state, disk_full."""
        entry.row = await self._parts.store.begin_start(
            entry.info.id, sources(SandboxState.STARTING), error=None
        )

    async def settle(self, entry: Entry, state: SandboxState, **changes: Any) -> None:
        """Record a state that has come about, in which there is no VM, whatever the records say."""
        changes |= {"pid": None}
        try:
            entry.row = await self._parts.store.move(
                entry.info.id, tuple(SandboxState), state, **changes
            )
        except HutchError as failure:
            # The next start of the daemon finds the row without its machine and mends it.
            log.error("%s is %s, which cannot be recorded: %s", entry.info.name, state, failure)
            info = dataclasses.replace(entry.info, state=state, **changes)
            entry.row = dataclasses.replace(entry.row, info=info)
            entry.unsettled = True

    async def catch_up(self, entry: Entry) -> None:
        """Record what could not be recorded when it came about. Raises disk_full."""
        if entry.unsettled:
            info = entry.info
            entry.row = await self._parts.store.put_back(
                info.id,
                tuple(SandboxState),
                info.state,
                machine=entry.row.machine,
                layer=entry.row.layer,
                pid=None,
                exit=info.exit,
                error=info.error,
                ended_at=info.ended_at,
                timeout_at=info.timeout_at,
            )
            entry.unsettled = False

    async def clear_machine(self, entry: Entry) -> None:
        """Clear away what a VM that is gone leaves: its sockets, its directory, its record."""
        parts = self._parts
        usual = parts.places.machine(entry.info.id)
        for directory in {usual, machine_directory(parts.places, entry.row)}:
            await clear_away(parts, directory)
        # Not the row that the store returns: `settle` may know better.
        entry.row = dataclasses.replace(entry.row, machine=None)
        with contextlib.suppress(HutchError):
            await parts.store.set_machine(entry.info.id, None)

    def emit(self, kind: str, entry: Entry, **fields: Any) -> None:
        """Add an event about a sandbox."""
        self._parts.events.emit(kind, entry.info.id, entry.info.name, **fields)


def machine_directory(places: Places, row: SandboxRow) -> Path:
    """Return where the sockets of a sandbox's VM are: one that it was put back to has its own."""
    usual = places.machine(row.info.id)
    try:
        found = Path(str((row.machine or {})["directory"]))
    except KeyError:
        return usual
    return found if found.parent == places.runtime else usual


class BootRecord:
    """Puts a boot on record: see `machine.BootRecord`."""

    def __init__(self, store: Store, entry: Entry, *, closed: bool = False) -> None:
        self.closed = closed
        self._store = store
        self._entry = entry

    async def machine(self, machine: Mapping[str, Any] | None) -> None:
        """Record the VM, or that it is gone."""
        self._entry.row = await self._store.set_machine(self._entry.info.id, machine)

    async def layer(self, layer: LayerRow, template_id: str | None) -> None:
        """Record a new uppermost layer of the disk, and the template that is behind it."""
        sandbox_id = self._entry.info.id
        self._entry.row = await self._store.put_layer(sandbox_id, layer, template=template_id)

    @property
    def row(self) -> SandboxRow:
        """The sandbox as it is on record now."""
        return self._entry.row
