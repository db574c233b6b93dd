"""Putting a sandbox back to a moment of its own: the same sandbox, with memory and disk of then.

All that can fail is done while the old VM still runs: a second one takes up the memory over a layer
of its own, gets its identity, and waits with its programs frozen. Then one write to the records
makes it the sandbox's, and only after that the old one is ended. It must not know which moments
there are.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import shutil
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hutch.engine.base import Frozen, Machine, MachineType
from hutch.errors import HutchError, error
from hutch.guest.base import Guest
from hutch.models import SnapshotInfo, timestamp
from hutch.service.boot import Late, Stalled
from hutch.service.capture import Captures
from hutch.service.lifecycle import FAILED, PAUSED, RUNNING, STOPPED, wrong_state
from hutch.service.lives import Lives
from hutch.service.logfile import put_back_logs
from hutch.service.machine import identify_clone
from hutch.service.names import ID_PREFIX, new_id
from hutch.service.parts import Parts, host_errors
from hutch.service.records import machine_directory
from hutch.service.registry import Entry
from hutch.service.sandbox import Sandbox
from hutch.state.base import LayerRow, SandboxRow
from hutch.tasks import Scope, in_thread, settle, settle_in_thread

log = logging.getLogger(__name__)

_FROM: Final = (RUNNING, PAUSED, STOPPED, FAILED)
"""The states in which a sandbox can be put back."""


@dataclass(frozen=True, slots=True)
class Past:
    """A moment that can be gone back to: its memory, the layer below its disk, and its logs."""

    snapshot: SnapshotInfo
    frozen: Frozen
    layer: str
    logs: Path


OpenPast = Callable[[], AbstractAsyncContextManager[Past]]


class Undos:
    """Puts the sandboxes of one host back."""

    def __init__(self, parts: Parts, lives: Lives, captures: Captures) -> None:
        self._parts = parts
        self._lives = lives
        self._captures = captures
        self._layers = lives.booter.layers
        self._scope = Scope("undos")

    async def put_back(self, entry: Entry, past: OpenPast) -> None:
        """Put a sandbox back; its own task, which goes to its end whatever becomes of who asked.

        When it fails, or the sandbox is stopped or killed meanwhile, the old VM has run on. Raises
        wrong_state, no_capacity, boot_failed, engine_failed, disk_full, and what `past` raises.
        """
        task = self._scope.start(entry.info.id, _outcome(self._act(entry, past)))
        await asyncio.wait({task})
        if task.cancelled():
            raise error(
                "sandbox_died",
                f"sandbox {entry.info.name} was stopped, or the daemon, while it was put back",
                hint=f"see what has become of it with `hutch inspect {entry.info.name}`",
            )
        if (failure := task.result()) is not None:
            raise failure

    async def close(self) -> None:
        """Undo what is under way."""
        await self._scope.close()

    async def _act(self, entry: Entry, past: OpenPast) -> None:
        async with self._captures.hold(entry):
            if entry.sandbox is not None and entry.sandbox.ending:
                await entry.rest()
                entry.check_present()
            if entry.info.state not in _FROM:
                raise wrong_state(entry.info, "running")
            with _turning(entry), self._lives.pools.starting():
                async with past() as moment:
                    await self._lives.records.catch_up(entry)
                    await self._put_back(entry, moment)
        self._lives.records.emit("sandbox.undone", entry, checkpoint=moment.snapshot.id)

    async def _put_back(self, entry: Entry, past: Past) -> None:
        layer = self._layers.plan(parent=past.layer)
        try:
            # Nobody has it before the exchange is on record.
            with self._layers.pinned(layer.id):
                await settle(self._make(layer, entry.info.disk))
                await self._exchange(entry, past, layer)
        except BaseException:
            await settle(self._layers.release(layer.id))
            raise

    async def _make(self, layer: LayerRow, size: int) -> None:
        with host_errors():
            base = await self._parts.base_disk(self._parts.settings.home, size)
            await self._parts.store.add_layer(layer)
            await self._layers.make(layer, size, base)

    # ---- the exchange

    async def _exchange(self, entry: Entry, past: Past, layer: LayerRow) -> None:
        with _boot(entry):
            machine, guest = await self._begin(entry, past, layer)
            before, old = entry.row, entry.sandbox
            try:
                entry.row = await self._commit(before, past, layer, machine)
            except BaseException:
                await settle(self._give_up(machine, guest))
                raise
            # From here on it is the sandbox; there is no step in between.
            new = self._lives.adopt(entry, machine, found=True)
            new.connection.use(guest)
        await settle(self._change_over(entry, past, before, old, new))

    async def _begin(self, entry: Entry, past: Past, layer: LayerRow) -> tuple[Machine, Guest]:
        """Start the VM that goes on from the past, beside the old one; its programs are frozen."""
        booter = self._lives.booter
        recipe = await booter.recipe(entry.info)
        entry.row = await self._parts.store.next_generation(entry.info.id)
        vm_id = new_id(ID_PREFIX)
        spec = dataclasses.replace(
            booter.machine_spec(entry.row, recipe, layer.id),
            id=vm_id,
            directory=self._parts.places.machine(vm_id),
            machine=MachineType(past.snapshot.machine),
        )
        identify = functools.partial(identify_clone, entry.info, entry.row.generation)
        try:
            return await booter.take_up(
                entry.row, _Unrecorded(entry.row), spec, past.frozen, identify
            )
        except (Stalled, Late) as cause:
            raise error(
                "boot_failed",
                f"sandbox {entry.info.name} was not put back, and is as it was:"
                f" {str(cause) or 'no time was left'}",
                hint="see `hutch doctor`",
            ) from cause

    async def _commit(
        self, row: SandboxRow, past: Past, layer: LayerRow, machine: Machine
    ) -> SandboxRow:
        """Put on record that VM and disk are the sandbox's: in one step, which decides."""
        now, record = time.time(), machine.record
        changes: dict[str, Any] = {
            "pid": record.process.pid,
            "accelerator": record.accelerator.value,
            "error": None,
            "undone_to": past.snapshot.id,
            "undone_since": past.snapshot.created_at,
            "undone_at": timestamp(now),
        }
        if not row.info.state.has_machine:
            limit = row.info.timeout
            changes |= {
                "started_at": timestamp(now),
                "timeout_at": timestamp(now + limit) if limit else None,
                "ended_at": None,
                "exit": None,
            }
        store, sandbox_id = self._parts.store, row.info.id
        try:
            return await store.put_back(
                sandbox_id,
                _FROM,
                RUNNING,
                machine=record.to_json(),
                layer=layer.id,
                **changes,
            )
        except BaseException:
            # A step that was cancelled was taken nevertheless, and is taken back.
            former = {field: getattr(row.info, field) for field in changes}
            await settle(self._take_back(row, former))
            raise

    async def _take_back(self, row: SandboxRow, former: Mapping[str, Any]) -> None:
        with contextlib.suppress(HutchError):  # it was not taken
            await self._parts.store.put_back(
                row.info.id,
                (RUNNING,),
                row.info.state,
                machine=row.machine,
                layer=row.layer,
                **former,
            )

    async def _give_up(self, machine: Machine, guest: Guest) -> None:
        await guest.close()
        await machine.kill()
        await self._clear(machine.record.directory)

    async def _change_over(
        self, entry: Entry, past: Past, before: SandboxRow, old: Sandbox | None, new: Sandbox
    ) -> None:
        """End the old VM, whose end is not the sandbox's, and let the programs of the past go on.

        The new one is ended by its own task if anything is wrong with it.
        """
        info = entry.info
        if old is not None:
            old.connection.last = True
            old.connection.end(
                error(
                    "sandbox_restored",
                    f"sandbox {info.name} was put back to {past.snapshot.name}",
                    hint="what ran in it then goes on; what was started since is gone",
                    details={"checkpoint": past.snapshot.id},
                )
            )
            await old.machine.kill()
            await old.close()  # its logs are closed before they are put back
        if before.machine is not None:
            await self._clear(machine_directory(self._parts.places, before))
        await self._layers.release(before.layer)
        settings = self._parts.settings
        try:
            await settle_in_thread(
                put_back_logs,
                past.logs,
                self._parts.places.logs(info.id),
                size=settings.log_size,
                files=settings.log_files,
            )
        except OSError as failure:
            log.warning("the logs of %s have a hole from here on: %s", info.name, failure)
        self._lives.supervise(entry, new)  # first: from here on its end is seen
        await new.go_on()

    async def _clear(self, directory: Path) -> None:
        """Remove what a VM that was ended leaves: its sockets and their directory."""
        await self._parts.engine.discard(directory)
        await in_thread(shutil.rmtree, directory, ignore_errors=True)


