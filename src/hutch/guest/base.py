"""The seam between the service and the agent in the VM.

What the service may ask of a guest, as values and Protocols; `session.py` implements them over the
wire and `fake.py` plays the other side in tests. All names follow spec/guest-protocol.md, where the
meanings stand. Errors are `hutch.errors` only: guest_timeout, guest_protocol, guest_failed,
guest_refused, path_not_found, command_not_found, command_not_executable, no_such_user,
exec_not_found, bad_path, sandbox_died (connection lost).
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Protocol

DEFAULT_TIMEOUT = 10.0
"""Seconds that a unary call may take unless it says otherwise."""

FREEZE_TIMEOUT = 2.0
"""Seconds for all workloads to stop: milliseconds on a quiet host, but a busy one may leave a VM
without a CPU for far longer, also in the middle of the start of a program, which is waited for."""


class Channel(IntEnum):
    """The channels of a stream."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2


class FileType(StrEnum):
    """The kinds of directory entry."""

    FILE = "file"
    DIR = "dir"
    SYMLINK = "symlink"
    CHAR = "char"
    BLOCK = "block"
    FIFO = "fifo"
    SOCKET = "socket"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What stat(2) says of a path; `name` and `target` are bytes decoded with surrogateescape."""

    name: str
    type: FileType
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    nlink: int = 1
    rdev: int = 0
    target: str | None = None


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """What the agent says of itself and its machine.

    `generation` is the number that programs see, which may be ahead of what the host counts.
    `frozen`: a host that came before has not thawed the workloads, nor given a clone its identity.
    """

    agent_version: str
    protocol: int
    kernel: str
    boot_id: str
    uptime_ns: int
    stage: str
    cpus: int
    memory_bytes: int
    generation: int = 0
    frozen: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this sandbox is; sent in one frame before any workload runs.

    The clock is added by the session. `generation` and `machine_id` together tell one life of the
    machine from another: sent again they change nothing, else what the machine has inherited ends.

    `network` takes its network up or down (None: it stays as it is): while it is down the guest's
    programs are told at once that nothing can be reached.
    """

    hostname: str
    machine_id: str
    entropy: bytes
    nonce: bytes
    generation: int
    hosts: Sequence[tuple[str, str]] = ()
    nameservers: Sequence[str] = ()
    network: bool | None = None


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """Rows and columns of a terminal."""

    rows: int
    cols: int


@dataclass(frozen=True, slots=True)
class GuestExec:
    """A program to start in the guest.

    `env` holds KEY=VALUE entries; sizes and times are as in the protocol.
    """

    id: str
    argv: Sequence[str]
    env: Sequence[str] = ()
    cwd: str = "/"
    user: str = ""
    tty: TerminalSize | None = None
    stdin: bool = False
    detached: bool = False
    main: bool = False
    init: bool = False
    overflow: str = "block"
    timeout: float = 0.0
    kill_after: float = 5.0
    stop_signal: int = 15


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How a program ended: `code` or `signal` is set, never both."""

    code: int | None
    signal: int | None
    timed_out: bool = False
    oom: bool = False
    started_ns: int = 0
    ended_ns: int = 0
    cpu_ns: int = 0

    @property
    def exit_code(self) -> int:
        """The shell's view: the code, 128+n for signal n, 124 for a timeout."""
        if self.timed_out:
            return 124
        return 128 + self.signal if self.signal is not None else (self.code or 0)


