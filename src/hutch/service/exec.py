"""Programs in one running sandbox, and the clients attached to them.

Two kinds: an *attached* exec is relayed straight between its client and the guest, with credit end
to end; a *logged* one (the main process, detached execs) goes through a `Pump`. The guest holds the
sessions; this holds who follows them. It must not know how the sandbox was started.
"""

import asyncio
import contextlib
import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from hutch.errors import HutchError, error
from hutch.guest.base import (
    ExecResult,
    ExecState,
    Guest,
    GuestExec,
    TerminalSize,
)
from hutch.models import (
    ExecInfo,
    ExecOutcome,
    ExecSpec,
    SandboxInfo,
    TtySize,
    parse_timestamp,
    timestamp,
)
from hutch.service.activity import Activity
from hutch.service.connection import Connection
from hutch.service.logfile import remove_log
from hutch.service.logs import Log
from hutch.service.names import EXEC_PREFIX, new_id
from hutch.service.output import Follower, Pump, outcome_of
from hutch.service.session import AttachedSession, LoggedSession
from hutch.service.spec import check_exec, check_terminal, is_init, signal_number
from hutch.settings import Settings
from hutch.tasks import Scope, in_thread

log = logging.getLogger(__name__)

MAIN: Final = "main"
SIGKILL: Final = 9
LOGGED_KEPT: Final = 256
"""Ended detached execs whose logs are kept for each sandbox."""

EXEC_ID: Final = re.compile(f"main|{EXEC_PREFIX}[0-9a-f]{{12}}")
"""What an exec's id can be: it names files, and the guest may list anything."""

RESUMED_MAX: Final = 1024
RESUME_SECONDS: Final = 10.0

Emit = Callable[..., None]


def guest_env(env: Mapping[str, str]) -> list[str]:
    """Return an environment as the guest takes it."""
    return [f"{key}={value}" for key, value in env.items()]


