"""What the API may ask about sandboxes, their programs and their files, on this host.

Finds the sandbox that is meant and hands the request to whoever does it: `lives.py` for changes of
state, the running sandbox for the rest.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Protocol

from hutch.errors import HutchError, error
from hutch.guest.base import GuestFiles, TunnelStream
from hutch.images.base import Report
from hutch.models import (
    ExecInfo,
    ExecOutcome,
    ExecSpec,
    Removed,
    SandboxInfo,
    SandboxSpec,
    SandboxState,
    TtySize,
)
from hutch.reports import ProcessInfo, SandboxStats
from hutch.service.exec import EXEC_ID, MAIN, SandboxExecs
from hutch.service.inuse import UsedFiles, UsedTunnel
from hutch.service.lifecycle import wrong_state
from hutch.service.lives import Lives
from hutch.service.logs import read_console, read_log
from hutch.service.names import check_name
from hutch.service.parts import Parts, Places
from hutch.service.registry import Entry, Registry
from hutch.service.session import RecordedSession, Session
from hutch.service.spec import check_timeout, signal_name, signal_number
from hutch.service.stats import processes, sandbox_stats
from hutch.service.values import LogQuery, LogRecord, SandboxFilter
from hutch.tasks import settle


class HostSandboxes:
    """Implements `Sandboxes` of the API's operations for one host."""

    def __init__(self, parts: Parts, registry: Registry, lives: Lives) -> None:
        self._parts = parts
        self._registry = registry
        self._lives = lives

    async def create(self, spec: SandboxSpec, report: Report) -> SandboxInfo:
        """Make a sandbox; pulls its image when that is needed."""
        return (await self._lives.create(spec, report)).info

    async def start(
        self, ref: str, *, size: TtySize | None = None, template: bool = True
    ) -> SandboxInfo:
        """Start a sandbox; one that runs already is left as it is."""
        entry = self._registry.find(ref)
        await self._lives.start(entry, size, attach=False, template=template)
        return entry.info

    async def start_attached(
        self, ref: str, *, size: TtySize | None = None
    ) -> tuple[SandboxInfo, Session]:
        """Start a sandbox, attached to its main process from the first byte."""
        entry = self._registry.find(ref)
        session = await self._lives.start(entry, size, attach=True)
        assert session is not None
        return entry.info, session

    async def stop(
        self, ref: str, *, timeout: float | None = None, signal: str | None = None
    ) -> SandboxInfo:
        """Stop a sandbox gracefully, and by force when `timeout` seconds are over."""
        entry = self._registry.find(ref)
        grace = self._parts.settings.stop_timeout if timeout is None else timeout
        check_timeout(grace)
        number = None if signal is None else signal_number(signal)
        await self._lives.stop(entry, grace, number)
        return entry.info

    async def restart(
        self, ref: str, *, timeout: float | None = None, signal: str | None = None
    ) -> SandboxInfo:
        """Stop and start a sandbox; its disk is kept."""
        entry = self._registry.find(ref)
        await self.stop(entry.info.id, timeout=timeout, signal=signal)
        await self._lives.start(entry, None, attach=False)
        return entry.info

    async def kill(self, ref: str, *, signal: str = "KILL") -> SandboxInfo:
        """End the VM now (KILL), or send another signal to the main process."""
        entry = self._registry.find(ref)
        if signal_name(signal) == "SIGKILL":
            if entry.at_rest:
                raise wrong_state(entry.info, "running")
            await self._lives.kill(entry)
            return entry.info
        sandbox = await self._lives.awake(entry)
        if entry.info.idle:
            raise error(
                "wrong_state",
                f"sandbox {entry.info.name} is idle: it has no main process to signal",
                hint=f"end it with `hutch stop {entry.info.name}`",
            )
        await sandbox.execs.signal(MAIN, signal_number(signal), everything=False)
        return entry.info

    async def pause(self, ref: str) -> SandboxInfo:
        """Stop a running sandbox's CPUs; its memory stays."""
        entry = self._registry.find(ref)
        await self._lives.pauses.pause(entry)
        return entry.info

    async def resume(self, ref: str) -> SandboxInfo:
        """Let a paused or parked sandbox go on."""
        entry = self._registry.find(ref)
        await self._lives.pauses.resume(entry)
        return entry.info

    async def park(self, ref: str) -> SandboxInfo:
        """Write a sandbox's memory to disk and end its VM, until it is used again."""
        entry = self._registry.find(ref)
        await self._lives.pauses.park(entry)
        return entry.info

    async def remove(self, ref: str, *, force: bool = False) -> Removed:
        """Remove a sandbox with its disk and logs; with `force` also one that runs."""
        return await self._lives.remove(self._registry.find(ref), force=force)

    async def rename(self, ref: str, name: str) -> SandboxInfo:
        """Give a sandbox another name. Its hostname stays."""
        entry = self._registry.find(ref)
        check_name(name)
        if name == entry.info.name:
            return entry.info
        with self._registry.reserve(name):
            old = entry.info.name
            await settle(self._rename(entry, name))
        self._parts.events.emit("sandbox.renamed", entry.info.id, name, before=old)
        return entry.info

    async def _rename(self, entry: Entry, name: str) -> None:
        self._registry.rename(entry, await self._parts.store.rename(entry.info.id, name))

    async def get(self, ref: str) -> SandboxInfo:
        """Return one sandbox."""
        return self._registry.find(ref).info

    async def list(self, which: SandboxFilter) -> Sequence[SandboxInfo]:
        """Return the sandboxes that match, oldest first."""
        return [entry.info for entry in self._registry if matches(entry.info, which)]

    async def wait(self, ref: str, *, timeout: float | None = None) -> SandboxInfo:
        """Return the last state once the sandbox is at rest, also when it removed itself."""
        return await self._lives.wait(self._registry.find_last(ref), timeout)

    async def stats(self, ref: str) -> SandboxStats:
        """Return what a sandbox uses; one that is paused or parked is not woken for that."""
        layers = self._lives.booter.layers
        return await sandbox_stats(self._parts, layers, self._registry.find(ref))

    async def processes(self, ref: str) -> Sequence[ProcessInfo]:
        """Return the processes in a running sandbox."""
        sandbox = await self._lives.awake(self._registry.find(ref))
        with sandbox.activity.use():
            return await processes(await sandbox.connection.get())

    def logs(self, ref: str, query: LogQuery) -> AsyncIterator[LogRecord]:
        """Yield a log's records. Raises sandbox_not_found, exec_not_found."""
        entry = self._registry.find(ref)
        sandbox = entry.sandbox
        if query.boot:
            return read_console(
                self._parts.places.console(entry.info.id),
                self._parts.settings.log_files,
                query,
                None if sandbox is None else sandbox.machine,
            )
        if EXEC_ID.fullmatch(query.exec_id) is None:
            raise error("exec_not_found", f"{query.exec_id!r} is no exec's id")
        return self._program_log(entry, query)

    async def _program_log(self, entry: Entry, query: LogQuery) -> AsyncIterator[LogRecord]:
        live = None
        if (sandbox := entry.sandbox) is not None:
            # After a restart of the daemon the logs are taken up one after the other; those of a
            # paused sandbox not before it goes on, and they are not worth waking it.
            with contextlib.suppress(HutchError):
                if not sandbox.connection.held:
                    await sandbox.execs.until_resumed()
            live = sandbox.execs.live_log(query.exec_id)
        async for record in read_log(self._parts.places.logs(entry.info.id), query, live):
            yield record


