"""A second VM beside a sandbox's own, which takes up a moment of it over a layer of its own.

Its programs stay frozen, and nothing of it is the sandbox's: what is left of it when the daemon
dies is swept as nobody's. It must not know what it is for.
"""

import contextlib
import dataclasses
import functools
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hutch.engine.base import Frozen, Machine, MachineType
from hutch.errors import error
from hutch.guest.base import Guest
from hutch.models import SnapshotInfo
from hutch.service.boot import Late, Stalled
from hutch.service.machine import Booter, identify_clone
from hutch.service.names import ID_PREFIX, new_id
from hutch.service.parts import Parts
from hutch.service.remains import clear_away
from hutch.state.base import LayerRow, SandboxRow
from hutch.tasks import settle


@dataclass(frozen=True, slots=True)
class Past:
    """A moment that can be gone back to: its memory, the layer below its disk, and its logs."""

    snapshot: SnapshotInfo
    frozen: Frozen
    layer: str
    logs: Path


class Beside:
    """Starts such VMs on one host."""

    def __init__(self, parts: Parts, booter: Booter) -> None:
        self._parts = parts
        self._booter = booter
        self._layers = booter.layers

    async def begin(self, row: SandboxRow, past: Past, layer: LayerRow) -> tuple[Machine, Guest]:
        """Start a VM that goes on from a moment, with the identity of `row`; its programs frozen.

        Raises boot_failed, engine_failed, no_capacity, disk_full; nothing is left then.
        """
        recipe = await self._booter.recipe(row.info)
        vm_id = new_id(ID_PREFIX)
        spec = dataclasses.replace(
            self._booter.machine_spec(row, recipe, layer.id),
            id=vm_id,
            directory=self._parts.places.machine(vm_id),
            machine=MachineType(past.snapshot.machine),
        )
        identify = functools.partial(identify_clone, row.info, row.generation)
        try:
            return await self._booter.take_up(row, _Unrecorded(row), spec, past.frozen, identify)
        except (Stalled, Late) as cause:
            raise error(
                "boot_failed",
                f"the moment {past.snapshot.name} of sandbox {row.info.name} could not be taken"
                f" up: {str(cause) or 'no time was left'}",
                hint="see `hutch doctor`",
            ) from cause

    @contextlib.asynccontextmanager
    async def peek(self, row: SandboxRow, past: Past) -> AsyncIterator[Guest]:
        """Let the guest of a moment be looked into for the length of the block."""
        async with self._layers.over(past.layer, row.info.disk) as layer:
            machine, guest = await self.begin(row, past, layer)
            try:
                yield guest
            finally:
                await settle(self.end(machine, guest))

    async def end(self, machine: Machine, guest: Guest) -> None:
        """End such a VM, and remove what it leaves."""
        await guest.close()
        await machine.kill()
        await self.clear(machine.record.directory)

    async def clear(self, directory: Path) -> None:
        """Remove what a VM that was ended leaves: its sockets and their directory."""
        await clear_away(self._parts, directory)


class _Unrecorded:
    """The record of a VM that is not the sandbox's: see `machine.BootRecord`."""

    closed = True
    """It has no network before it is the sandbox's."""

    def __init__(self, row: SandboxRow) -> None:
        self.row = row

    async def machine(self, machine: Mapping[str, Any] | None) -> None:
        """Leave it alone: a crash leaves a VM that nobody knows, which the next start ends."""

    async def layer(self, layer: LayerRow, template_id: str | None) -> None:
        """Refuse another disk: the one that goes with the memory is made before."""
        raise AssertionError("a memory goes with one disk")