@dataclass(frozen=True, slots=True)
class ExecState:
    """One exec session as the guest lists it.

    `offsets` maps a channel to its byte offsets (first kept, end).
    """

    id: str
    pid: int
    argv: Sequence[str]
    user: str
    tty: bool
    detached: bool
    main: bool
    running: bool
    started_ns: int
    result: ExecResult | None
    offsets: Mapping[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes of a channel; `offset` is that of the first byte.

    Acknowledge them with `ExecStream.ack`.
    """

    channel: Channel
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class OutputGap:
    """`size` bytes of a channel were dropped by the guest at `offset`."""

    channel: Channel
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class OutputEnd:
    """The channel has ended at `offset`."""

    channel: Channel
    offset: int


ExecEvent = Output | OutputGap | OutputEnd | ExecResult


@dataclass(frozen=True, slots=True)
class GuestEvent:
    """Something the guest reports unasked: `kind` is one of section 6 of the protocol."""

    kind: str
    fields: Mapping[str, Any]


class ExecStream(Protocol):
    """An attachment to an exec session: iterate for output; the last item is its ExecResult."""

    id: str
    pid: int
    tty: bool

    def __aiter__(self) -> AsyncIterator[ExecEvent]: ...

    def ack(self, channel: Channel, size: int) -> None:
        """Say that `size` more bytes were consumed: the guest may forget them and send as many."""

    async def write(self, data: bytes) -> None:
        """Send bytes to the program's stdin; waits while the window is full."""

    async def close_stdin(self) -> None:
        """End the program's stdin (EOT on a terminal)."""

    async def signal(self, number: int) -> None:
        """Send a signal to the program's process group."""

    async def resize(self, size: TerminalSize) -> None:
        """Tell the terminal's new size."""

    async def set_overflow(self, mode: str) -> None:
        """Choose what a full ring does from now on: `block` or `drop`."""

    async def close(self) -> None:
        """Detach. The program goes on."""


class TunnelStream(Protocol):
    """A TCP connection to a port of the guest."""

    async def read(self) -> bytes:
        """Return the next bytes (acknowledging the previous), or b"" at the end."""

    async def write(self, data: bytes) -> None:
        """Send bytes; waits while the window is full."""

    async def write_eof(self) -> None:
        """Half-close."""

    async def finished(self) -> None:
        """Return when the peer has been given all, and both halves have ended."""

    async def close(self) -> None:
        """Reset and forget the connection."""


class GuestFiles(Protocol):
    """File operations; every path is absolute, in the guest's own view."""

    async def stat(self, path: str, *, follow: bool = True) -> FileEntry:
        """Return the entry at `path`; a symlink itself when not `follow`."""

    def list(self, path: str) -> AsyncIterator[FileEntry]:
        """Yield the entries of a directory, in no order."""

    def read(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield the bytes; errors (path_not_found …) are raised before the first chunk."""

    async def write(
        self,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        append: bool = False,
        parents: bool = False,
        exclusive: bool = False,
    ) -> int:
        """Write a whole file atomically; returns its bytes.

        When `chunks` raises, nothing changes.
        """

    async def mkdir(
        self,
        path: str,
        *,
        mode: int = 0o755,
        parents: bool = False,
        uid: int | None = None,
        gid: int | None = None,
    ) -> None:
        """Make a directory; with `parents` those above it, and one that exists is fine."""

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file or an empty directory; with `recursive` a whole tree."""

    async def rename(self, source: str, target: str, *, replace: bool = True) -> None:
        """Move within the guest; without `replace` an existing target is refused."""

    async def chmod(self, path: str, mode: int, *, recursive: bool = False) -> None:
        """Set the permission bits."""

    async def chown(
        self, path: str, uid: int, gid: int, *, recursive: bool = False, follow: bool = False
    ) -> None:
        """Set the owner and group, by number."""

    async def symlink(self, target: str, path: str) -> None:
        """Make `path` a symbolic link to `target`."""

    def read_tar(
        self, path: str, *, name: str | None = None, follow: bool = False
    ) -> AsyncIterator[bytes]:
        """Yield a tar stream whose top entry is `name` (default: the path's last part)."""

    async def write_tar(
        self,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        uid: int | None = None,
        gid: int | None = None,
        parents: bool = False,
    ) -> int:
        """Unpack a tar stream below the directory `path`; returns the number of entries."""


class Guest(Protocol):
    """A connection to one agent. `connect_guest` in session.py makes one."""

    info: AgentInfo
    files: GuestFiles

    @property
    def closed(self) -> bool:
        """Tell whether the connection has ended."""

    async def wait_closed(self) -> None:
        """Return when the connection has ended."""

    def events(self) -> AsyncIterator[GuestEvent]:
        """Yield events until the connection ends; the queue is bounded, the oldest are dropped."""

    async def ping(self) -> float:
        """Return the round trip in seconds."""

    async def mount_root(self, serial: str, fstype: str) -> None:
        """Mount the read-only root from the disk with that serial."""

    async def mount_overlay(
        self,
        serial: str,
        *,
        volumes: Sequence[str] = (),
        grow: bool = False,
        size: int | None = None,
    ) -> None:
        """Mount the writable disk over the root and switch to it.

        `volumes` are paths kept on the disk itself; `grow` fits its file system to its size, which
        must be `size` bytes by then: that of a clone's disk may just have changed.
        """

    async def identify(self, identity: Identity) -> bool:
        """Send the identity with the host's clock (half a round trip ahead).

        Returns whether the guest reseeded its generator. Inherited connections have ended by then;
        `info.generation` is the number that programs see.
        """

    async def set_network(self, up: bool) -> None:
        """Take its network up or down, as an identity does; nothing happens if it is so already.

        What is open ends when it goes down. A guest without a network stays without.
        """

    async def keep_clock(self, tolerance: float = 0.01) -> float:
        """Set the guest's clock if it is off by more than `tolerance` seconds.

        Returns how far it was ahead of the host's, in seconds.
        """

    async def freeze(self, timeout: float = FREEZE_TIMEOUT) -> None:
        """Stop all workloads at once. Raises guest_timeout after `timeout` seconds."""

    async def thaw(self) -> None:
        """Let frozen workloads go on; that none were frozen is no error."""

    async def prefetch(self, programs: Sequence[str]) -> int:
        """Read programs (paths or names) with their libraries into memory; returns the bytes."""

    async def sync(self) -> None:
        """Write all dirty pages of the guest to its disks."""

    async def stats(self) -> Mapping[str, Any]:
        """Return cpu, memory, disk and load, as the protocol names them."""

    async def processes(self) -> Sequence[Mapping[str, Any]]:
        """Return the guest's process table, as the protocol names its columns."""

    async def shutdown(
        self, *, signal: int = 15, grace: float = 10.0, reboot: bool = False
    ) -> None:
        """End the guest: `signal` to the main process, `grace` seconds, then power off."""

    async def start_exec(self, request: GuestExec) -> ExecStream:
        """Start and attach in one round trip."""

    async def spawn_exec(self, request: GuestExec) -> int:
        """Start without attaching; returns the pid."""

    async def attach_exec(
        self, exec_id: str, offsets: Mapping[int, int] | None = None
    ) -> ExecStream:
        """Attach to a running or ended session, from the given byte offsets per channel."""

    async def list_execs(self) -> Sequence[ExecState]:
        """Return the sessions that the guest still holds."""

    async def signal_exec(self, exec_id: str, number: int, *, everything: bool = False) -> None:
        """Signal a session's process group; with `everything` its whole cgroup."""

    async def release_exec(self, exec_id: str) -> None:
        """Forget an ended session and its kept output."""

    async def tunnel(self, port: int, host: str = "127.0.0.1") -> TunnelStream:
        """Connect to a TCP port inside the guest."""

    async def close(self) -> None:
        """Close the connection. Nothing in the guest ends by it."""