def matches(info: SandboxInfo, which: SandboxFilter) -> bool:
    """Tell whether a list asks for this sandbox; without `all` or states only those not at rest."""
    if which.states:
        if info.state not in which.states:
            return False
    elif not which.all and info.state in (SandboxState.STOPPED, SandboxState.FAILED):
        return False
    for label in which.labels:
        key, given, value = label.partition("=")
        if key not in info.labels or (given and info.labels[key] != value):
            return False
    if which.name is not None and which.name not in info.name:
        return False
    return which.image is None or which.image in (info.image, info.image_id)


class TakeCheckpoint(Protocol):
    """How a checkpoint is taken before a program (checkpoints.py)."""

    def __call__(self, ref: str, *, command: Sequence[str]) -> Awaitable[object]:
        """Take it of the sandbox `ref`, in which `command` is about to be started."""


class HostExecs:
    """Implements `Execs` of the API's operations for one host."""

    def __init__(
        self, places: Places, registry: Registry, lives: Lives, checkpoint: TakeCheckpoint
    ) -> None:
        self._places = places
        self._registry = registry
        self._lives = lives
        self._checkpoint = checkpoint

    @contextlib.asynccontextmanager
    async def _used(self, ref: str) -> AsyncIterator[SandboxExecs]:
        """Give the programs of a sandbox that is woken if it rests, and does not rest meanwhile."""
        sandbox = await self._lives.awake(self._registry.find(ref))
        with sandbox.activity.use():
            yield sandbox.execs

    async def start(self, ref: str, spec: ExecSpec) -> Session:
        """Start a program with its client attached."""
        if spec.checkpoint:
            await self._checkpoint(ref, command=spec.argv)
        async with self._used(ref) as execs:
            return await execs.start(spec)

    async def spawn(self, ref: str, spec: ExecSpec) -> ExecInfo:
        """Start a program by itself; its output goes to its log."""
        if spec.checkpoint:
            await self._checkpoint(ref, command=spec.argv)
        async with self._used(ref) as execs:
            return await execs.spawn(spec)

    async def attach(
        self, ref: str, exec_id: str, offsets: Mapping[int, int] | None = None
    ) -> Session:
        """Attach a client to a program, `main` or by its id."""
        entry = self._registry.find(ref)
        if exec_id == MAIN and (session := self._recorded(entry, offsets)) is not None:
            return session
        try:
            async with self._used(entry.info.id) as execs:
                return await execs.attach(exec_id, offsets)
        except HutchError as failure:
            if failure.code == "exec_not_found" and exec_id == MAIN and entry.info.idle:
                raise _idle(entry) from failure
            raise

    def _recorded(self, entry: Entry, offsets: Mapping[int, int] | None) -> Session | None:
        """Return a session for a client that comes back to a main process that has ended."""
        info = entry.info
        if entry.sandbox is not None or info.exit is None or info.exit.code is None or info.idle:
            return None
        outcome = ExecOutcome(info.exit.code, code=info.exit.code, ended_at=info.ended_at)
        main = ExecInfo(
            id=MAIN,
            sandbox_id=info.id,
            argv=info.command,
            user=info.user,
            tty=info.tty,
            detached=True,
            running=False,
            pid=0,
            started_at=info.started_at or info.created_at,
            outcome=outcome,
        )
        return RecordedSession(main, self._places.logs(info.id), offsets, outcome)

    async def get(self, ref: str, exec_id: str) -> ExecInfo:
        """Return one program."""
        async with self._used(ref) as execs:
            return await execs.get(exec_id)

    async def list(self, ref: str) -> Sequence[ExecInfo]:
        """Return the programs that a running sandbox knows."""
        async with self._used(ref) as execs:
            return await execs.list()

    async def signal(self, ref: str, exec_id: str, name: str, *, everything: bool = False) -> None:
        """Send a signal to a program, with `everything` to all that it started."""
        number = signal_number(name)
        async with self._used(ref) as execs:
            await execs.signal(exec_id, number, everything=everything)


def _idle(entry: Entry) -> HutchError:
    return error(
        "exec_not_found",
        f"sandbox {entry.info.name} is idle: it has no main process",
        hint=f"use `hutch exec {entry.info.name} COMMAND`",
    )


class HostFiles:
    """Implements `Files` of the API's operations for one host."""

    def __init__(self, registry: Registry, lives: Lives) -> None:
        self._registry = registry
        self._lives = lives

    async def of(self, ref: str) -> GuestFiles:
        """Return the file operations of a sandbox, which is woken if it rests."""
        sandbox = await self._lives.awake(self._registry.find(ref))
        with sandbox.activity.use():
            guest = await sandbox.connection.get()
        return UsedFiles(guest.files, sandbox.activity)

    async def tunnel(self, ref: str, port: int, host: str = "127.0.0.1") -> TunnelStream:
        """Connect to a TCP port of a running sandbox."""
        if not 1 <= port <= 0xFFFF:
            raise error("bad_request", f"{port} is no port")
        sandbox = await self._lives.awake(self._registry.find(ref))
        with sandbox.activity.use():
            guest = await sandbox.connection.get()
            return UsedTunnel(await guest.tunnel(port, host), sandbox.activity)
