"""Sandboxes from their making to their removal: every change of state happens here.

Each step is on record before it is taken, and undone when it fails or is cancelled. The boot and
the end of a sandbox are tasks of their own; whoever asked for them may go away.
"""

import asyncio
import contextlib
import dataclasses
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from hutch.engine.base import Machine
from hutch.errors import HutchError, error
from hutch.images.base import Report
from hutch.models import (
    ErrorInfo,
    ExitStatus,
    Removed,
    SandboxInfo,
    SandboxSpec,
    SandboxState,
    StopReason,
    TtySize,
    timestamp,
)
from hutch.portspec import check_ports
from hutch.service.exec import MAIN
from hutch.service.lifecycle import (
    FAILED,
    PARKED,
    PAUSED,
    RUNNING,
    STOPPED,
    STOPPING,
    rest_state,
    sources,
    wrong_state,
)
from hutch.service.machine import Booter
from hutch.service.names import ID_PREFIX, new_id
from hutch.service.parking import Parking
from hutch.service.parts import Parts, host_error, host_errors
from hutch.service.pausing import Pauses
from hutch.service.policies import policy_of
from hutch.service.pools import Pools
from hutch.service.publishing import Publishing
from hutch.service.records import BootRecord, Records
from hutch.service.registry import Entry, Registry
from hutch.service.sandbox import Sandbox
from hutch.service.session import Session
from hutch.service.spec import check_request, resolve, running_spec
from hutch.service.stats import disk_use
from hutch.state.base import SandboxRow
from hutch.tasks import Scope, in_thread, settle, settle_in_thread

log = logging.getLogger(__name__)

_RESTING: Final = (PAUSED, PARKED)


