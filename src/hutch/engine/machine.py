"""A running QEMU process: how it is watched, ended and let go, and how its end is explained.

Made by `qemu` from a fresh or an adopted process. The process is a child of ours only until the
daemon is restarted, so nothing here relies on it being one.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from hutch.engine import migration, smaps
from hutch.engine.argv import cpu_model
from hutch.engine.base import ExitKind, MachineExit, MachineRecord, MemoryUse
from hutch.engine.capture import Take, capture
from hutch.engine.console import Console
from hutch.engine.cpu import cpu_of
from hutch.engine.jail import AGENT_SOCKET, remove_sockets
from hutch.engine.qmp import Qmp
from hutch.models import CpuInfo
from hutch.process import Child
from hutch.tasks import Scope

LAST_WORDS = 8 << 10
_DRAIN = 2.0
_PANIC = b"Kernel panic - not syncing"
_NOISE = ("warning: nic ", "Failed to unlink socket")
_TICKS = os.sysconf("SC_CLK_TCK")


class LastWords:
    """The end of what QEMU writes to stderr, read for as long as we live and bounded."""

    def __init__(self, fd: int) -> None:
        """Take over the pipe's reading end `fd`."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._tail = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._read)
        self._open = True

    def _read(self) -> bool:
        try:
            data = os.read(self._fd, 64 << 10)
        except BlockingIOError:
            return False
        self._tail = (self._tail + data)[-LAST_WORDS:]
        if not data:
            self.close()
        return bool(data)

    def text(self) -> str:
        """Return what is known so far, less the warnings that every machine of ours causes."""
        while self._open and self._read():
            pass
        lines = self._tail.decode(errors="replace").splitlines()
        return "\n".join(
            line for line in lines if not any(noise in line for noise in _NOISE)
        ).strip()

    def close(self) -> None:
        """Stop reading. Idempotent."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._fd)
            os.close(self._fd)


def explain(
    reason: str | None, code: int | None, *, killed: bool, console: bytes, words: str
) -> MachineExit:
    """Return how a machine ended.

    `reason` is that of QMP's last SHUTDOWN event; `code` the exit code of a child (negative: a
    signal), None for a process that is no child of ours; `killed` that we killed it (which a
    machine already on its way out survives). Without an event (it was lost while no daemon was
    there, or QEMU broke off) the exit code decides; without that either, it counts as crashed.
    """
    if killed and reason is None:
        return MachineExit(ExitKind.KILLED)
    if reason == "guest-panic":
        return MachineExit(ExitKind.PANIC)
    if reason == "guest-reset":
        # A kernel without the pvpanic driver resets the machine (panic=-1); the console tells it
        # from a reboot.
        return MachineExit(ExitKind.PANIC if _PANIC in console else ExitKind.REBOOT)
    if reason == "guest-shutdown" or (reason is None and code == 0):
        return MachineExit(ExitKind.POWEROFF)
    if reason is not None and reason.startswith("host-") and reason != "host-error":
        return MachineExit(ExitKind.KILLED, f"QEMU was told to end ({reason})")
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        how = f"QEMU was killed by {name}"
        if code == -signal.SIGKILL:
            how += ", by hand or for lack of memory on the host"
        elif code == -signal.SIGSYS:
            how += ": a system call that its sandbox denies"
    else:
        how = "QEMU broke off" + ("" if code is None else f" with exit code {code}")
    return MachineExit(ExitKind.CRASHED, f"{how}: {words}" if words else how)


class QemuMachine:
    """See `hutch.engine.base.Machine`. Invariant: when the exit is known, nothing is left."""

    def __init__(
        self,
        record: MachineRecord,
        qmp: Qmp,
        console: Console,
        *,
        child: Child | None = None,
        words: LastWords | None = None,
        memory: int | None = None,
    ) -> None:
        """`memory` is the guest's, where the machine can be frozen; it is taken over."""
        self.record = record
        self._memory = memory
        self._standing = asyncio.Lock()
        self._captured = False
        self._qmp = qmp
        self._console = console
        self._child = child
        self._words = words
        self._killed = False
        self._exit: asyncio.Future[MachineExit] = asyncio.get_running_loop().create_future()
        self._scope = Scope(f"machine {record.process.pid}")
        self._scope.start("console", console.run())
        self._scope.start("watch", self._watch())

    @property
    def agent_socket(self) -> Path:
        """The unix socket of the agent's port; one connection at a time."""
        return self.record.directory / AGENT_SOCKET

    async def _watch(self) -> None:
        end = MachineExit(ExitKind.CRASHED, "its end could not be examined")
        try:
            await self.record.process.wait()
            code = self._reap()
            # The process is gone: what it still had to say is in the sockets' buffers, and their
            # ends follow.
            reason = await self._qmp.shutdown_reason(timeout=_DRAIN)
            await self._console.drained(timeout=_DRAIN)
            words = self._words.text() if self._words else ""
            tail = self._console.tail
            end = explain(reason, code, killed=self._killed, console=tail, words=words)
            await self._let_go()
            remove_sockets(self.record.directory)
        finally:
            if not self._exit.done():
                self._exit.set_result(end)

    def _reap(self) -> int | None:
        if self._child is not None:
            return self._child.wait()
        # After an adoption it may be a child all the same (of an engine released in this very
        # process).
        with contextlib.suppress(ChildProcessError):
            _, status = os.waitpid(self.record.process.pid, os.WNOHANG)
            return os.waitstatus_to_exitcode(status)
        return None

    async def _let_go(self) -> None:
        if (memory := self.take_memory()) is not None:
            os.close(memory)
        await self._qmp.close()
        if self._words:
            self._words.close()

    async def save(self) -> bytes:
        """Stop it for good and return the state of its devices and CPUs. Raises EngineError."""
        return await migration.save(self._qmp)

    async def capture(
        self,
        next_disk: Path | None,
        take: Take,
        still: AbstractAsyncContextManager[object] | None,
        memory: int | None,
    ) -> None:
        """Take it as it is now: see `hutch.engine.capture.capture`. Raises EngineError."""
        async with self._standing:
            self._captured = True
            await capture(self._qmp, self.record.process, next_disk, take, still, memory)

    def take_memory(self) -> int | None:
        """Return the guest's memory, the caller's to close; None: there is none to be had."""
        memory, self._memory = self._memory, None
        return memory

    async def wait(self) -> MachineExit:
        """Return how it ended, once it has. Cancelled by `release`, never raises otherwise."""
        return await asyncio.shield(self._exit)

    async def powerdown(self) -> None:
        """Press the power button. Raises EngineError when QEMU does not answer or is gone."""
        await self._qmp.execute("system_powerdown")

    async def pause(self) -> None:
        """See the Protocol. Raises sandbox_died, engine_failed."""
        async with self._standing:  # what captures it lets it run on as it was before
            await self._qmp.execute("stop")

    async def resume(self) -> None:
        """See the Protocol. Raises sandbox_died, engine_failed."""
        async with self._standing:
            await self._qmp.execute("cont")
            if self._captured:  # as it stood still, maybe: QEMU keeps files then
                self._captured = False
                await self._qmp.sweep()

    async def paused(self) -> bool:
        """See the Protocol. Raises sandbox_died, engine_failed."""
        return not await self._qmp.ask("query-status", "running", bool)

    async def cpu(self) -> CpuInfo:
        """See the Protocol. Raises sandbox_died, engine_failed."""
        return await cpu_of(self._qmp, cpu_model(self.record.accelerator))

    async def kill(self) -> MachineExit:
        """End it now; returns when the process is gone. Idempotent."""
        # A machine that is already on its way out keeps its own reason.
        self._killed = self.record.process.kill() or self._killed
        return await self.wait()

    async def console_progress(self) -> AsyncIterator[int]:
        """Yield the console's total bytes as they grow; ends with the machine."""
        async for total in self._console.progress():
            yield total

    def memory_use(self) -> int:
        """Return the proportional set size in bytes, 0 when the process is gone. Blocking."""
        return smaps.proportional(self.record.process.pid)

    def memory(self) -> MemoryUse:
        """Return what the process takes of the host's memory, by kind. Blocking."""
        return smaps.memory_use(self.record.process.pid)

    def cpu_seconds(self) -> float:
        """Return the CPU time used by the process, user and system, 0 when it is gone."""
        with contextlib.suppress(OSError):
            with open(f"/proc/{self.record.process.pid}/stat", "rb") as stat:
                fields = stat.read().rpartition(b")")[2].split()
            return (int(fields[11]) + int(fields[12])) / _TICKS
        return 0.0

    async def release(self) -> None:
        """Let go of the machine without ending it, after a capture under way. Idempotent."""
        async with self._standing:  # it would stay stopped
            if not self._exit.done():
                await self._hang_up()

    async def _hang_up(self) -> None:
        self._exit.cancel()
        await self._scope.close()
        self._console.close()
        await self._let_go()
        if self._child is not None:
            # It outlives us by design: keep subprocess from warning about a child that nobody
            # waited for.
            self._child.returncode = 0
