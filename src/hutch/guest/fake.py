"""A guest agent in memory, for tests: real frames over a unix socket, no machine behind it.

It plays the guest's side of spec/guest-protocol.md well enough for unit tests of everything above
the seam: boot stages, exec sessions with rings and re-attachment, a file system, statistics. State
outlives connections.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import hutch
from hutch.guest import frames
from hutch.guest.fake_exec import FakeSession, check_program, run_program
from hutch.guest.fake_files import FakeError, FakeFiles
from hutch.guest.fake_streams import STREAMS
from hutch.guest.fake_wire import FakeConnection
from hutch.guest.frames import FrameType
from hutch.tasks import Scope, in_thread

_BOOT_ID: Final = "00000000-0000-4000-8000-000000000000"
_SESSIONS: Final = 256
_FIRST_PID: Final = 100

Reply = dict[str, Any]


class FakeAgent:
    """An async context manager that listens on a unix socket; `ready` skips the two mounts.

    `on_shutdown` is called with the action once a shutdown has ended the programs: a fake engine
    stops its VM there. `silent` makes the agent swallow everything, as a hung guest does.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        ready: bool = False,
        cpus: int = 1,
        memory_bytes: int = 512 << 20,
        on_shutdown: Callable[[str], None] = lambda action: None,
    ) -> None:
        self.path = str(path)
        self.stage = "ready" if ready else "boot"
        self.cpus = cpus
        self.memory_bytes = memory_bytes
        self.on_shutdown = on_shutdown
        self.silent = False
        self.refuse_disk = False
        """Whether it cannot mount its writable disk."""
        self.deny_entropy = False
        """Whether it takes identities without renewing its random numbers."""
        self.files = FakeFiles()
        self.sessions: dict[str, FakeSession] = {}
        self.services: dict[int, bytes] = {}
        """Ports that answer a tunnel: what a peer says before it echoes."""
        self.identity: dict[str, Any] = {}
        self.mounted: dict[str, Any] = {}
        """What it was asked to mount as its writable disk, and how."""
        self.clock_error_ns = 0
        """How far its clock is ahead of the host's, until an identity sets it."""
        self.frozen = False
        self.prefetched: list[str] = []
        """Programs that were to be read ahead."""
        self.generation = 0
        """What programs see: at least what the host counts, and never twice the same."""
        self.connections_to_outside: int | None = 0
        """What it has inherited and ends with its next identity; None: its kernel cannot."""
        self.connection: FakeConnection | None = None
        self._next_pid = _FIRST_PID
        self._life: tuple[int, bytes] | None = None
        self._untold = False
        self._started = time.monotonic_ns()
        self._scope = Scope("fake-agent")
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(
            lambda: FakeConnection(self, STREAMS), self.path, start_serving=False
        )
        try:
            await server.start_serving()
        except BaseException:  # cancelled: nobody else knows of it
            server.close()
            raise
        self._server = server

    async def stop(self) -> None:
        """Stop listening, end every program and the connection."""
        if self._server is not None:
            self._server.close()
        self.disconnect()
        await self._scope.close()
        await in_thread(Path(self.path).unlink, missing_ok=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    def disconnect(self) -> None:
        """Break the connection off, as the end of the VM does."""
        if self.connection is not None:
            self.connection.abort()

    def emit(self, event: str, **values: Any) -> None:
        """Send an event to the connected host, if any."""
        if self.connection is not None:
            self.connection.message(FrameType.EVENT, 0, {"event": event, **values})

    def info(self) -> Reply:
        """Return the reply of `info`."""
        return {
            "agent_version": hutch.__version__,
            "protocol": frames.VERSION,
            "kernel": "6.1.0-fake",
            "boot_id": _BOOT_ID,
            "uptime_ns": time.monotonic_ns() - self._started,
            "stage": self.stage,
            "cpus": self.cpus,
            "memory_bytes": self.memory_bytes,
            "frozen": self.frozen,
        }

    def greeting(self) -> Reply:
        """Return the event `hello`."""
        return {
            "event": "hello",
            **self.info(),
            "generation": self.generation,
        }

    # ---- unary operations

    def unary(self, operation: str, request: dict[str, Any]) -> Reply:
        """Answer a unary operation. Raises FakeError, and KeyError for a missing field."""
        if operation in _FILES:
            return _FILES[operation](self.ready_files(), request)
        if operation.startswith("exec."):
            self.ready_files()
        if operation not in _UNARY:
            raise FakeError("unsupported", operation)
        return _UNARY[operation](self, request)

    def ready_files(self) -> FakeFiles:
        """Return the file system, or raise not_ready before there is a root."""
        if self.stage != "ready":
            raise FakeError("not_ready", "no root is mounted yet")
        return self.files

    def _nothing(self, request: dict[str, Any]) -> Reply:
        return {}

    def _info(self, request: dict[str, Any]) -> Reply:
        return self.info()

    def _mount_root(self, request: dict[str, Any]) -> Reply:
        if self.stage != "boot":
            raise FakeError("busy", "the root is mounted")
        self.stage = "root"
        return {}

    def _mount_overlay(self, request: dict[str, Any]) -> Reply:
        if self.stage != "root":
            raise FakeError("not_ready" if self.stage == "boot" else "busy", "not now")
        if self.refuse_disk:
            raise FakeError("io", "the disk cannot be mounted: told to")
        self.stage = "ready"
        self.mounted = request
        return {}

    def _identity(self, request: dict[str, Any]) -> Reply:
        self.identity |= request
        if "realtime_ns" in request:
            self.clock_error_ns = 0
        if "hostname" in request:
            self.files.nodes["/etc/hostname"].data = request["hostname"].encode() + b"\n"
        destroyed: int | None = 0
        if "generation" in request:
            self._renew(request["generation"], request.get("machine_id", b""))
            if self._has_lived:
                destroyed = self.connections_to_outside
                self.connections_to_outside = None if destroyed is None else 0
        return {
            "nonce": request["nonce"],
            "reseeded": "entropy" in request and not self.deny_entropy,
            "realtime_ns": time.time_ns() + self.clock_error_ns,
            "generation": self.generation,
            "sockets_destroyed": destroyed,
        }

    @property
    def _has_lived(self) -> bool:
        return self._next_pid > _FIRST_PID

    def _renew(self, count: int, machine_id: bytes) -> None:
        if self._life == (count, machine_id):
            return
        self._life = (count, machine_id)
        self.generation = max(count, self.generation + 1) if self._has_lived else count
        self._untold |= self._has_lived

    def _freeze(self, request: dict[str, Any]) -> Reply:
        self.frozen = True
        return {}

    def _thaw(self, request: dict[str, Any]) -> Reply:
        self.frozen = False
        if self._untold:
            self._untold = False
            self.emit("generation", generation=self.generation, hooks=0, failed=[])
        return {}

    def _prefetch(self, request: dict[str, Any]) -> Reply:
        if self.stage == "boot":
            raise FakeError("not_ready", "no root is mounted yet")
        self.prefetched += [program.decode() for program in request["programs"]]
        return {"files": len(request["programs"]), "bytes": 4096 * len(request["programs"])}

    def _stats(self, request: dict[str, Any]) -> Reply:
        used = 64 << 20
        size = 10 << 30
        return {
            "cpu_total_ns": 1_000_000_000,
            "cpu_count": self.cpus,
            "load": [0.0, 0.25, 0.5],
            "memory": {
                "total": self.memory_bytes,
                "available": self.memory_bytes - used,
                "used": used,
                "cached": 0,
            },
            "disk": {"total": size, "used": 4096, "available": size - 4096},
            "processes": 1 + len(self._running()),
            "uptime_ns": time.monotonic_ns() - self._started,
            "oom_kills": 0,
        }

    def _processes(self, request: dict[str, Any]) -> Reply:
        row = {
            "pid": 1,
            "ppid": 0,
            "uid": 0,
            "user": "root",
            "state": "S",
            "cpu_ns": 0,
            "rss": 1 << 20,
            "threads": 1,
            "started_ns": 0,
            "command": b"/init",
            "exec_id": None,
        }
        running = [
            row
            | {
                "pid": session.pid,
                "ppid": 1,
                "started_ns": session.started_ns,
                "command": b" ".join(session.request["argv"]),
                "exec_id": session.id,
            }
            for session in self._running()
        ]
        return {"processes": [row, *running]}

    def _shutdown(self, request: dict[str, Any]) -> Reply:
        self._scope.start("shutdown", self._end(request))
        return {}

    async def _end(self, request: dict[str, Any]) -> None:
        for session in self._running():
            session.signal(request.get("signal", 15) if session.request.get("main") else 15)
        waiting = [s.task for s in self.sessions.values() if s.task is not None]
        if waiting:
            await asyncio.wait(waiting, timeout=request["grace_ms"] / 1000)
        if self.connection is not None:
            self.connection.close()
        self.on_shutdown(request.get("action", "poweroff"))

    # ---- programs

    def _running(self) -> list[FakeSession]:
        return [session for session in self.sessions.values() if session.result is None]

    def session(self, exec_id: str) -> FakeSession:
        """Return a session, or raise not_found."""
        if exec_id not in self.sessions:
            raise FakeError("not_found", "no such exec")
        return self.sessions[exec_id]

    def _exec_list(self, request: dict[str, Any]) -> Reply:
        return {"execs": [session.listed() for session in self.sessions.values()]}

    def _exec_signal(self, request: dict[str, Any]) -> Reply:
        self.session(request["id"]).signal(request["signal"])
        return {}

    def _exec_release(self, request: dict[str, Any]) -> Reply:
        if self.session(request["id"]).result is None:
            raise FakeError("busy", "the program is still running")
        del self.sessions[request["id"]]
        return {}

    def start_program(self, request: dict[str, Any]) -> FakeSession:
        """Start a program. Raises FakeError as exec.start answers."""
        files = self.ready_files()
        if request["id"] in self.sessions:
            raise FakeError("exists", "the id is in use")
        check_program(request, files)
        self._next_pid += 1
        session = FakeSession(request, self._next_pid, self.files)
        self.sessions[session.id] = session
        session.task = self._scope.start(session.id, self._run(session))
        return session

    async def _run(self, session: FakeSession) -> None:
        limit = session.request.get("timeout_ms") or None
        program = asyncio.timeout(None if limit is None else limit / 1000)
        code: int | None = None
        try:
            async with program:
                code = await run_program(session)
        except TimeoutError:
            session.signals.append(15)
        except asyncio.CancelledError:
            # Cancelled by a signal: that is how this program ends. Otherwise the agent itself
            # stops.
            if not session.signals:
                raise
        signal = session.signals[-1] if code is None else None
        session.finish(code, signal, timed_out=program.expired())
        self.emit("exec.exit", id=session.id, result=session.result)
        if session.request.get("main"):
            self.emit("main.exit", result=session.result)
        ended = [s.id for s in self.sessions.values() if s.result is not None]
        for exec_id in ended[:-_SESSIONS]:
            del self.sessions[exec_id]


_UNARY: Final[dict[str, Callable[[FakeAgent, dict[str, Any]], Reply]]] = {
    "ping": FakeAgent._nothing,
    "info": FakeAgent._info,
    "mount.root": FakeAgent._mount_root,
    "mount.overlay": FakeAgent._mount_overlay,
    "identity": FakeAgent._identity,
    "freeze": FakeAgent._freeze,
    "thaw": FakeAgent._thaw,
    "prefetch": FakeAgent._prefetch,
    "sync": FakeAgent._nothing,
    "stats": FakeAgent._stats,
    "processes": FakeAgent._processes,
    "shutdown": FakeAgent._shutdown,
    "exec.list": FakeAgent._exec_list,
    "exec.signal": FakeAgent._exec_signal,
    "exec.release": FakeAgent._exec_release,
}
_FILES: Final[dict[str, Callable[[FakeFiles, dict[str, Any]], Reply]]] = {
    "fs.stat": FakeFiles.stat,
    "fs.mkdir": FakeFiles.mkdir,
    "fs.remove": FakeFiles.remove,
    "fs.rename": FakeFiles.rename,
    "fs.chmod": FakeFiles.chmod,
    "fs.chown": FakeFiles.chown,
    "fs.symlink": FakeFiles.symlink,
}
