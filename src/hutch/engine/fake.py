"""An engine in memory, behind the same Protocol: machines that are futures, with knobs for faults.

Its machines live in the engine object, not in their handles, as processes would: a second service
on the same engine adopts them. What answers at the agent's socket is the caller's (`serve`): this
package knows no guest.
"""

import asyncio
import contextlib
import dataclasses
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
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
from hutch.engine.failures import template_failure
from hutch.engine.fake_machine import FakeMachine, FakeProcess, Serve
from hutch.engine.memories import create_memory
from hutch.engine.qcow2 import create_overlay
from hutch.errors import HutchError, error
from hutch.models import CpuInfo
from hutch.process import ProcessId


@contextlib.asynccontextmanager
async def silent_agent(path: Path) -> AsyncIterator[None]:
    """Serve an agent that can be connected to and never says a word."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()
        yield


@dataclass(frozen=True, slots=True)
class _Memory:
    """What is held of a frozen or captured machine: its agent as it was, and its state.

    No state: that is on disk.
    """

    serve: Serve
    state: str | None = None


class FakeEngine:
    """See `hutch.engine.base.Engine`.

    Knobs, in force for the boots that follow: `fail_boot` is raised by them, `hang_boot` makes them
    wait until cancelled, `die_after` ends a machine by itself after that many seconds, as `die_as`;
    `deaf` machines ignore the power button. `fail_freeze`, `hang_freeze`, `fail_clone` and
    `hang_clone` do the same to freezing and cloning, `fail_capture`, `hang_capture` and `fail_keep`
    to what their names say; a capture fails where the machine stands still. `booted`, `frozen`,
    `captured`, `kept`, `kept_over` and `cloned` hold what was asked for.

    What answers in a clone is `serve_clone`, `serve` where that is not given. In the clone of a
    machine it is what `serve_child`, where that is given, returned when that machine, whose spec it
    gets, was frozen or captured: the agent as it was then.
    """

    name = "fake"

    def __init__(self, serve: Serve = silent_agent, serve_clone: Serve | None = None) -> None:
        self._serve = serve
        self._serve_clone = serve_clone or serve
        self._memories: dict[Path, _Memory] = {}
        self._serve_kept: dict[Path, Serve] = {}
        self._lent: dict[bytes, Serve] = {}
        self._processes: dict[ProcessId, FakeProcess] = {}
        self.accelerator = Accelerator.TCG
        self.program = "fake 1"
        self.cpu = CpuInfo("fake", "FakeVendor", ["fpu", "sse2"])
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
        self.serve_child: Callable[[MachineSpec], Serve] | None = None
        self.captured: list[Frozen] = []
        self.kept: list[Frozen] = []
        self.kept_over: list[Sequence[Frozen]] = []
        self.fail_capture: HutchError | None = None
        self.fail_keep: HutchError | None = None
        self.hang_capture = False
        self._expected: dict[Path, asyncio.Future[None]] = {}

    async def probe(self, boot: BootFiles | None, *, fresh: bool = False) -> Verdict:
        """Return the verdict for `accelerator`."""
        return Verdict(
            self.accelerator, "a fake runs on anything", 1_000_000, "fake 1", {}, self.cpu
        )

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
        process = FakeProcess(
            spec, cpu=self.cpu, deaf=self.deaf, after=self.die_after, outcome=self.die_as
        )
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
        frozen, serve = Frozen(directory, process.spec.memory), self._child(process.spec)
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
        self._memories[directory] = _Memory(serve)
        self._serve_kept[directory] = serve
        return frozen

    def _child(self, spec: MachineSpec) -> Serve:
        return self._serve_clone if self.serve_child is None else self.serve_child(spec)

    async def expect(self, directory: Path, memory: int) -> Frozen:
        """See the Protocol."""
        self._disappoint(directory)
        self._expected[directory] = asyncio.get_running_loop().create_future()
        return Frozen(directory, memory)

    def _disappoint(self, directory: Path) -> None:
        if (expected := self._expected.pop(directory, None)) is not None:
            expected.set_exception(error("engine_failed", "what it was to go on from is not there"))
            expected.exception()  # there may be nobody who waits

    async def capture(
        self,
        machine: Machine,
        directory: Path,
        *,
        next_disk: Path | None = None,
        still: AbstractAsyncContextManager[object] | None = None,
    ) -> Frozen:
        """See the Protocol. Raises `fail_capture`, engine_failed for a disk that is missing."""
        before = self._memories.get(directory)
        try:
            return await self._capture(machine, directory, next_disk, still)
        except BaseException:
            self._disappoint(directory)
            if self._memories.get(directory) is not before:
                del self._memories[directory]
            raise

    async def _capture(
        self,
        machine: Machine,
        directory: Path,
        next_disk: Path | None,
        still: AbstractAsyncContextManager[object] | None,
    ) -> Frozen:
        process = self._processes[machine.record.process]
        frozen = Frozen(directory, process.spec.memory)
        self.captured.append(frozen)
        async with still or contextlib.nullcontext():
            process.alive("stop")
            ran, process.paused = not process.paused, True
            try:
                if self.fail_capture is not None:
                    raise self.fail_capture
                if self.hang_capture:
                    await asyncio.get_running_loop().create_future()
                process.alive("capture")
                serve = self._child(process.spec)
                if next_disk is not None:
                    _must_exist(next_disk)
                    process.switch_disk(next_disk)
                memory = _Memory(serve, _layout(process.spec))
            finally:
                process.paused = not ran
            self._memories[directory] = memory
            if (expected := self._expected.pop(directory, None)) is not None:
                expected.set_result(None)
        return frozen

    async def keep(
        self, frozen: Frozen, over: Sequence[Frozen] = (), *, lasting: bool = True
    ) -> None:
        """See the Protocol. Raises `fail_keep`, engine_failed for what was dropped."""
        self.kept.append(frozen)
        self.kept_over.append(over)
        memory = self._memories.get(frozen.directory)
        if self.fail_keep is not None:
            raise self.fail_keep
        if memory is None:
            raise error("engine_failed", f"nothing is held for {frozen.directory}")
        if memory.state is not None:
            _write(frozen, memory.state)
        self._memories[frozen.directory] = _Memory(memory.serve)
        self._serve_kept[frozen.directory] = memory.serve

    def lend(self, frozen: Frozen) -> tuple[bytes, int]:
        """See the Protocol. The memory says which agent was in it."""
        memory = self._memories.get(frozen.directory)
        if memory is None or memory.state is None:
            raise error("engine_failed", f"nothing is held for {frozen.directory}")
        token = b"fake %s\n" % os.urandom(8).hex().encode()
        self._lent[token] = memory.serve
        fd = create_memory(frozen.memory)
        os.pwrite(fd, token, 0)
        return memory.state.encode(), fd

    async def hold(self, frozen: Frozen, state: bytes, memory: int) -> None:
        """See the Protocol. Raises engine_failed for a memory of another engine's."""
        token = os.pread(memory, 22, 0)
        os.close(memory)
        if not token.startswith(b"fake "):
            raise error("engine_failed", "that memory is none")
        serve = self._lent.get(token, self._serve_clone)
        self._memories[frozen.directory] = _Memory(serve, state.decode())

    async def clone(self, spec: MachineSpec, frozen: Frozen) -> "FakeMachine":
        """See the Protocol. Raises `fail_clone`; a state of another layout does not load."""
        self.cloned.append((spec, frozen))
        if self.fail_clone is not None:
            raise self.fail_clone
        if self.hang_clone:
            await asyncio.get_running_loop().create_future()
        _must_exist(*_disks(spec))
        if (expected := self._expected.get(frozen.directory)) is not None:
            await asyncio.shield(expected)
        memory = self._memories.get(frozen.directory)
        state = None if memory is None else memory.state
        state = _read(frozen) if state is None else state
        if state not in (_layout(spec), _layout(dataclasses.replace(spec, tap=None))):
            raise template_failure("the state does not load")
        if memory is None:
            serve = self._serve_kept.get(frozen.directory, self._serve_clone)
            memory = self._memories[frozen.directory] = _Memory(serve)
        return await self._start(spec, memory.serve)

    async def drop(self, frozen: Frozen) -> None:
        """See the Protocol."""
        self._disappoint(frozen.directory)
        self._memories.pop(frozen.directory, None)

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
    network = "" if spec.tap is None else " network"
    return f"{spec.machine} {spec.accelerator} {spec.cpus} {spec.memory} {serials}{network}\n"


def _write(frozen: Frozen, state: str) -> None:
    frozen.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    frozen.state.write_text(state, "utf-8")
    with frozen.image.open("wb") as image:
        image.truncate(frozen.memory)


def _read(frozen: Frozen) -> str | None:
    try:
        state = frozen.state.read_text("utf-8")
        return state if frozen.image.stat().st_size == frozen.memory else None
    except (OSError, UnicodeDecodeError):
        return None
