"""What the API can ask for, as Protocols.

`hutch.service` implements them for one host, a cluster later for many. Every method raises only
`hutch.errors`. `ref` is a sandbox's id, name or unique id prefix. Long work takes a `report`
callback for progress and is undone when cancelled.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from hutch.api.moments import Checkpoints, Diffs, Forks, Snapshots
from hutch.api.origins import Images, Kernels, Pools, Templates
from hutch.guest.base import Channel, FileEntry, GuestFiles, TunnelStream
from hutch.images.base import Report
from hutch.models import (
    ExecInfo,
    ExecSpec,
    Removed,
    SandboxInfo,
    SandboxSpec,
    TtySize,
)
from hutch.networking import (
    Connection,
    NetworkChange,
    NetworkChanged,
    NetworkInfo,
    NetworkRecord,
    PublishedPort,
)
from hutch.reports import (
    Check,
    DaemonInfo,
    Event,
    HostUsage,
    ProcessInfo,
    SandboxStats,
)
from hutch.service.values import LogQuery, LogRecord, SandboxFilter, SessionEvent


class ExecSession(Protocol):
    """A client's attachment to a program: iterate for output; the last item is the outcome."""

    info: ExecInfo
    offsets: Mapping[int, int]
    """The offset at which each output channel begins for this client."""

    def __aiter__(self) -> AsyncIterator[SessionEvent]: ...

    def ack(self, channel: Channel, size: int) -> None:
        """Say that the client has consumed `size` more bytes of a channel."""

    async def write(self, data: bytes) -> None:
        """Send stdin; returns when the guest has room for more."""

    async def close_stdin(self) -> None:
        """End stdin (EOT on a terminal)."""

    async def signal(self, name: str) -> None:
        """Send a signal (`INT`, `SIGINT` or `2`) to the process group."""

    async def resize(self, size: TtySize) -> None:
        """Tell the terminal's new size."""

    async def cancel(self) -> None:
        """Kill everything that the exec started."""

    async def close(self, *, detach: bool) -> None:
        """End the attachment.

        Without `detach` the client is lost: a non-detached exec gets its grace, then is cancelled.
        """


class Sandboxes(Protocol):
    """Sandboxes and their lives."""

    async def create(self, spec: SandboxSpec, report: Report) -> SandboxInfo:
        """Make a sandbox, pulling its image if need be; it is not started."""

    async def start(
        self, ref: str, *, size: TtySize | None = None, template: bool = True
    ) -> SandboxInfo:
        """Start its VM and its main process; return it running. Cold without `template`."""

    async def start_attached(
        self, ref: str, *, size: TtySize | None = None
    ) -> tuple[SandboxInfo, ExecSession]:
        """Start, attached to the main process from its first byte.

        Raises InvalidInput (bad_command) for an idle sandbox.
        """

    async def stop(
        self, ref: str, *, timeout: float | None = None, signal: str | None = None
    ) -> SandboxInfo:
        """Signal the main process, and end the VM after it or after `timeout` seconds."""

    async def restart(
        self, ref: str, *, timeout: float | None = None, signal: str | None = None
    ) -> SandboxInfo:
        """Stop it, if it runs, and start it."""

    async def kill(self, ref: str, *, signal: str = "KILL") -> SandboxInfo:
        """End the VM at once (KILL), or signal the main process."""

    async def remove(self, ref: str, *, force: bool = False) -> Removed:
        """Delete a sandbox; with `force` also one that runs."""

    async def pause(self, ref: str) -> SandboxInfo:
        """Stop its CPUs; its memory stays. Raises Conflict (wrong_state)."""

    async def resume(self, ref: str) -> SandboxInfo:
        """Let a paused or parked one go on.

        Raises Conflict (wrong_state), EngineError (parked_unusable).
        """

    async def park(self, ref: str) -> SandboxInfo:
        """Write its memory to disk and end its VM, until it is used again or resumed.

        Raises Conflict (wrong_state), NoCapacity (disk_full).
        """

    async def rename(self, ref: str, name: str) -> SandboxInfo:
        """Give it another name."""

    async def get(self, ref: str) -> SandboxInfo:
        """Return a sandbox."""

    async def list(self, which: SandboxFilter) -> Sequence[SandboxInfo]:
        """Return the sandboxes that match, newest first."""

    async def wait(self, ref: str, *, timeout: float | None = None) -> SandboxInfo:
        """Return once it is created, stopped or failed; while it is paused or parked, it is not.

        When it removed itself, its last state. Raises GuestError (guest_timeout).
        """

    async def stats(self, ref: str) -> SandboxStats:
        """Return its use of resources, without waking it. Raises Conflict (wrong_state)."""

    async def processes(self, ref: str) -> Sequence[ProcessInfo]:
        """Return its process table. Raises Conflict (wrong_state)."""

    def logs(self, ref: str, query: LogQuery) -> AsyncIterator[LogRecord]:
        """Yield what was logged, oldest first."""


