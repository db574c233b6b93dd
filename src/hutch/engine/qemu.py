"""The QEMU engine: starts QEMU processes, finds them again, sweeps up unrecorded ones.

What a process is handed lies in `jail`, its command line in `argv`, its life in `machine`,
the choice of the accelerator in `accel`.
"""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from hutch import process
from hutch.engine import disks, jail, migration
from hutch.engine.accel import AcceleratorProbe
from hutch.engine.argv import build_argv
from hutch.engine.atrest import remove, store
from hutch.engine.base import BootFiles, Frozen, Machine, MachineRecord, MachineSpec, Verdict
from hutch.engine.canary import Trial, collect
from hutch.engine.capture import Captured
from hutch.engine.console import Console, ConsoleLog
from hutch.engine.failures import template_failure
from hutch.engine.layout import layout, program_identity
from hutch.engine.machine import LastWords, QemuMachine
from hutch.engine.memories import Memories, create_memory, seal
from hutch.engine.nowhere import NOWHERE
from hutch.engine.orphans import socket_holders
from hutch.engine.qcow2 import create_overlay
from hutch.engine.qmp import Qmp
from hutch.errors import EngineError, HutchError, error
from hutch.process import Child, ProcessId
from hutch.settings import Settings
from hutch.tasks import in_thread, settle_in_thread

log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT = 20.0
_END_GRACE = 2.0


