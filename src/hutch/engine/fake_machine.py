"""The machines of the fake engine: processes that are tasks, and handles on them.

A `FakeProcess` lives as long as its engine says, whatever handles there are, as a QEMU process
would. What answers at its agent's socket is the caller's (`Serve`).
"""

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from hutch.engine.base import ExitKind, MachineExit, MachineRecord, MachineSpec, MemoryUse
from hutch.engine.jail import AGENT_SOCKET
from hutch.errors import HutchError, error
from hutch.models import CpuInfo
from hutch.process import ProcessId
from hutch.tasks import Scope

Serve = Callable[[Path], AbstractAsyncContextManager[object]]
"""Serves an agent at a unix socket that it makes, for the length of the context."""

# Above any pid that Linux gives out: a stray signal to one of them reaches nobody.
_PIDS = itertools.count((1 << 22) + 1)


class FakeProcess:
    """What a QEMU process would be. Invariant: `exit` is set once, after its socket is gone.

    `spec` is what it runs now: its disks grow with each capture. It ends by itself `after` that
    many seconds, as `outcome`; a `deaf` one ignores the power button.
    """

    def __init__(
        self,
        spec: MachineSpec,
        *,
        cpu: CpuInfo,
        deaf: bool,
        after: float | None,
        outcome: MachineExit,
    ) -> None:
        identity = ProcessId(next(_PIDS), 1)
        self.spec = spec
        self.cpu = cpu
        self.record = MachineRecord(
            identity,
            spec.directory,
            spec.console_log,
            spec.machine,
            spec.accelerator,
            spec.uid,
        )
        self.exit: MachineExit | None = None
        self.handles: list[FakeMachine] = []
        self.console = 0
        self.changed = asyncio.Event()
        self.paused = False
        self.deaf = deaf
        self._after, self._outcome = after, outcome
        self._scope = Scope(f"fake {identity.pid}")
        self._over = asyncio.Event()
        self._gone = asyncio.Event()

    async def start(self, serve: Serve) -> None:
        """Begin to serve the agent. Raises what `serve` raises, and leaves nothing then."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.spec.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._scope.start("life", self._live(serve, ready))
        try:
            await ready
        except BaseException:
            await self._scope.close()
            raise

    async def _live(self, serve: Serve, ready: "asyncio.Future[None]") -> None:
        path = self.record.directory / AGENT_SOCKET
        try:
            async with serve(path):
                ready.set_result(None)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._after):
                        await self._over.wait()
        except (OSError, HutchError) as cause:
            if ready.done():
                raise
            ready.set_exception(cause)
            return
        finally:
            path.unlink(missing_ok=True)
            self._gone.set()
        self._settle()

    def _settle(self) -> None:
        if self.exit is None:
            self.exit = self._outcome
            for handle in self.handles:
                handle.ended(self.exit)
            self._notify()

    def switch_disk(self, path: Path) -> None:
        """Put a new disk over the writable one."""
        drives = [
            drive
            if drive.read_only
            else dataclasses.replace(drive, path=path, layers=[drive.path, *drive.layers])
            for drive in self.spec.drives
        ]
        self.spec = dataclasses.replace(self.spec, drives=drives)

    def alive(self, act: str) -> None:
        """Raise sandbox_died when it has ended before `act`."""
        if self.exit is not None:
            raise error("sandbox_died", f"the VM ended during {act}")

    def say(self, data: bytes) -> None:
        """Write to the console, as the guest would."""
        with self.record.console_log.open("ab") as log:
            log.write(data)
        self.console += len(data)
        self._notify()

    def _notify(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    async def end(self, outcome: MachineExit) -> None:
        """End the machine; returns when its agent's socket is gone too."""
        if self.exit is None:
            self._outcome = outcome
            self._over.set()
            await self._gone.wait()
            self._settle()


class FakeMachine:
    """See `hutch.engine.base.Machine`: a handle on a `FakeProcess`."""

    def __init__(self, process: FakeProcess) -> None:
        self.record = process.record
        self.process = process
        self._exit: asyncio.Future[MachineExit] = asyncio.get_running_loop().create_future()
        process.handles.append(self)

    @property
    def agent_socket(self) -> Path:
        """The unix socket at which `serve` answers."""
        return self.record.directory / AGENT_SOCKET

    def ended(self, outcome: MachineExit) -> None:
        """Take note that the process has ended."""
        if not self._exit.done():
            self._exit.set_result(outcome)

    async def wait(self) -> MachineExit:
        """See the Protocol."""
        return await asyncio.shield(self._exit)

    async def powerdown(self) -> None:
        """End the machine with a power-off, unless it is deaf or paused. Raises sandbox_died."""
        self.process.alive("system_powerdown")
        if not self.process.deaf and not self.process.paused:
            await self.process.end(MachineExit(ExitKind.POWEROFF))

    async def pause(self) -> None:
        """See the Protocol. Raises sandbox_died."""
        self.process.alive("stop")
        self.process.paused = True

    async def resume(self) -> None:
        """See the Protocol. Raises sandbox_died."""
        self.process.alive("cont")
        self.process.paused = False

    async def paused(self) -> bool:
        """See the Protocol. Raises sandbox_died."""
        self.process.alive("query-status")
        return self.process.paused

    async def cpu(self) -> CpuInfo:
        """See the Protocol. Raises sandbox_died."""
        self.process.alive("query-cpu-model-expansion")
        return self.process.cpu

    async def kill(self) -> MachineExit:
        """See the Protocol."""
        await self.process.end(MachineExit(ExitKind.KILLED))
        return await self.wait()

    async def console_progress(self) -> AsyncIterator[int]:
        """See the Protocol."""
        seen = -1
        while True:
            changed = self.process.changed
            if self.process.console != seen:
                seen = self.process.console
                yield seen
            elif self.process.exit is not None:
                return
            else:
                await changed.wait()

    def memory_use(self) -> int:
        """Return a tenth of the machine's memory while it runs."""
        return 0 if self.process.exit else self.process.spec.memory // 10

    def memory(self) -> MemoryUse:
        """Return the same, most of it shared."""
        tenth = self.memory_use()
        return MemoryUse(tenth // 8, tenth // 2, tenth, tenth - tenth // 8 - tenth // 2)

    def cpu_seconds(self) -> float:
        """Return a constant while the machine runs."""
        return 0.0 if self.process.exit else 0.1

    async def release(self) -> None:
        """See the Protocol."""
        if not self._exit.done():
            self.process.handles.remove(self)
            self._exit.cancel()