class Execs(Protocol):
    """Programs in sandboxes."""

    async def start(self, ref: str, spec: ExecSpec) -> ExecSession:
        """Start a program, attached from its first byte."""

    async def spawn(self, ref: str, spec: ExecSpec) -> ExecInfo:
        """Start detached; its output goes to its log."""

    async def attach(
        self, ref: str, exec_id: str, offsets: Mapping[int, int] | None = None
    ) -> ExecSession:
        """Attach to a program from byte offsets per channel (None: what is still kept)."""

    async def get(self, ref: str, exec_id: str) -> ExecInfo:
        """Return an exec session."""

    async def list(self, ref: str) -> Sequence[ExecInfo]:
        """Return the exec sessions still known, the main process first."""

    async def signal(self, ref: str, exec_id: str, name: str, *, everything: bool = False) -> None:
        """Signal the process group, or with `everything` all that the exec started."""


class Files(Protocol):
    """Files in sandboxes, and streams to their ports."""

    async def of(self, ref: str) -> GuestFiles:
        """Return the file operations of a running sandbox. Raises Conflict (wrong_state)."""

    async def tunnel(self, ref: str, port: int, host: str = "127.0.0.1") -> TunnelStream:
        """Connect to a TCP port inside the guest."""


class Ports(Protocol):
    """Ports of the host that lead into sandboxes.

    A sandbox has them from its start to its stop, also while it is paused or parked: a connection
    wakes it. They are the same after each start.
    """

    async def list(self, ref: str) -> Sequence[PublishedPort]:
        """Return what a sandbox publishes."""

    async def publish(self, ref: str, ports: Sequence[PublishedPort]) -> Sequence[PublishedPort]:
        """Publish more ports, at once if it runs, and return them with their numbers.

        Raises InvalidInput (bad_port), Conflict (port_taken); then none of them is published.
        """

    async def unpublish(
        self, ref: str, host_port: int, address: str | None = None
    ) -> Sequence[PublishedPort]:
        """Give a port of the host up, at one address or all, and break its connections off.

        Return what was published there. Raises NotFound (port_not_found).
        """


class Networks(Protocol):
    """What sandboxes may reach, and what became of what they tried."""

    async def show(self, ref: str) -> NetworkInfo:
        """Return a sandbox's policy, and what its network has done so far."""

    async def update(self, ref: str, change: NetworkChange) -> NetworkChanged:
        """Change the policy of a sandbox, whatever its state; for what is open, too.

        In force when it returns. Raises InvalidInput (bad_policy), Missing (network_missing).
        """

    async def connections(self, ref: str) -> Sequence[Connection]:
        """Return what a sandbox has open, oldest first."""

    def log(
        self, ref: str, *, since: int | None = None, tail: int | None = None, follow: bool = False
    ) -> AsyncIterator[NetworkRecord]:
        """Yield what was decided for a sandbox, oldest first, from the number `since` on."""


class System(Protocol):
    """The daemon itself."""

    async def info(self) -> DaemonInfo:
        """Return the daemon's own state."""

    async def usage(self) -> HostUsage:
        """Return what the host has and what each sandbox takes of it."""

    async def doctor(self) -> Sequence[Check]:
        """Check everything that Hutch needs of the host."""

    def settings(self) -> Mapping[str, Mapping[str, Any]]:
        """Return `{key: {value, origin}}` as JSON values."""

    def events(self, *, since: int | None = None, follow: bool = False) -> AsyncIterator[Event]:
        """Yield the events still kept (from `since` on), then, with `follow`, new ones for ever."""

    async def request_stop(self, *, stop_sandboxes: bool) -> None:
        """Ask the daemon to end: with the VMs stopped, or left for the next daemon to adopt.

        The server ends right after this returns.
        """


class Operations(Protocol):
    """Everything the API offers."""

    @property
    def sandboxes(self) -> Sandboxes:
        """Sandboxes and their lives."""

    @property
    def execs(self) -> Execs:
        """Programs in sandboxes."""

    @property
    def files(self) -> Files:
        """Files in sandboxes, and streams to their ports."""

    @property
    def ports(self) -> Ports:
        """Ports of the host that lead into sandboxes."""

    @property
    def networks(self) -> Networks:
        """What sandboxes may reach."""

    @property
    def images(self) -> Images:
        """The image store."""

    @property
    def kernels(self) -> Kernels:
        """The kernel store."""

    @property
    def templates(self) -> Templates:
        """Frozen machines that sandboxes begin as clones of."""

    @property
    def snapshots(self) -> Snapshots:
        """Points in time of sandboxes."""

    @property
    def forks(self) -> Forks:
        """Children of running sandboxes."""

    @property
    def checkpoints(self) -> Checkpoints:
        """Moments that sandboxes can be put back to themselves."""

    @property
    def diffs(self) -> Diffs:
        """Moments of sandboxes, compared."""

    @property
    def pools(self) -> Pools:
        """Clones that are started and warm before anybody asks for them."""

    @property
    def system(self) -> System:
        """The daemon itself."""


__all__ = [
    "Channel",
    "ExecSession",
    "Execs",
    "FileEntry",
    "Files",
    "LogQuery",
    "LogRecord",
    "Networks",
    "Operations",
    "Ports",
    "SandboxFilter",
    "Sandboxes",
    "SessionEvent",
    "System",
]