class QemuEngine:
    """See `hutch.engine.base.Engine`. Holds no machine: each lives and ends on its own.

    What it holds are the memories of frozen machines, until they are dropped.
    """

    name = "qemu"

    def __init__(self, settings: Settings, *, handshake_timeout: float = HANDSHAKE_TIMEOUT) -> None:
        """`handshake_timeout` is how many seconds QEMU has to answer on its control socket."""
        self._settings = settings
        self._handshake_timeout = handshake_timeout
        self._memories = Memories()
        self._probe = AcceleratorProbe(settings, self._program, self._canary, self.discard)

    async def probe(self, boot: BootFiles | None, *, fresh: bool = False) -> Verdict:
        """See the Protocol. Raises engine_missing; engine_failed when a forced one fails."""
        return await self._probe.verdict(boot, fresh=fresh)

    async def boot(self, spec: MachineSpec) -> QemuMachine:
        """See the Protocol. Raises engine_missing, engine_failed (in QEMU's words), disk_full."""
        if not spec.freezable:
            return await self._start(spec)
        memory = create_memory(spec.memory)
        try:
            return await self._start(spec, memory=memory)
        except BaseException:
            os.close(memory)
            raise

    async def _start(
        self,
        spec: MachineSpec,
        listener: Callable[[float, bytes], None] | None = None,
        *,
        memory: int | None = None,
        state: Callable[[], Awaitable[bytes]] | None = None,
    ) -> QemuMachine:
        """Start a process that boots, and takes over `memory`, or one that takes up a state.

        `state` returns that; it is not asked before the process is ready for it.
        """
        program = self._program()
        incoming = state is not None
        with jail.prepare(spec, memory=memory, incoming=incoming) as handover:
            argv = build_argv(program, spec, handover.fds, jail=self._settings.jail)
            started = _spawn(argv, spec, handover.inherited)
            handover.close()
            async with _undone_on_error(started):
                qmp = await Qmp.open(handover.qmp, timeout=self._handshake_timeout)
                try:
                    if state is not None:
                        await migration.load(qmp, await state())
                        await disks.announce_sizes(qmp, spec.drives)
                    # Only now is the console's reader accepted for sure, and the guest may write
                    # its first byte.
                    await qmp.execute("cont")
                except BaseException:
                    await qmp.close()
                    raise
            record = MachineRecord(
                started.identity,
                spec.directory,
                spec.console_log,
                spec.machine,
                spec.accelerator,
                spec.uid,
            )
            console = Console(handover.console, self._console_log(spec.console_log), listener)
            return QemuMachine(
                record,
                qmp,
                console,
                child=started.child,
                words=started.words,
                memory=None if incoming else memory,
            )

    async def freeze(self, machine: Machine, directory: Path) -> Frozen:
        """See the Protocol. Raises engine_failed, disk_full, sandbox_died."""
        memory = None
        try:
            try:
                if isinstance(machine, QemuMachine):
                    memory = machine.take_memory()
                if memory is None or not isinstance(machine, QemuMachine):
                    raise error("engine_failed", "the VM was not started so that it can be frozen")
                state = await machine.save()
            finally:
                await machine.kill()
            await seal(memory)
            frozen = Frozen(directory, os.fstat(memory).st_size)
            try:
                await settle_in_thread(store, frozen, state, memory)
            except asyncio.CancelledError:
                remove(frozen)  # the thread may have been done, and is now
                raise
        except BaseException:
            if memory is not None:
                os.close(memory)
            raise
        self._memories.add(frozen, memory)
        return frozen

    async def expect(self, directory: Path, memory: int) -> Frozen:
        """See the Protocol. Raises engine_failed."""
        frozen = Frozen(directory, memory)
        self._memories.expect(frozen)
        return frozen

    async def capture(
        self,
        machine: Machine,
        directory: Path,
        *,
        next_disk: Path | None = None,
        still: AbstractAsyncContextManager[object] | None = None,
    ) -> Frozen:
        """See the Protocol. Raises engine_failed, sandbox_died."""
        if not isinstance(machine, QemuMachine):
            raise error("engine_failed", "that VM is not QEMU's")
        memory, frozen = self._memories.expected(directory), None

        def take(taken: Captured) -> None:
            nonlocal frozen
            frozen = Frozen(directory, os.fstat(taken.memory).st_size)
            self._memories.add(frozen, taken.memory, taken.state)

        try:
            await machine.capture(next_disk, take, still, memory)
        except BaseException:
            if frozen is not None:
                self._memories.drop(frozen)
            elif memory is not None:
                os.close(memory)
                self._memories.drop(Frozen(directory, 0))
            raise
        assert frozen is not None
        return frozen

    async def keep(
        self, frozen: Frozen, over: Sequence[Frozen] = (), *, lasting: bool = True
    ) -> None:
        """See the Protocol. Raises disk_full, engine_failed."""
        await self._memories.keep(frozen, over, lasting=lasting)

    def lend(self, frozen: Frozen) -> tuple[bytes, int]:
        """See the Protocol. Raises engine_failed."""
        return self._memories.lend(frozen)

    async def hold(self, frozen: Frozen, state: bytes, memory: int) -> None:
        """See the Protocol. Raises engine_failed."""
        try:
            await seal(memory)
        except BaseException:
            os.close(memory)
            raise
        self._memories.add(frozen, memory, state)

    async def clone(self, spec: MachineSpec, frozen: Frozen) -> QemuMachine:
        """See the Protocol. Raises engine_missing, engine_failed, disk_full."""
        if spec.memory != frozen.memory:
            raise template_failure(f"{frozen.directory} is of a VM with other memory")
        state = self._memories.state(frozen)
        memory = await self._memories.of(frozen)
        try:
            return await self._start(spec, memory=memory, state=state)
        finally:
            os.close(memory)

    async def drop(self, frozen: Frozen) -> None:
        """See the Protocol."""
        self._memories.drop(frozen)

    def frozen_memory(self, frozen: Frozen) -> int:
        """See the Protocol."""
        return self._memories.held(frozen)

    async def adopt(self, record: MachineRecord) -> QemuMachine | None:
        """Return the machine of a record, or None when that very process is gone.

        How it ended is then not known: the event went unheard, and a process that is no child of
        ours has no exit code. Raises EngineError (engine_failed) when it lives and does not answer:
        `record.process.kill()` ends it.
        """
        if not record.process.alive():
            jail.remove_sockets(record.directory)
            return None
        try:
            control = jail.reopen(record.directory, jail.QMP_SOCKET)
            qmp = await Qmp.open(control, timeout=self._handshake_timeout)
        except (OSError, EngineError) as cause:
            if not record.process.alive():
                jail.remove_sockets(record.directory)
                return None
            raise error(
                "engine_failed",
                f"QEMU (pid {record.process.pid}) does not answer any more: {cause}",
                hint="kill the sandbox",
            ) from cause
        try:
            console = Console(
                jail.reopen(record.directory, jail.CONSOLE_SOCKET),
                self._console_log(record.console_log),
            )
        except OSError as cause:
            await qmp.close()
            raise error(
                "engine_failed",
                f"the console of QEMU (pid {record.process.pid}) is gone: {cause}",
                hint="kill the sandbox",
            ) from cause
        return QemuMachine(record, qmp, console)

    async def discard(self, directory: Path) -> None:
        """End whatever process serves the sockets of `directory`, and remove them."""
        paths = [directory / name for name in jail.SOCKETS]
        for holder in await in_thread(socket_holders, paths):
            log.warning("ending the unrecorded QEMU process %d of %s", holder.pid, directory)
            if holder.kill():
                await holder.wait()
        jail.remove_sockets(directory)

    def create_disk(
        self, path: Path, size: int, backing: Path, backing_format: str = "raw"
    ) -> None:
        """See the Protocol. Raises disk_full, bad_size, engine_failed; leaves nothing then."""
        create_overlay(path, size, backing, backing_format)

    def identity(self) -> str:
        """See the Protocol."""
        return program_identity(Path(self._program()))

    def layout(self, spec: MachineSpec) -> str:
        """See the Protocol."""
        return layout(spec, jail=self._settings.jail)

    def _program(self) -> str:
        """Return the path of the QEMU binary. Raises Missing (engine_missing)."""
        found = process.which(self._settings.qemu)
        if found is None:
            raise error(
                "engine_missing",
                f"{self._settings.qemu} is not installed",
                hint="`apt-get install qemu-system-x86`, or name its path in the setting qemu",
            )
        return found

    def _console_log(self, path: Path) -> ConsoleLog:
        return ConsoleLog(path, size=self._settings.log_size, files=self._settings.log_files)

    async def _canary(self, spec: MachineSpec, limit: float, stall: float) -> Trial:
        return await collect(lambda listener: self._start(spec, listener), limit=limit, stall=stall)