class SandboxExecs:
    """The programs of one running sandbox.

    `last_words` turns the loss of the machine into an outcome where one is due.
    """

    def __init__(
        self,
        info: Callable[[], SandboxInfo],
        connection: Connection,
        scope: Scope,
        settings: Settings,
        log_directory: Path,
        emit: Emit,
        last_words: Callable[[HutchError], ExecOutcome | None],
        activity: Activity,
    ) -> None:
        """`info` returns the sandbox as it is now; `emit` adds an event about it.

        `activity` is told of each program but the main one, and of each client.
        """
        self._info = info
        self._connection = connection
        self._scope = scope
        self._settings = settings
        self._directory = log_directory
        self._emit = emit
        self._last_words = last_words
        self._activity = activity
        self._pumps: dict[str, Pump] = {}
        self._logged: dict[str, ExecInfo] = {}
        self._orphans: dict[str, asyncio.Task[None]] = {}
        self._resumed = asyncio.Event()
        self._claimed: set[str] = set()
        """Programs that are being started or have a client: `resume` leaves them alone."""

    # ---- starting

    async def start(self, spec: ExecSpec) -> AttachedSession:
        """Start a program with its client attached. Raises command_not_found and the like."""
        request = self._request(spec, detached=False)
        self._claim(request.id)
        try:
            guest = await self._connection.get()
            stream = await guest.start_exec(request)
        except BaseException as cause:
            self._unclaim(request.id)
            if isinstance(cause, asyncio.CancelledError):
                self._scope.start(f"undo {request.id}", self._undo(request.id))
            raise
        info = self._describe(request, stream.pid)
        self._emit("exec.started", exec_id=info.id, argv=list(spec.argv))
        return AttachedSession(self, info, Follower(self._connection, guest, stream))

    async def spawn(self, spec: ExecSpec) -> ExecInfo:
        """Start a program by itself; its output goes to its log."""
        request = self._request(spec, detached=True)
        self._claim(request.id)
        try:
            guest = await self._connection.get()
            record = await self._new_log(request.id, fresh=True)
        except BaseException:
            self._unclaim(request.id)
            raise
        try:
            stream = await guest.start_exec(request)
        except BaseException as cause:
            self._unclaim(request.id)
            if isinstance(cause, asyncio.CancelledError):
                self._scope.start(f"undo {request.id}", self._undo(request.id))
            await record.close()
            await in_thread(remove_log, self._directory, request.id)
            raise
        info = self._describe(request, stream.pid)
        follower = Follower(self._connection, guest, stream)
        self._follow(info, follower, record, detached=True)
        self._emit("exec.started", exec_id=info.id, argv=list(spec.argv))
        await self._forget_oldest()
        return info

    async def start_main(self, guest: Guest, *, size: TtySize | None, detached: bool) -> Pump:
        """Start the sandbox's main process; its pump is not run yet (see `run_main`)."""
        info = self._info()
        tty = check_terminal(size or TtySize(24, 80)) if info.tty else None
        request = GuestExec(
            id=MAIN,
            argv=info.command,
            env=guest_env(info.env),
            cwd=info.workdir,
            user=info.user,
            tty=None if tty is None else TerminalSize(tty.rows, tty.cols),
            stdin=info.stdin,
            detached=True,
            main=True,
            init=is_init(info.command),
            overflow="drop" if detached else "block",
            stop_signal=signal_number(info.stop_signal),
        )
        record = await self._new_log(MAIN, fresh=True)
        try:
            stream = await guest.start_exec(request)
        except BaseException:
            await record.close()
            raise
        pump = Pump(Follower(self._connection, guest, stream), record, detached=detached)
        self._pumps[MAIN] = pump
        self._resumed.set()
        self._logged[MAIN] = self._describe(request, stream.pid)
        return pump

    def begin(self) -> None:
        """Take note of a machine that was just booted, in which no program runs yet."""
        self._resumed.set()

    def run_main(self) -> None:
        """Let the main process's output flow."""
        if (pump := self._pumps.get(MAIN)) is not None:
            self._scope.start(MAIN, self._pump(self._logged[MAIN], pump))

    def _claim(self, exec_id: str) -> None:
        """Note that a program is being started or has a client: somebody uses the sandbox."""
        self._claimed.add(exec_id)
        self._activity.begin(exec_id)

    def _unclaim(self, exec_id: str) -> None:
        self._claimed.discard(exec_id)
        self._activity.end(exec_id)

    def _request(self, spec: ExecSpec, *, detached: bool) -> GuestExec:
        check_exec(spec)
        sandbox = self._info()
        tty = None if spec.tty is None else TerminalSize(spec.tty.rows, spec.tty.cols)
        return GuestExec(
            id=new_id(EXEC_PREFIX),
            argv=spec.argv,
            env=guest_env({**sandbox.env, **spec.env}),
            cwd=spec.workdir or sandbox.workdir,
            user=sandbox.user if spec.user is None else spec.user,
            tty=tty,
            stdin=spec.stdin,
            detached=detached,
            overflow="drop" if detached else "block",
            timeout=spec.timeout,
        )

    def _describe(self, request: GuestExec, pid: int) -> ExecInfo:
        return ExecInfo(
            id=request.id,
            sandbox_id=self._info().id,
            argv=list(request.argv),
            user=request.user,
            tty=request.tty is not None,
            detached=request.detached,
            running=True,
            pid=pid,
            started_at=timestamp(),
        )

    async def _undo(self, exec_id: str) -> None:
        """Kill a program whose start was cancelled, if it has come to life."""
        with contextlib.suppress(HutchError):
            await self.cancel(exec_id)

    # ---- logged programs

    async def _new_log(
        self, name: str, *, fresh: bool = False, begin: Mapping[int, int] | None = None
    ) -> Log:
        settings = self._settings
        record = Log(self._directory, name, size=settings.log_size, files=settings.log_files)
        await record.open(begin, fresh=fresh)
        return record

    def _follow(self, info: ExecInfo, follower: Follower, record: Log, *, detached: bool) -> Pump:
        pump = Pump(follower, record, detached=detached)
        self._pumps[info.id] = pump
        self._logged[info.id] = info
        self._claimed.discard(info.id)
        if info.id != MAIN:
            self._activity.begin(info.id)
        self._scope.start(info.id, self._pump(info, pump))
        return pump

    async def _pump(self, info: ExecInfo, pump: Pump) -> None:
        try:
            await pump.run()
        finally:
            self._activity.end(info.id)
            await pump.log.close()
        if pump.outcome is not None and info.id != MAIN:
            self.note_exit(info, pump.outcome)
            self.release(info.id)

    async def _forget_oldest(self) -> None:
        ended = [name for name, pump in self._pumps.items() if pump.ended.is_set()]
        for name in [name for name in ended if name != MAIN][:-LOGGED_KEPT]:
            del self._pumps[name], self._logged[name]
            await in_thread(remove_log, self._directory, name)

    async def keep(self, info: ExecInfo, follower: Follower) -> None:
        """Let an attached program go on by itself, its output from now on in a log."""
        record = await self._new_log(info.id, begin=follower.received)
        follower.ack_all()
        with contextlib.suppress(HutchError):
            await follower.set_overflow("drop")
        self._follow(info, follower, record, detached=True)

    @property
    def main(self) -> Pump | None:
        """The main process's pump, if there is a main process."""
        return self._pumps.get(MAIN)

    @property
    def done(self) -> bool:
        """Whether the main process and every other program have ended, and their output is here."""
        return self.main is not None and all(pump.ended.is_set() for pump in self._pumps.values())

    def live_log(self, name: str) -> Log | None:
        """Return the log that is being written under that name."""
        pump = self._pumps.get(name)
        return None if pump is None else pump.log

    async def close(self) -> None:
        """End all logs; followers read them to their ends."""
        for pump in self._pumps.values():
            await pump.log.close()

    # ---- clients

    async def attach(
        self, exec_id: str, offsets: Mapping[int, int] | None
    ) -> AttachedSession | LoggedSession:
        """Attach a client to a program. Raises exec_not_found."""
        with self._activity.use():
            return await self._attach(exec_id, offsets)

    async def _attach(
        self, exec_id: str, offsets: Mapping[int, int] | None
    ) -> AttachedSession | LoggedSession:
        await self.until_resumed()
        pump = self._pumps.get(exec_id)
        if pump is not None:
            tap = await pump.attach(offsets)
            self._activity.begin(tap)
            return LoggedSession(self, self._logged[exec_id], pump, tap)
        guest = await self._connection.get()
        state = await self._state(guest, exec_id)
        stream = await guest.attach_exec(exec_id, offsets)
        self._claim(exec_id)
        if (timer := self._orphans.pop(exec_id, None)) is not None:
            timer.cancel()
        starts = {channel: first for channel, (first, _) in state.offsets.items()}
        follower = Follower(self._connection, guest, stream, starts | dict(offsets or {}))
        return AttachedSession(self, self._shown(state), follower)

    async def until_resumed(self) -> None:
        """Wait until the programs that ran on without us are followed again."""
        await self._connection.get()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RESUME_SECONDS):
                await self._resumed.wait()

    def leave(self, exec_id: str, *, ended: bool) -> None:
        """Take note that the client of an attached program is gone."""
        self._claimed.discard(exec_id)
        if ended:
            self._activity.end(exec_id)
            self.release(exec_id)
        else:
            self.orphan(exec_id)

    def hang_up(self, client: object) -> None:
        """Take note that a client of a logged program is gone."""
        self._activity.end(client)

    def orphan(self, exec_id: str) -> None:
        """Cancel a program whose client is lost, unless it comes back in time."""
        self._activity.begin(exec_id)
        if exec_id not in self._orphans:
            self._orphans[exec_id] = self._scope.start(f"orphan {exec_id}", self._expire(exec_id))

    async def _expire(self, exec_id: str) -> None:
        await asyncio.sleep(self._settings.exec_orphan_grace)
        self._orphans.pop(exec_id, None)
        log.info("exec %s: its client has not come back", exec_id)
        try:
            with contextlib.suppress(HutchError):
                await self.cancel(exec_id)
            with contextlib.suppress(HutchError):
                await self._discard(exec_id)
        finally:
            self._activity.end(exec_id)

    async def _discard(self, exec_id: str) -> None:
        """Take the rest of a cancelled program's output away, and the guest's memory of it."""
        guest = await self._connection.get()
        stream = await guest.attach_exec(exec_id)
        async for event in stream:
            if not isinstance(event, ExecResult) and (data := getattr(event, "data", b"")):
                stream.ack(event.channel, len(data))
        await guest.release_exec(exec_id)

    async def cancel(self, exec_id: str) -> None:
        """Kill everything that a program started."""
        guest = await self._connection.get()
        await guest.signal_exec(exec_id, SIGKILL, everything=True)

    async def signal(self, exec_id: str, number: int, *, everything: bool) -> None:
        """Send a signal to a program. Raises exec_not_found."""
        guest = await self._connection.get()
        await guest.signal_exec(exec_id, number, everything=everything)

    def release(self, exec_id: str) -> None:
        """Let the guest forget an ended program, in the background."""
        self._scope.start(f"release {exec_id}", self._release(exec_id))

    async def _release(self, exec_id: str) -> None:
        with contextlib.suppress(HutchError):
            await (await self._connection.get()).release_exec(exec_id)

    def last_words(self, failure: HutchError) -> ExecOutcome | None:
        """Return how a program ended that was lost with its sandbox; None: `failure` stands."""
        return self._last_words(failure)

    def note_exit(self, info: ExecInfo, outcome: ExecOutcome) -> None:
        """Tell the world that a program has ended."""
        self._emit("exec.exited", exec_id=info.id, exit_code=outcome.exit_code, oom=outcome.oom)

    # ---- looking

    async def get(self, exec_id: str) -> ExecInfo:
        """Return one program. Raises exec_not_found."""
        if (pump := self._pumps.get(exec_id)) is not None and pump.ended.is_set():
            return self._ended(exec_id)
        return self._shown(await self._state(await self._connection.get(), exec_id))

    async def list(self) -> Sequence[ExecInfo]:
        """Return the programs that the guest still knows, and the logged ones that have ended."""
        guest = await self._connection.get()
        states = await guest.list_execs()
        known = {state.id for state in states}
        ended = [self._ended(name) for name in self._logged if name not in known]
        return [*ended, *(self._shown(state) for state in states)]

    async def _state(self, guest: Guest, exec_id: str) -> ExecState:
        for state in await guest.list_execs():
            if state.id == exec_id:
                return state
        raise error(
            "exec_not_found",
            f"sandbox {self._info().name} has no exec {exec_id}",
            hint="an ended exec is forgotten after a while",
        )

    def _ended(self, name: str) -> ExecInfo:
        return dataclasses.replace(
            self._logged[name], running=False, outcome=self._pumps[name].outcome
        )

    def _shown(self, state: ExecState) -> ExecInfo:
        return ExecInfo(
            id=state.id,
            sandbox_id=self._info().id,
            argv=list(state.argv),
            user=state.user,
            tty=state.tty,
            detached=state.detached,
            running=state.running,
            pid=state.pid,
            started_at=timestamp(state.started_ns / 1e9),
            outcome=None if state.result is None else outcome_of(state.result),
        )

    # ---- after a restart of the daemon

    async def resume(self, guest: Guest, *, detached: bool) -> None:
        """Follow the programs of a guest that ran on without us, from where their logs end.

        Programs whose clients were attached wait for them for the grace period; those of another
        sandbox's clients, which this one began from, go on by themselves. `detached` tells
        whether the main process may lose output while nobody is there.
        """
        states = [s for s in await guest.list_execs() if EXEC_ID.fullmatch(s.id)]
        for state in states[:RESUMED_MAX]:
            if state.id in self._pumps or state.id in self._claimed:
                continue
            inherited = self._is_inherited(state)
            if state.id == MAIN or state.detached or inherited:
                kept = {channel: first for channel, (first, _) in state.offsets.items()}
                record = await self._new_log(state.id, begin=kept if inherited else None)
                stream = await guest.attach_exec(state.id, record.ends)
                follower = Follower(self._connection, guest, stream, record.ends)
                if inherited:
                    await follower.set_overflow("drop")
                drops = detached or state.id != MAIN
                self._follow(self._shown(state), follower, record, detached=drops)
            else:
                self.orphan(state.id)
        self._resumed.set()

    def _is_inherited(self, state: ExecState) -> bool:
        """Tell whether a program came along from another sandbox, where its client is."""
        info = self._info()
        if info.origin is None or info.started_at is None or state.id == MAIN:
            return False
        return state.started_ns / 1e9 < parse_timestamp(info.started_at)
