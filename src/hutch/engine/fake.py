"""An engine in memory, behind the same Protocol: machines that are futures, with knobs for faults.

Its machines live in the engine object, not in their handles, as processes would: a second service
on the same engine adopts them. What answers at the agent's socket is the caller's (`serve`): this
package knows no guest.
"""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from hutch.engine.base import (
    Accelerator,
    BootFiles,
    ExitKind,
    Frozen,
    Machine,
    MachineExit,
    MachineRecord,
    MachineSpec,
    Verdict,
)
from hutch.engine.jail import AGENT_SOCKET
from hutch.engine.qcow2 import create_overlay
from hutch.errors import HutchError, error
from hutch.process import ProcessId
from hutch.tasks import Scope

Serve = Callable[[Path], AbstractAsyncContextManager[object]]
"""Serves an agent at a unix socket that it makes, for the length of the context."""

# Above any pid that Linux gives out: a stray signal to one of them reaches nobody.
_PIDS = itertools.count((1 << 22) + 1)


@contextlib.asynccontextmanager
async def silent_agent(path: Path) -> AsyncIterator[None]:
    """Serve an agent that can be connected to and never says a word."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()
        yield


class FakeEngine:
    """See `hutch.engine.base.Engine`.

    Knobs, in force for the boots that follow: `fail_boot` is raised by them, `hang_boot` makes them
    wait until cancelled, `die_after` ends a machine by itself after that many seconds, as `die_as`;
    `deaf` machines ignore the power button. `fail_freeze`, `hang_freeze`, `fail_clone` and
    `hang_clone` do the same to freezing and cloning. `booted`, `frozen` and `cloned` hold what was
    asked for. What answers in a clone is `serve_clone`, `serve` where that is not given.
    """

    name = "fake"

    def __init__(self, serve: Serve = silent_agent, serve_clone: Serve | None = None) -> None:
        self._serve = serve
        self._serve_clone = serve_clone or serve
        self._memories: set[Path] = set()
        self._processes: dict[ProcessId, FakeProcess] = {}
        self.accelerator = Accelerator.TCG
        self.program = "fake 1"
        self.booted: list[MachineSpec] = []
        self.fail_boot: HutchError | None = None
        self.hang_boot = False
        self.die_after: float | None = None
        self.die_as = MachineExit(ExitKind.CRASHED, "told to")
        self.deaf = False
        self.frozen: list[Frozen] = []
        self.cloned: list[tuple[MachineSpec, Frozen]] = []
        self.fail_freeze: HutchError | None = None
        self.fail_clone: HutchError | None = None
        self.hang_freeze = self.hang_clone = False

    async def probe(self, boot: BootFiles | None, *, fresh: bool = False) -> Verdict:
        """Return the verdict for `accelerator`."""
        return Verdict(self.accelerator, "a fake runs on anything", 1_000_000, "fake 1", {})

    async def boot(self, spec: MachineSpec) -> "FakeMachine":
        """See the Protocol. Raises `fail_boot`, and engine_failed for a file that is missing."""
        self.booted.append(spec)
        if self.fail_boot is not None:
            raise self.fail_boot
        if self.hang_boot:
            await asyncio.get_running_loop().create_future()
        _must_exist(spec.boot.kernel, spec.boot.initramfs, *_disks(spec))
        return await self._start(spec, self._serve)

    async def _start(self, spec: MachineSpec, serve: Serve) -> "FakeMachine":
        process = FakeProcess(self, spec)
        await process.start(serve)
        self._processes[process.record.process] = process
        return FakeMachine(process)

    async def adopt(self, record: MachineRecord) -> "FakeMachine | None":
        """See the Protocol."""
        process = self._processes.get(record.process)
        return None if process is None or process.exit is not None else FakeMachine(process)

    async def discard(self, directory: Path) -> None:
        """See the Protocol."""
        for process in self.running():
            if process.record.directory == directory:
                await process.end(MachineExit(ExitKind.KILLED))

    def create_disk(
        self, path: Path, size: int, backing: Path, backing_format: str = "raw"
    ) -> None:
        """See the Protocol. The disk is a real one: it costs 64 KiB of holes."""
        create_overlay(path, size, backing, backing_format)

    async def freeze(self, machine: Machine, directory: Path) -> Frozen:
        """See the Protocol. Raises `fail_freeze`, and engine_failed for what is not freezable."""
        process = self._processes[machine.record.process]
        frozen = Frozen(directory, process.spec.memory)
        self.frozen.append(frozen)
        try:
            if self.fail_freeze is not None:
                raise self.fail_freeze
            if self.hang_freeze:
                await asyncio.get_running_loop().create_future()
            if not process.spec.freezable or process.exit is not None:
                raise error("engine_failed", "the VM cannot be frozen: told to")
        finally:
            await machine.kill()
        _write(frozen, _layout(process.spec))
        self._memories.add(directory)
        return frozen

    async def clone(self, spec: MachineSpec, frozen: Frozen) -> "FakeMachine":
        """See the Protocol. Raises `fail_clone`; a state of another layout does not load."""
        self.cloned.append((spec, frozen))
        if self.fail_clone is not None:
            raise self.fail_clone
        if self.hang_clone:
            await asyncio.get_running_loop().create_future()
        _must_exist(*_disks(spec))
        try:
            fits = frozen.state.read_text("utf-8") == _layout(spec)
            fits = fits and frozen.image.stat().st_size == frozen.memory == spec.memory
        except (OSError, UnicodeDecodeError):
            fits = False
        if not fits:
            raise error("engine_failed", "the state does not load", details={"template": True})
        self._memories.add(frozen.directory)
        return await self._start(spec, self._serve_clone)

    async def drop(self, frozen: Frozen) -> None:
        """See the Protocol."""
        self._memories.discard(frozen.directory)

    def frozen_memory(self, frozen: Frozen) -> int:
        """Return a tenth of the memory while it is loaded."""
        return frozen.memory // 10 if frozen.directory in self._memories else 0

    def identity(self) -> str:
        """Return `program`, which a test may change."""
        return self.program

    def layout(self, spec: MachineSpec) -> str:
        """Return what the fake state depends on."""
        return _layout(spec)

    def running(self) -> "list[FakeProcess]":
        """Return the machines that have not ended, for a test to look at or to end."""
        return [process for process in self._processes.values() if process.exit is None]

    async def close(self) -> None:
        """End every machine."""
        for process in self.running():
            await process.end(MachineExit(ExitKind.KILLED))


def _disks(spec: MachineSpec) -> list[Path]:
    files = []
    for drive in spec.drives:
        files += [drive.path, *drive.layers, *([drive.backing] if drive.backing else [])]
    return files


def _must_exist(*files: Path) -> None:
    for file in files:
        if not file.exists():
            raise error("engine_failed", f"{file} cannot be opened: No such file or directory")


def _layout(spec: MachineSpec) -> str:
    serials = [drive.serial for drive in spec.drives]
    return f"{spec.machine} {spec.accelerator} {spec.cpus} {spec.memory} {serials}\n"


def _write(frozen: Frozen, state: str) -> None:
    frozen.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    frozen.state.write_text(state, "utf-8")
    with frozen.image.open("wb") as image:
        image.truncate(frozen.memory)


class FakeProcess:
    """What a QEMU process would be. Invariant: `exit` is set once, after its socket is gone."""

    def __init__(self, engine: FakeEngine, spec: MachineSpec) -> None:
        identity = ProcessId(next(_PIDS), 1)
        self.spec = spec
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
        self.deaf = engine.deaf
        self._after, self._outcome = engine.die_after, engine.die_as
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
        """End the machine with a power-off, unless it is deaf. Raises sandbox_died."""
        if self.process.exit is not None:
            raise error("sandbox_died", "the VM ended during system_powerdown")
        if not self.process.deaf:
            await self.process.end(MachineExit(ExitKind.POWEROFF))

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

    def cpu_seconds(self) -> float:
        """Return a constant while the machine runs."""
        return 0.0 if self.process.exit else 0.1

    async def release(self) -> None:
        """See the Protocol."""
        if not self._exit.done():
            self.process.handles.remove(self)
            self._exit.cancel()
