"""Operations in memory: sandboxes without machines, programs that are Python coroutines.

Programs (`argv[0]`): true, false, exit N, echo WORDS, err WORDS, cat, count (bytes of stdin), bytes
N (N patterned bytes), flood N (N bytes on each channel, reading no stdin), hang (until a signal or
a cancel), size (prints the terminal's size at each resize), env. Windows are as in a real guest: a
program blocks once 1 MiB is unacknowledged.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from hutch.api.operations import LogQuery, LogRecord, SandboxFilter
from hutch.errors import error
from hutch.models import (
    ExecInfo,
    ExecSpec,
    ExitStatus,
    Progress,
    Removed,
    SandboxInfo,
    SandboxSpec,
    SandboxState,
    StopReason,
    TtySize,
    timestamp,
)
from hutch.networking import NetworkPolicy
from hutch.reports import (
    Check,
    DaemonInfo,
    Event,
    HostUsage,
    ProcessInfo,
    SandboxStats,
    SandboxUsage,
)
from hutch.settings import Settings
from hutch.tasks import Scope
from tests.unit.api.fake_checkpoints import FakeCheckpoints, FakeDiffs
from tests.unit.api.fake_content import FakeImages, FakeKernels, FakeTemplates
from tests.unit.api.fake_guest_files import EchoTunnel, FakeFiles
from tests.unit.api.fake_networks import FakeNetworks
from tests.unit.api.fake_pools import FakePools
from tests.unit.api.fake_ports import FakePorts
from tests.unit.api.fake_programs import NOW, PROGRAMS, FakeExec, FakeSession
from tests.unit.api.fake_snapshots import FakeForks, FakeSnapshots


class FakeExecs:
    """Programs, by id."""

    def __init__(self, owner: "FakeOperations") -> None:
        self.owner = owner
        self.all: dict[str, FakeExec] = {}

    def launch(self, spec: ExecSpec, exec_id: str | None = None) -> FakeExec:
        if not spec.argv:
            raise error("bad_command", "no command")
        if spec.argv[0] not in PROGRAMS:
            raise error("command_not_found", f"{spec.argv[0]} does not exist")
        name = exec_id or f"ex_{len(self.all)}"
        self.all[name] = FakeExec(name, spec, self.owner.scope)
        return self.all[name]

    async def start(self, ref: str, spec: ExecSpec) -> FakeSession:
        self.owner.sandboxes.running(ref)
        return FakeSession(self.launch(spec))

    async def spawn(self, ref: str, spec: ExecSpec) -> ExecInfo:
        self.owner.sandboxes.running(ref)
        return self.launch(spec).info

    async def attach(
        self, ref: str, exec_id: str, offsets: Mapping[int, int] | None = None
    ) -> FakeSession:
        return FakeSession(self.find(ref, exec_id))

    def find(self, ref: str, exec_id: str) -> FakeExec:
        self.owner.sandboxes.find(ref)
        if exec_id not in self.all:
            raise error("exec_not_found", f"no exec {exec_id}")
        return self.all[exec_id]

    async def get(self, ref: str, exec_id: str) -> ExecInfo:
        return self.find(ref, exec_id).info

    async def list(self, ref: str) -> Sequence[ExecInfo]:
        return [running.info for running in self.all.values()]

    async def signal(self, ref: str, exec_id: str, name: str, *, everything: bool = False) -> None:
        await FakeSession(self.find(ref, exec_id)).signal(name)


class FakeSandboxes:
    """Sandboxes as rows."""

    def __init__(self, owner: "FakeOperations") -> None:
        self.owner = owner
        self.rows: dict[str, SandboxInfo] = {}
        self.removed: list[str] = []
        self.mains: dict[str, FakeExec] = {}
        self.create_gate: asyncio.Event | None = None
        self.waiting = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.changed = asyncio.Condition()
        self.logged: list[LogRecord] = []

    def find(self, ref: str) -> SandboxInfo:
        for info in self.rows.values():
            if ref in (info.name, info.id) or info.id.startswith(ref):
                return info
        raise error("sandbox_not_found", f"no sandbox {ref}", hint="see `hutch ps -a`")

    def running(self, ref: str) -> SandboxInfo:
        info = self.find(ref)
        if info.state is not SandboxState.RUNNING:
            raise error("wrong_state", f"{info.name} is not running")
        return info

    async def put(self, info: SandboxInfo) -> SandboxInfo:
        async with self.changed:
            self.rows[info.id] = info
            self.changed.notify_all()
        return info

    async def create(self, spec: SandboxSpec, report: Any) -> SandboxInfo:
        if spec.image == "nosuch":
            raise error("image_not_found", "no image nosuch")
        if any(info.name == spec.name for info in self.rows.values()):
            raise error("name_taken", f"{spec.name} is taken")
        report(Progress("pull", "sha256:1", 1, 2))
        if self.create_gate is not None:
            self.waiting.set()
            try:
                await self.create_gate.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        number = len(self.rows) + len(self.removed)
        return await self.put(
            SandboxInfo(
                id=f"sb_{number:04d}",
                name=spec.name or f"box-{number}",
                state=SandboxState.CREATED,
                image=spec.image,
                image_id="sha256:0",
                command=spec.command or [],
                env=spec.env,
                workdir=spec.workdir or "/",
                user=spec.user or "",
                tty=spec.tty,
                stdin=spec.stdin,
                idle=spec.idle,
                cpus=spec.cpus or 1,
                memory=spec.memory or 512 << 20,
                disk=spec.disk or 10 << 30,
                timeout=spec.timeout,
                auto_remove=spec.auto_remove,
                labels=spec.labels,
                hostname=spec.hostname or "box",
                created_at=NOW,
                ports=self.owner.ports.number(spec.ports),
                network=spec.network or NetworkPolicy(),
            )
        )

    async def start(
        self, ref: str, *, size: TtySize | None = None, template: bool = True
    ) -> SandboxInfo:
        info = self.find(ref)
        info = replace(info, template=FakeTemplates.info.id if template else None)
        if not info.idle and info.command:
            await self._main(info, size)
        return await self.put(replace(info, state=SandboxState.RUNNING, started_at=NOW))

    async def _main(self, info: SandboxInfo, size: TtySize | None) -> FakeExec:
        tty = (size or TtySize(24, 80)) if info.tty else None
        spec = ExecSpec(info.command, info.env, tty=tty, stdin=info.stdin)
        main = self.mains[info.id] = self.owner.execs.launch(spec, "main")
        self.owner.scope.start(f"main of {info.id}", self._follow(info.id, main))
        return main

    async def _follow(self, sandbox_id: str, main: FakeExec) -> None:
        await main.program.until(lambda: not main.info.running)
        outcome = main.info.outcome
        info = self.rows.get(sandbox_id)
        if info is not None and outcome is not None:
            ended = ExitStatus(StopReason.EXITED, outcome.exit_code)
            info = await self.put(replace(info, state=SandboxState.STOPPED, exit=ended))
            if info.auto_remove:
                await self.remove(sandbox_id, force=True)

    async def start_attached(
        self, ref: str, *, size: TtySize | None = None
    ) -> tuple[SandboxInfo, FakeSession]:
        info = self.find(ref)
        main = await self._main(info, size)
        info = await self.put(replace(info, state=SandboxState.RUNNING, started_at=NOW))
        return info, FakeSession(main)

    async def stop(
        self, ref: str, *, timeout: float | None = None, signal: str | None = None
    ) -> SandboxInfo:
        info = self.running(ref)
        ended = ExitStatus(StopReason.STOPPED, 143)
        return await self.put(replace(info, state=SandboxState.STOPPED, exit=ended))

    async def restart(
        self, ref: str, *, timeout: float | None = None, signal: str | None = None
    ) -> SandboxInfo:
        return await self.start(ref)

    async def pause(self, ref: str) -> SandboxInfo:
        return await self.put(replace(self.running(ref), state=SandboxState.PAUSED))

    async def park(self, ref: str) -> SandboxInfo:
        info = self.find(ref)
        if info.state is not SandboxState.PAUSED:
            info = self.running(ref)
        return await self.put(replace(info, state=SandboxState.PARKED))

    async def resume(self, ref: str) -> SandboxInfo:
        info = self.find(ref)
        if info.state not in (SandboxState.PAUSED, SandboxState.PARKED):
            raise error("wrong_state", f"{info.name} is not paused")
        return await self.put(replace(info, state=SandboxState.RUNNING))

    async def kill(self, ref: str, *, signal: str = "KILL") -> SandboxInfo:
        info = self.running(ref)
        ended = ExitStatus(StopReason.KILLED, 137)
        return await self.put(replace(info, state=SandboxState.STOPPED, exit=ended))

    async def remove(self, ref: str, *, force: bool = False) -> Removed:
        info = self.find(ref)
        if info.state is SandboxState.RUNNING and not force:
            raise error("wrong_state", f"{info.name} is running", hint="use --force")
        async with self.changed:
            del self.rows[info.id]
            self.removed.append(info.id)
            self.changed.notify_all()
        return Removed([info.id], 4096)

    async def rename(self, ref: str, name: str) -> SandboxInfo:
        return await self.put(replace(self.find(ref), name=name))

    async def get(self, ref: str) -> SandboxInfo:
        return self.find(ref)

    async def list(self, which: SandboxFilter) -> Sequence[SandboxInfo]:
        labels = dict(label.partition("=")[::2] for label in which.labels)
        return [
            info
            for info in self.rows.values()
            if (which.all or which.states or info.state is not SandboxState.STOPPED)
            and (not which.states or info.state in which.states)
            and (not which.name or which.name in info.name)
            and all(info.labels.get(key) == value for key, value in labels.items())
        ]

    async def wait(self, ref: str, *, timeout: float | None = None) -> SandboxInfo:
        last = self.find(ref)

        def ended() -> bool:
            nonlocal last
            last = self.rows.get(last.id, last)
            return last.id not in self.rows or not last.state.has_machine

        self.waiting.set()
        try:
            async with asyncio.timeout(timeout), self.changed:
                await self.changed.wait_for(ended)
        except TimeoutError:
            raise error("guest_timeout", f"{last.name} still runs") from None
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return last

    async def stats(self, ref: str) -> SandboxStats:
        info = self.running(ref)
        return SandboxStats(
            info.id,
            info.name,
            info.state,
            cpu_percent=2.0,
            cpus=1,
            cpu_seconds=1.5,
            load=[0.1, 0.2, 0.3],
            memory_total=1,
            memory_used=2,
            uptime_seconds=7.0,
            host_memory=9,
            host_disk=11,
        )

    async def processes(self, ref: str) -> Sequence[ProcessInfo]:
        self.running(ref)
        return [ProcessInfo(1, 0, "root", "S", 0.1, 4096, 1, NOW, "agent")]

    async def logs(self, ref: str, query: LogQuery) -> AsyncIterator[LogRecord]:
        self.find(ref)
        for record in self.logged[-query.tail if query.tail else 0 :]:
            yield record
        if query.follow:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()


class FakeFileOperations:
    """One file system for all sandboxes."""

    def __init__(self, owner: "FakeOperations") -> None:
        self.owner = owner
        self.guest = FakeFiles()
        self.tunnels: list[EchoTunnel] = []

    async def of(self, ref: str) -> FakeFiles:
        self.owner.sandboxes.running(ref)
        return self.guest

    async def tunnel(self, ref: str, port: int, host: str = "127.0.0.1") -> EchoTunnel:
        self.owner.sandboxes.running(ref)
        if port == 1:
            raise error("guest_refused", f"nobody listens on {host}:{port}")
        self.tunnels.append(EchoTunnel())
        return self.tunnels[-1]


class FakeSystem:
    """The daemon's own state."""

    def __init__(self, owner: "FakeOperations", home: str) -> None:
        self.owner = owner
        self.home = home
        self.stops: list[bool] = []
        self.bug = False

    async def info(self) -> DaemonInfo:
        if self.bug:
            raise ZeroDivisionError("a bug")
        rows = self.owner.sandboxes.rows.values()
        running = sum(info.state is SandboxState.RUNNING for info in rows)
        return DaemonInfo("0.1.0", "v1", 1, timestamp(0), self.home, len(rows), running, 1)

    async def usage(self) -> HostUsage:
        taken = [
            SandboxUsage(info.id, info.name, info.state, 9 << 20, 11 << 20)
            for info in self.owner.sandboxes.rows.values()
        ]
        return HostUsage(8 << 30, 6 << 30, 1 << 29, 0, 1 << 29, 32 << 30, 0, 9 << 30, 1, taken)

    async def doctor(self) -> Sequence[Check]:
        return [Check("qemu", "fail", "not installed", "apt-get install qemu-system-x86")]

    def settings(self) -> Mapping[str, Mapping[str, Any]]:
        return {"cpus": {"value": 1, "origin": "default"}}

    async def events(
        self, *, since: int | None = None, follow: bool = False
    ) -> AsyncIterator[Event]:
        for seq in range(since or 0, 3):
            yield Event(seq, NOW, "sandbox.started", "sb_0000", "box", {"n": seq})
        if follow:
            try:
                await asyncio.Event().wait()
            finally:
                self.owner.sandboxes.cancelled.set()

    async def request_stop(self, *, stop_sandboxes: bool) -> None:
        self.stops.append(stop_sandboxes)


class FakeOperations:
    """Everything the API offers, in memory. Use as an async context manager."""

    def __init__(self, home: str = "/fake") -> None:
        self.scope = Scope("fake")
        self.sandboxes = FakeSandboxes(self)
        self.execs = FakeExecs(self)
        self.files = FakeFileOperations(self)
        self.ports = FakePorts(self.sandboxes)
        self.networks = FakeNetworks(self.sandboxes)
        self.images = FakeImages()
        self.kernels = FakeKernels()
        self.templates = FakeTemplates()
        self.pools = FakePools()
        self.snapshots = FakeSnapshots(self.sandboxes)
        self.forks = FakeForks(self.snapshots)
        self.checkpoints = FakeCheckpoints(self.snapshots)
        self.diffs = FakeDiffs()
        self.system = FakeSystem(self, home)

    async def __aenter__(self) -> "FakeOperations":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.scope.close()


@asynccontextmanager
async def open_fake_host(settings: Settings) -> AsyncIterator[FakeOperations]:
    """Stand in for hutch.service.host.open_host in a daemon process of the tests."""
    async with FakeOperations(str(settings.home)) as operations:
        yield operations