class Lives:
    """The lives of one host's sandboxes."""

    def __init__(self, parts: Parts, registry: Registry) -> None:
        self._parts = parts
        self._registry = registry
        self.records = Records(parts)
        self.booter = Booter(parts, registry)
        self.templates = self.booter.templates
        self.parking = Parking(parts, self.booter)
        self.pauses = Pauses(parts, self.records, self.parking, self)
        self.pools = Pools(parts, self.booter, self._note_abandoned)
        self.ports = Publishing(parts, registry, self.awake)
        self._erased: list[Callable[[str], Awaitable[None]]] = []
        self._boots = Scope("boots")
        self._ends = Scope("ends")
        self._closing = False

    def _note_abandoned(self, sandbox_id: str) -> None:
        with contextlib.suppress(HutchError):  # it was removed
            entry = self._registry.find(sandbox_id)
            entry.row = dataclasses.replace(entry.row, machine=None)

    # ---- making

    async def create(self, spec: SandboxSpec, report: Report) -> Entry:
        """Make a sandbox, fetching image and kernel first; nothing is left when it fails."""
        self._check_open()
        parts = self._parts
        check_request(spec, parts.settings, parts.host)
        network = policy_of(spec, parts.settings, parts.plugs.ability)
        with (
            self._registry.reserve(spec.name) as name,
            self.ports.reserving(name) as reserved,
        ):
            self.ports.take(reserved, check_ports(spec.ports), chosen=spec.provisional)
            async with self.pools.offer(spec, name) as offer:
                image = await parts.images.ensure(spec.image, spec.pull, report)
                if spec.publish_all:
                    self.ports.take_exposed(reserved, image.config.exposed_ports)
                info = resolve(
                    spec,
                    image,
                    parts.settings,
                    parts.host,
                    sandbox_id=new_id(ID_PREFIX),
                    name=name,
                    created_at=timestamp(),
                    network=network,
                    ports=reserved.ports,
                )
                kernel = await parts.kernels.ensure(info.kernel, report)
                spec = running_spec(spec, info)
                row = await self.pools.claim(spec, info, kernel.name, offer)
            entry = self._enter(row or await self._put_on_record(spec, info))
            if spec.provisional:
                self.ports.keep(reserved, entry)
            return entry

    async def _put_on_record(self, spec: SandboxSpec, info: SandboxInfo) -> SandboxRow:
        parts = self._parts
        directory = parts.places.sandbox(info.id)
        try:
            row = await parts.store.add_sandbox(spec, info, slots=parts.settings.uid_count)
            with host_errors():
                await settle_in_thread(directory.mkdir, mode=0o700, parents=True)
        except BaseException:
            await settle(self._take_off_record(info.id))
            raise
        return row

    async def _take_off_record(self, sandbox_id: str) -> None:
        await self._parts.store.remove_sandbox(sandbox_id)
        directory = self._parts.places.sandbox(sandbox_id)
        await in_thread(shutil.rmtree, directory, ignore_errors=True)

    def _enter(self, row: SandboxRow) -> Entry:
        entry = self._registry.add(row)
        self.records.emit("sandbox.created", entry, image=row.info.image)
        return entry

    # ---- starting

    async def start(
        self, entry: Entry, size: TtySize | None, *, attach: bool, template: bool = True
    ) -> Session | None:
        """Boot a sandbox and start its main process; with `attach` return a session of it.

        One that runs already is left as it is, but cannot be attached to this way; one that is
        paused or parked goes on. When this is cancelled, or `stop` comes first, the sandbox is as
        it was before. Without `template` it boots cold.
        """
        self._check_open()
        if not attach and (entry.turning or entry.info.state in _RESTING):
            await self.awake(entry)
            return None
        if attach and entry.info.idle:
            raise error(
                "bad_command",
                f"sandbox {entry.info.name} is idle: it has no main process to attach to",
                hint=f"start it, then use `hutch exec {entry.info.name} COMMAND`",
            )
        async with entry.lock:
            if entry.sandbox is not None and entry.sandbox.ending:
                await entry.rest()
            self._check_open()
            entry.check_present()
            if entry.sandbox is not None or entry.info.state in _RESTING:
                if attach or entry.info.state in _RESTING:
                    raise wrong_state(entry.info, "stopped")
                return None
            work = self._try_boot(entry, size, attach=attach, template=template)
            boot = self._boots.start(entry.info.id, work)
            entry.boot = boot
            try:
                return await self._await_boot(entry, boot)
            finally:
                entry.boot = None
                entry.notify()

    async def _await_boot(
        self, entry: Entry, boot: "asyncio.Task[Session | HutchError | None]"
    ) -> Session | None:
        try:
            await asyncio.wait({boot})
        except asyncio.CancelledError:
            if not boot.cancelling():
                boot.cancel()
            while not boot.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({boot})
            entry.boot = None
            if entry.sandbox is not None:
                # It ran before it could be cancelled: a client that is gone wants nothing of it.
                await settle(self._end_unwanted(entry, entry.sandbox))
            raise
        if boot.cancelled():
            raise error(
                "sandbox_died",
                f"sandbox {entry.info.name} was stopped while it was starting",
                hint=f"start it again with `hutch start {entry.info.name}`",
            )
        result = boot.result()
        if isinstance(result, HutchError):
            raise result
        return result

    async def _end_unwanted(self, entry: Entry, sandbox: Sandbox) -> None:
        await sandbox.kill("its start was cancelled")
        await entry.rest()

    async def _try_boot(
        self, entry: Entry, size: TtySize | None, *, attach: bool, template: bool
    ) -> Session | HutchError | None:
        try:
            with host_errors(), self.pools.starting():
                return await self._boot(entry, size, attach=attach, template=template)
        except HutchError as failure:
            return failure

    async def _boot(
        self, entry: Entry, size: TtySize | None, *, attach: bool, template: bool
    ) -> Session | None:
        parts, rest = self._parts, rest_state(entry.info)
        await self.records.catch_up(entry)
        self.ports.prepare(entry)
        try:
            await self.records.begin_start(entry)
            cold = not (template and entry.row.spec.template)
            record = BootRecord(parts.store, entry)
            booted = await self.pools.start(entry.row, record, cold=cold)
            if booted is None:
                booted = await self.booter.boot(entry.row, record, cold=cold)
            sandbox = self.adopt(entry, booted.machine)
            try:
                await sandbox.begin(booted.guest, size)
                session = await sandbox.execs.attach(MAIN, None) if attach else None
                now, timeout = time.time(), entry.info.timeout
                await self.records.move(
                    entry,
                    RUNNING,
                    started_at=timestamp(now),
                    timeout_at=timestamp(now + timeout) if timeout else None,
                    ended_at=None,
                    exit=None,
                    pid=booted.machine.record.process.pid,
                    engine=parts.engine.name,
                    accelerator=booted.verdict.accelerator.value,
                    machine=booted.machine.record.machine.value,
                    kernel=booted.kernel,
                    boot_seconds=round(booted.seconds, 4),
                )
            except BaseException:
                await settle(self.put_down(entry, sandbox))
                raise
        except BaseException as cause:
            await settle(self._undo_start(entry, rest, cause))
            raise
        self.supervise(entry, sandbox)
        self.records.emit("sandbox.started", entry, boot_seconds=entry.info.boot_seconds)
        return session

    async def put_down(self, entry: Entry, sandbox: Sandbox) -> None:
        """End the VM of a sandbox that is not supervised yet, and clear away what it leaves."""
        entry.sandbox = None
        await sandbox.machine.kill()
        await sandbox.close()
        await self.records.clear_machine(entry)

    async def _undo_start(self, entry: Entry, rest: SandboxState, cause: BaseException) -> None:
        """Record how a start has failed; one that removes itself is gone with it."""
        await self.ports.withdraw(entry)
        if isinstance(cause, OSError):
            cause = host_error(cause)
        if isinstance(cause, HutchError):
            failure = ErrorInfo(cause.code, cause.message, cause.hint)
        else:
            failure = ErrorInfo("internal", f"{type(cause).__name__}: {cause}")
        cancelled = isinstance(cause, asyncio.CancelledError)
        if cancelled:
            await self.records.settle(entry, rest)
        else:
            await self.records.settle(entry, FAILED, error=failure)
            self.records.emit("sandbox.failed", entry, code=failure.code, message=failure.message)
            if entry.info.auto_remove:
                entry.removed = True
                await self.erase(entry)

    def adopt(self, entry: Entry, machine: Machine, *, found: bool = False) -> Sandbox:
        """Make the running sandbox of a machine that was booted, or `found` after a restart."""
        sandbox = Sandbox(
            self._parts,
            lambda: entry.info,
            machine,
            detached=entry.row.spec.detached,
            stopping=lambda: self.note_stopping(entry, sandbox),
            idle=lambda: self.pauses.rest_idle(entry),
            found=found,
        )
        entry.sandbox = sandbox
        return sandbox

    def supervise(self, entry: Entry, sandbox: Sandbox) -> None:
        """Let a sandbox run until it ends."""
        # Its end is waited for first: whatever fails then, it can be killed and comes to rest.
        self._ends.start(entry.info.id, self._see_it_out(entry, sandbox))
        sandbox.supervise()
        self.ports.serve(entry)
        self.pauses.telling.tell(entry)

    # ---- resting without an end

    async def awake(self, entry: Entry) -> Sandbox:
        """Return the running sandbox, waking it if it is paused or parked; see `Pauses.awake`."""
        return await self.pauses.awake(entry)

    # ---- ending

    async def stop(self, entry: Entry, timeout: float, signal: int | None) -> None:
        """End a sandbox gracefully; one that does not run is left as it is.

        One that is paused goes on for that; the memory of one that is parked is thrown away.
        """
        self._abort_boot(entry)
        async with entry.lock:
            entry.check_present()
            await settle(self.pauses.give_up(entry, StopReason.STOPPED))
            if entry.sandbox is not None:
                entry.sandbox.end(StopReason.STOPPED, grace=timeout, signal=signal)
        await entry.rest()

    async def kill(self, entry: Entry, message: str | None = None) -> None:
        """End a sandbox at once, also while it boots or stops, is paused or parked."""
        while True:
            self._abort_boot(entry)
            if (sandbox := entry.sandbox) is not None:
                await sandbox.kill(message)
            await entry.settled()
            if entry.info.state is PARKED:
                async with entry.lock:
                    await settle(self.pauses.give_up(entry, StopReason.KILLED))
            elif entry.sandbox in (None, sandbox):
                break  # else it was woken meanwhile
        await entry.rest()

    async def remove(self, entry: Entry, *, force: bool) -> Removed:
        """Remove a sandbox with all that it has; with `force` also one that runs."""
        if force:
            await self.kill(entry)
        elif not (entry.at_rest or entry.removed):  # what another removes is waited for below
            raise wrong_state(entry.info, "stopped")
        async with entry.lock:
            if force and entry.forgotten:
                return Removed([entry.info.id])  # it was to remove itself when it stopped
            entry.check_present()
            if entry.sandbox is not None or entry.info.state is PARKED:
                raise wrong_state(entry.info, "stopped")
            entry.removed = True
            return Removed([entry.info.id], await self.erase(entry))

    async def wait(self, entry: Entry, timeout: float | None) -> SandboxInfo:
        """Return the last state of a sandbox once it is at rest. Raises guest_timeout."""
        try:
            async with asyncio.timeout(timeout):
                return await entry.rest()
        except TimeoutError:
            raise error(
                "guest_timeout", f"sandbox {entry.info.name} still runs after {timeout:g} s"
            ) from None

    def _abort_boot(self, entry: Entry) -> None:
        # Once: a second cancellation would cut off the undoing.
        if entry.boot is not None and not entry.boot.cancelling():
            entry.boot.cancel()

    def note_stopping(self, entry: Entry, sandbox: Sandbox) -> None:
        """Put on record, in the background, that the end of a sandbox has begun.

        Not while it is put back: it is told only then whose end that was.
        """
        ours = entry.sandbox is sandbox and not entry.undoing
        if ours and entry.info.state in (RUNNING, PAUSED):
            work = self._record_stopping(entry, sandbox, entry.row.machine)
            self._ends.start(f"note {entry.info.id}", work)

    async def _record_stopping(
        self, entry: Entry, sandbox: Sandbox, machine: Mapping[str, Any] | None
    ) -> None:
        # The machine may be gone before this is written: then its end is on record already.
        with contextlib.suppress(HutchError):
            row = await self._parts.store.move(
                entry.info.id, sources(STOPPING), STOPPING, vm=machine
            )
            if entry.sandbox is sandbox and entry.info.state in (RUNNING, PAUSED):
                entry.row = row

    async def _see_it_out(self, entry: Entry, sandbox: Sandbox) -> None:
        status = await sandbox.wait_end()
        await entry.settled()
        if entry.sandbox is sandbox:  # and not parked meanwhile
            await settle(self._end(entry, sandbox, status))

    async def _end(self, entry: Entry, sandbox: Sandbox, status: ExitStatus) -> None:
        await sandbox.close()
        await self.finish(entry, status)

    async def finish(self, entry: Entry, status: ExitStatus) -> None:
        """Record the end of a sandbox whose VM is gone, and remove it if it is to remove itself."""
        await self.ports.withdraw(entry)
        await self.record_end(entry, status)
        entry.removed = entry.info.auto_remove
        entry.sandbox = None
        try:
            if entry.removed:
                await self.erase(entry)
        finally:
            entry.notify()

    async def record_end(self, entry: Entry, status: ExitStatus) -> None:
        """Put on record that a sandbox has stopped, and clear away what its VM leaves."""
        await self.records.settle(
            entry, STOPPED, exit=status, ended_at=timestamp(), timeout_at=None
        )
        await self.records.clear_machine(entry)
        self.records.emit(
            "sandbox.stopped", entry, reason=status.reason.value, exit_code=status.code
        )

    async def erase(self, entry: Entry) -> int:
        """Forget a sandbox whose entry is marked as removed; returns the bytes that are freed.

        Carried out to its end also when this is cancelled.
        """
        return await settle(self._erase(entry))

    async def _erase(self, entry: Entry) -> int:
        parts, sandbox_id = self._parts, entry.info.id
        directory = parts.places.sandbox(sandbox_id)
        try:
            await self.ports.withdraw(entry)
            await self.pools.give_up(sandbox_id)
            freed = await in_thread(disk_use, directory)
            try:
                await parts.store.remove_sandbox(sandbox_id)
            except HutchError as failure:
                if failure.code != "disk_full":
                    raise
                # The records need a little room themselves: make it first.
                await in_thread(shutil.rmtree, directory, ignore_errors=True)
                await self.booter.layers.empty(entry.row.layer)
                await parts.store.remove_sandbox(sandbox_id)
        except BaseException:
            entry.removed = False
            raise
        # From here on a crash leaves a directory without a row, which the next start removes.
        try:
            await in_thread(shutil.rmtree, directory, ignore_errors=True)
            freed += await self.booter.layers.release(entry.row.layer)
        finally:
            self._registry.forget(entry)
        self.records.emit("sandbox.removed", entry)
        for follow in self._erased:
            await follow(sandbox_id)
        return freed

    def when_erased(self, follow: Callable[[str], Awaitable[None]]) -> None:
        """Have `follow` called with the id of each sandbox that was removed. It must not raise."""
        self._erased.append(follow)

    def _check_open(self) -> None:
        if self._closing:
            raise error("daemon_unreachable", "the daemon is ending", hint="try again in a moment")

    async def close(self, *, stop_sandboxes: bool) -> None:
        """Undo boots under way, then stop all sandboxes or let go of them."""
        self._closing = True
        await self.ports.close()
        await self._boots.close()
        await self.pools.close()
        await self.pauses.close()
        running = [entry for entry in self._registry if entry.sandbox is not None]
        if stop_sandboxes:
            for entry in running:
                if entry.sandbox is not None:
                    grace = self._parts.settings.stop_timeout
                    entry.sandbox.end(StopReason.STOPPED, grace=grace)
            for entry in running:
                await entry.rest()
        await self._ends.close()
        for entry in running:
            if entry.sandbox is not None:
                await entry.sandbox.close()