@dataclass(frozen=True, slots=True)
class _Started:
    """A QEMU process that has not answered yet."""

    child: Child
    identity: ProcessId
    words: LastWords


def _spawn(argv: list[str], spec: MachineSpec, inherited: tuple[int, ...]) -> _Started:
    user, group = jail.identity(spec.uid, spec.accelerator)
    reader, writer = os.pipe()
    try:
        child = NOWHERE.start(
            lambda: process.spawn(
                argv, stderr=writer, cwd="/", pass_fds=inherited, user=user, group=group
            )
        )
    except HutchError as cause:
        os.close(reader)
        raise error("engine_missing", f"{argv[0]} cannot be run: {cause.message}") from cause
    except OSError as cause:
        os.close(reader)
        raise error(
            "engine_failed", f"{argv[0]} cannot be run as user {user}: {cause.strerror}"
        ) from cause
    finally:
        os.close(writer)
    jail.confine(child.pid, spec.uid)
    words = LastWords(reader)
    # A child that ended at once has no identity to return to; the handshake will tell.
    identity = ProcessId.of(child.pid) or ProcessId(child.pid, 0)
    return _Started(child, identity, words)


@contextlib.asynccontextmanager
async def _undone_on_error(started: _Started) -> AsyncIterator[None]:
    """End the process when the block raises, and add QEMU's own reason to the error."""
    try:
        yield
    except EngineError as cause:
        if cause.code == "sandbox_died":
            await _grant_end(started)
        broke_off = started.child.poll()
        words = _put_down(started)
        message, details = cause.message, {**cause.details, "stderr": words}
        if broke_off is not None:
            message = f"QEMU ended at once, with exit code {broke_off}"
            if broke_off == -signal.SIGKILL:
                # By hand or for lack of memory: that is nothing that a template is to blame for.
                details.pop("template", None)
        raise error(
            "engine_failed",
            f"{message}: {words}" if words else message,
            hint="see `hutch doctor`",
            details=details,
        ) from cause
    except BaseException:
        _put_down(started)
        raise


async def _grant_end(started: _Started) -> None:
    """Give a process that hung up the moment it needs to end with an exit code of its own."""
    # Not ProcessId.wait: a process counts as gone when its first thread is, yet has no exit code
    # before its last one.
    try:
        await settle_in_thread(started.child.wait, _END_GRACE)
    except subprocess.TimeoutExpired:
        log.debug("QEMU (pid %d) hung up and runs on", started.child.pid)
    except BaseException:
        _put_down(started)
        raise


def _put_down(started: _Started) -> str:
    """Kill and reap the process, and return its last words."""
    # A child that nobody has waited for: its pid cannot mean another process. It is gone within a
    # millisecond of SIGKILL, and the wait must not be cut short by a second cancellation.
    started.child.kill()
    started.child.wait()
    words = started.words.text()
    started.words.close()
    return words