class _Unrecorded:
    """The record of a VM that is not the sandbox's yet: see `machine.BootRecord`."""

    def __init__(self, row: SandboxRow) -> None:
        self.row = row

    async def machine(self, machine: Mapping[str, Any] | None) -> None:
        """Leave it to the exchange: until then a crash leaves a VM that nobody knows."""

    async def layer(self, layer: LayerRow, template_id: str | None) -> None:
        """Refuse another disk: the one that goes with the memory is made before."""
        raise AssertionError("a memory goes with one disk")


@contextlib.contextmanager
def _turning(entry: Entry) -> Iterator[None]:
    """Let nobody take the sandbox for running: see `Entry.turning`."""
    entry.turning = True
    try:
        yield
    finally:
        entry.turning = False
        entry.notify()


@contextlib.contextmanager
def _boot(entry: Entry) -> Iterator[None]:
    """Let whoever stops, kills or removes the sandbox cancel this task, as a boot."""
    entry.boot = asyncio.current_task()
    try:
        yield
    finally:
        entry.boot = None
        entry.notify()


async def _outcome(work: Coroutine[Any, Any, None]) -> HutchError | None:
    """Return a failure instead of raising it: it is for who waits, not for the log."""
    try:
        with host_errors():
            await work
    except HutchError as failure:
        return failure
    return None
