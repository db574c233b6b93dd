"""Sandboxes that rest without an end: paused, parked, and woken by whoever needs them.

Each act is a task of its own that goes to its end whatever becomes of who asked for it, and holds
the entry's lock meanwhile. While it is under way the entry is *turning*: nobody takes the sandbox
for running. It must not know how a VM is stopped or how its memory is kept.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from hutch.engine.base import Machine
from hutch.errors import HutchError, error
from hutch.guest.base import Guest
from hutch.images.flight import together
from hutch.models import ExitStatus, IdleAction, StopReason, parse_timestamp
from hutch.service.lifecycle import PARKED, PAUSED, RUNNING, STARTING, wrong_state
from hutch.service.parking import Parking
from hutch.service.parts import Parts, host_errors
from hutch.service.records import BootRecord, Records
from hutch.service.registry import Entry
from hutch.service.sandbox import SIGKILL, TIMEOUT_CODE, Sandbox
from hutch.service.telling import Telling
from hutch.state.base import LayerRow
from hutch.tasks import Scope, settle

log = logging.getLogger(__name__)

_GIVEN_UP: Final = "its memory was thrown away"


class Lives(Protocol):
    """What is asked of whoever holds the lives of the sandboxes (lives.py)."""

    def adopt(self, entry: Entry, machine: Machine, *, found: bool = False) -> Sandbox:
        """Make the running sandbox of a machine."""

    def supervise(self, entry: Entry, sandbox: Sandbox) -> None:
        """Let a sandbox run until it ends."""

    async def put_down(self, entry: Entry, sandbox: Sandbox) -> None:
        """End the VM of a sandbox that is not supervised yet, and clear away what it leaves."""

    async def finish(self, entry: Entry, status: ExitStatus) -> None:
        """Record the end of a sandbox whose VM is gone, and remove it if it is to be."""


class Pauses:
    """Pauses, parks and wakes the sandboxes of one host."""

    def __init__(self, parts: Parts, records: Records, parking: Parking, lives: Lives) -> None:
        self._parts = parts
        self._records = records
        self._lives = lives
        self.parking = parking
        self.telling = Telling()
        self._acts = Scope("pauses")
        self._limits = Scope("limits of parked sandboxes")

    # ---- what can be asked for

    async def awake(self, entry: Entry) -> Sandbox:
        """Return the running sandbox, waking it if it is paused or parked.

        There is no step between the return of this and its caller. Raises wrong_state, and what
        `resume` raises.
        """
        while entry.turning or entry.info.state in (PAUSED, PARKED):
            await self.resume(entry)
        return entry.running()

    async def pause(self, entry: Entry) -> None:
        """Stop the CPUs of a running sandbox; one that is paused is left as it is.

        Raises wrong_state, engine_failed, sandbox_died, disk_full.
        """
        await self._act(entry, self._pause)

    async def resume(self, entry: Entry) -> None:
        """Let a paused or parked sandbox go on; one that runs is left as it is.

        Raises wrong_state, parked_unusable, no_capacity, engine_failed, sandbox_died, disk_full.
        """
        await self._act(entry, self._resume)

    async def park(self, entry: Entry) -> None:
        """Write the memory of a sandbox to disk and end its VM; a parked one is left as it is.

        Raises wrong_state, guest_timeout, engine_failed, sandbox_died, disk_full: then it is as it
        was before.
        """
        await self._act(entry, self._park)

    def rest_idle(self, entry: Entry) -> None:
        """Do with a sandbox that nobody uses what its idle policy says, in the background."""
        self._acts.start(f"idle {entry.info.id}", self._rest_idle(entry))

    async def give_up(self, entry: Entry, reason: StopReason) -> None:
        """Throw the memory of a parked sandbox away, which stops it. For holders of its lock."""
        if entry.info.state is not PARKED:
            return
        self.unwatch(entry)
        code = 128 + SIGKILL
        if reason is StopReason.TIMEOUT:
            code = TIMEOUT_CODE
        known = None if entry.info.idle and reason is StopReason.STOPPED else code
        await self._lives.finish(entry, ExitStatus(reason, known, _GIVEN_UP))
        await self.parking.clear(entry.row)

    async def close(self) -> None:
        """Undo what is under way."""
        await self.telling.close()
        await self._limits.close()
        await self._acts.close()

    # ---- acts

    async def _act(self, entry: Entry, act: Callable[[Entry], Awaitable[None]]) -> None:
        task = self._acts.start(entry.info.id, _outcome(entry, act))
        await asyncio.wait({task})
        if task.cancelled():
            raise error(
                "sandbox_died",
                f"sandbox {entry.info.name} was stopped, or the daemon, while this was under way",
                hint=f"see what has become of it with `hutch inspect {entry.info.name}`",
            )
        if (failure := task.result()) is not None:
            raise failure

    async def _pause(self, entry: Entry) -> None:
        if entry.info.state is PAUSED:
            return
        sandbox = _running(entry)
        with entry.turn():
            await self._records.move(entry, PAUSED)
            try:
                await sandbox.pause()
            except BaseException:
                await self._wake(entry, sandbox)
                raise
        self._records.emit("sandbox.paused", entry)

    async def _wake(self, entry: Entry, sandbox: Sandbox) -> None:
        """Leave a sandbox running whose pause has failed, or whose end has begun meanwhile."""
        with contextlib.suppress(HutchError):  # it may have died, which its end tells
            await sandbox.resume()
        with contextlib.suppress(HutchError):
            await self._records.move(entry, RUNNING)

    async def _resume(self, entry: Entry) -> None:
        sandbox = entry.sandbox
        if entry.info.state is RUNNING and sandbox is not None:
            if await sandbox.machine.paused():  # by the engine, for want of room on the disk
                await sandbox.go_on()
            return
        if entry.info.state is PARKED:
            await self._unpark(entry)
            return
        if entry.info.state is not PAUSED or sandbox is None or sandbox.ending:
            raise wrong_state(entry.info, "paused")
        with entry.turn():
            try:
                # Still paused on record until it runs: a crash before that leaves it paused.
                await sandbox.run_on()
                async with together() as group:
                    group.create_task(sandbox.keep_clock())
                    await self._records.move(entry, RUNNING)
            except BaseException:
                await self._pause_again(entry)
                raise
        self.telling.tell(entry)
        self._records.emit("sandbox.resumed", entry)

    async def _rest_idle(self, entry: Entry) -> None:
        sandbox, action = entry.sandbox, entry.info.idle_action
        if sandbox is None or sandbox.activity.busy:
            return
        if action is IdleAction.STOP:
            sandbox.end(StopReason.IDLE, grace=self._parts.settings.stop_timeout)
            return
        act = self._park if action is IdleAction.PARK else self._pause
        failure = await _outcome(entry, functools.partial(_if_unused, sandbox, act))
        if failure is not None and not sandbox.ending:
            log.warning("%s is idle, but cannot %s: %s", entry.info.name, action, failure)

    # ---- parking

    async def _park(self, entry: Entry) -> None:
        if entry.info.state is PARKED:
            return
        paused = entry.info.state is PAUSED
        with entry.turn():
            try:
                if paused:
                    # Its programs must be frozen before its VM stops: they would wake with it.
                    await self._rouse(entry)
                sandbox = _running(entry)
                await self._write(entry, sandbox)
            except BaseException:
                if paused:
                    await self._pause_again(entry)
                raise
            await self._let_go(entry, sandbox)
        self.watch(entry)
        self._records.emit("sandbox.parked", entry)

    async def _rouse(self, entry: Entry) -> None:
        sandbox = entry.sandbox
        if sandbox is None or sandbox.ending:
            raise wrong_state(entry.info, "running")
        await sandbox.resume()
        await self._records.move(entry, RUNNING)

    async def _pause_again(self, entry: Entry) -> None:
        with contextlib.suppress(HutchError):  # it may have died, which its end tells
            if entry.info.state is RUNNING:
                await self._records.move(entry, PAUSED)
            if entry.sandbox is not None:
                await entry.sandbox.pause()

    async def _write(self, entry: Entry, sandbox: Sandbox) -> None:
        frozen = await self.parking.write(entry.row, sandbox)
        try:
            if sandbox.ending:
                raise wrong_state(entry.info, "running")
            await self._records.move(entry, PARKED, pid=None)
        except BaseException:
            # A step that was cancelled was taken nevertheless, and is taken back.
            with contextlib.suppress(HutchError):
                await self._parts.store.move(
                    entry.info.id, (PARKED,), RUNNING, pid=sandbox.machine.record.process.pid
                )
            await self.parking.give_back(entry.row, sandbox)
            raise
        await self.parking.drop(frozen)

    async def _let_go(self, entry: Entry, sandbox: Sandbox) -> None:
        """End the VM of a sandbox that is parked on record; its end is not the sandbox's."""
        entry.sandbox = None
        name = entry.info.name
        sandbox.connection.last = True
        sandbox.connection.end(
            error(
                "wrong_state",
                f"sandbox {name} was parked",
                hint="what runs in it goes on at its next use: attach to it again",
                details={"state": PARKED.value},
            )
        )
        await sandbox.machine.kill()
        await sandbox.close()
        await self._records.clear_machine(entry)

    async def _unpark(self, entry: Entry) -> None:
        with entry.turn():
            await self._records.catch_up(entry)
            with entry.begin():
                sandbox = await self._begin_again(entry)
            await self._go_on(entry, sandbox)
        self._records.emit("sandbox.resumed", entry)

    async def _begin_again(self, entry: Entry) -> Sandbox:
        """Take the memory up; the sandbox is on record as running then, its programs frozen.

        When it fails, nothing has written to the disk that goes with the memory.
        """
        try:
            await self._records.move(entry, STARTING, error=None)
            entry.row = await self._parts.store.next_generation(entry.info.id)
            record = BootRecord(self._parts.store, entry)
            async with self.parking.disk(entry.row, record) as layer:
                machine, guest = await self.parking.take_up(entry.row, record, layer)
                return await self._adopt(entry, machine, guest, layer)
        except BaseException:
            await settle(self._records.settle(entry, PARKED))
            raise

    async def _adopt(
        self, entry: Entry, machine: Machine, guest: Guest, layer: LayerRow
    ) -> Sandbox:
        """Make it the sandbox's VM, and the layer its disk: in one step, which decides."""
        sandbox, below = self._lives.adopt(entry, machine, found=True), entry.row.layer
        sandbox.connection.use(guest)
        try:
            await settle(self._take(entry, machine, layer))
        except BaseException:
            await settle(self._take_back(entry, sandbox, below))
            raise
        return sandbox

    async def _take(self, entry: Entry, machine: Machine, layer: LayerRow) -> None:
        vm = machine.record
        entry.row = await self._parts.store.put_back(
            entry.info.id,
            (STARTING,),
            RUNNING,
            machine=vm.to_json(),
            layer=layer.id,
            pid=vm.process.pid,
        )

    async def _take_back(self, entry: Entry, sandbox: Sandbox, below: str | None) -> None:
        """Undo a step that was cancelled, which may have been taken nevertheless.

        First of all on record: with the attempt's layer, the memory could not be used any more.
        """
        entry.row = dataclasses.replace(entry.row, layer=below)
        try:
            entry.row = await self._parts.store.put_back(
                entry.info.id,
                (STARTING, RUNNING),
                PARKED,
                machine=sandbox.machine.record.to_json(),
                layer=below,
                pid=None,
            )
        except HutchError as failure:
            log.error("%s is parked, which cannot be recorded: %s", entry.info.name, failure)
            entry.unsettled = True
        await self._lives.put_down(entry, sandbox)

    async def _go_on(self, entry: Entry, sandbox: Sandbox) -> None:
        """Let the programs of an unparked sandbox go on, and forget the memory."""
        self._lives.supervise(entry, sandbox)  # first: from here on its end is seen
        self.unwatch(entry)
        await sandbox.go_on()
        await self.parking.clear(entry.row)

    # ---- the time limit of one that is parked

    def watch(self, entry: Entry) -> None:
        """End a parked sandbox when its time is up."""
        if entry.info.timeout_at is not None:
            work = self._watch(entry, parse_timestamp(entry.info.timeout_at))
            entry.limit = self._limits.start(entry.info.id, work)

    def unwatch(self, entry: Entry) -> None:
        """Leave a sandbox to its own supervision again."""
        if entry.limit is not None:
            entry.limit.cancel()
            entry.limit = None

    async def _watch(self, entry: Entry, timeout_at: float) -> None:
        await asyncio.sleep(max(0.0, timeout_at - time.time()))
        entry.limit = None
        async with entry.lock:
            await self.give_up(entry, StopReason.TIMEOUT)


def _running(entry: Entry) -> Sandbox:
    """Return the running sandbox whose end has not begun. Raises wrong_state."""
    sandbox = entry.running()
    if sandbox.ending:
        raise wrong_state(entry.info, "running")
    return sandbox


async def _if_unused(
    sandbox: Sandbox, act: Callable[[Entry], Awaitable[None]], entry: Entry
) -> None:
    if entry.sandbox is sandbox and entry.info.state is RUNNING and not sandbox.activity.busy:
        await act(entry)


async def _outcome(entry: Entry, act: Callable[[Entry], Awaitable[None]]) -> HutchError | None:
    """Do something to a sandbox under its lock; return the failure, which is its caller's."""
    try:
        with host_errors():
            async with entry.lock:
                entry.check_present()
                await act(entry)
    except HutchError as failure:
        return failure
    return None
