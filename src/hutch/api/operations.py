"""What the API can ask for, as Protocols.

`hutch.service` implements them for one host, a cluster later for many. Every method raises only
`hutch.errors`. `ref` is a sandbox's id, name or unique id prefix. Long work takes a `report`
callback for progress and is undone when cancelled.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hutch.content import ImageInfo, KernelInfo
from hutch.guest.base import Channel, FileEntry, GuestFiles, TunnelStream
from hutch.images.base import Report
from hutch.models import (
    ExecInfo,
    ExecSpec,
    Forked,
    PoolInfo,
    Removed,
    SandboxInfo,
    SandboxSpec,
    SnapshotInfo,
    TemplateInfo,
    TtySize,
)
from hutch.reports import (
    Check,
    Checkpoint,
    DaemonInfo,
    Difference,
    Event,
    HostUsage,
    ProcessInfo,
    SandboxStats,
)
from hutch.service.sealing import Key
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


class Images(Protocol):
    """The image store, with what sandboxes use of it."""

    async def list(self) -> Sequence[ImageInfo]:
        """Return all images, newest first."""

    async def inspect(self, reference: str) -> ImageInfo:
        """Return an image by reference, id, or unique prefix of one."""

    async def pull(self, reference: str, report: Report) -> ImageInfo:
        """Fetch an image from its registry, also when it is already here."""

    async def load(
        self, path: Path, report: Report, *, tag: str | None = None
    ) -> Sequence[ImageInfo]:
        """Import a `docker save` or OCI archive, or an OCI layout directory."""

    async def build(
        self,
        context: Path,
        report: Report,
        *,
        tag: str,
        dockerfile: Path | None = None,
        args: dict[str, str] | None = None,
    ) -> ImageInfo:
        """Build a Dockerfile. Raises Missing (tool_missing), ImageError (build_failed)."""

    async def remove(self, reference: str, *, force: bool = False) -> Removed:
        """Drop a reference, and the content that nobody else needs."""

    async def prune(self, *, everything: bool = False) -> Removed:
        """Drop unreferenced content; with `everything` also unused images."""


class Kernels(Protocol):
    """The kernel store."""

    async def list(self) -> Sequence[KernelInfo]:
        """Return all kernels of the store."""

    async def pull(self, report: Report, *, package: str | None = None) -> KernelInfo:
        """Fetch the distribution's kernel, without installing it."""

    async def load(
        self, path: Path, *, modules: Path | None = None, name: str | None = None
    ) -> KernelInfo:
        """Import a vmlinuz or vmlinux with its modules directory."""

    async def use(self, name: str) -> KernelInfo:
        """Make a kernel the active one."""

    async def remove(self, name: str) -> Removed:
        """Delete a kernel that no sandbox uses."""


class Templates(Protocol):
    """Frozen machines that sandboxes begin as clones of."""

    async def list(self) -> Sequence[TemplateInfo]:
        """Return all templates, the most recently used first."""

    async def build(self, spec: SandboxSpec, report: Report) -> TemplateInfo:
        """Make the template that sandboxes like `spec` begin as clones of, if there is none yet.

        Raises InvalidInput (bad_size, bad_setting) where there can be none.
        """

    async def remove(self, ref: str) -> Removed:
        """Drop a template, by its id or the beginning of one. Its sandboxes go on."""

    async def prune(self) -> Removed:
        """Drop all templates that no sandbox is based on."""


class Pools(Protocol):
    """Clones that are started and warm before anybody asks for them.

    A sandbox that is made takes over one that fits, and its id. A pool outlives the daemon, and is
    filled again then.
    """

    async def list(self) -> Sequence[PoolInfo]:
        """Return all pools, in the order of their making."""

    async def warm(self, spec: SandboxSpec, size: int, report: Report, *, wait: bool) -> PoolInfo:
        """Have `size` clones for sandboxes like `spec` ready from now on.

        With `wait` return once there are so many; when that is cancelled, the pool stays. Raises
        InvalidInput (bad_size, bad_setting) where there can be none, and why one was not made.
        """

    async def drain(self, image: str | None = None) -> Removed:
        """End the pools of an image (None: all). Raises NotFound (pool_not_found)."""


class Snapshots(Protocol):
    """Points in time of sandboxes. A snapshot's `ref` is its id, name or unique id prefix."""

    async def create(
        self,
        ref: str,
        *,
        name: str | None = None,
        disk_only: bool = False,
        freeze: bool = True,
        key: Key | None = None,
    ) -> SnapshotInfo:
        """Take a snapshot of the sandbox `ref`, which goes on; of its disk alone also at rest.

        With a key it is encrypted: it is needed to restore it.
        Its programs stand still meanwhile. Without `freeze`, for a disk alone, only its VM does.
        Raises wrong_state, name_taken, guest_timeout, disk_full.
        """

    async def list(
        self, sandbox: str | None = None, *, checkpoints: bool = False
    ) -> Sequence[SnapshotInfo]:
        """Return all snapshots, oldest first, or those of one sandbox, which may be gone.

        With `checkpoints` those that are checkpoints, too.
        """

    async def get(self, ref: str) -> SnapshotInfo:
        """Return one snapshot."""

    async def remove(self, ref: str) -> Removed:
        """Remove a snapshot. What was restored from it goes on."""

    async def collect(self, keep: int, sandbox: str | None = None) -> Removed:
        """Remove all but the `keep` newest of each sandbox, or of one."""

    async def restore(
        self,
        ref: str,
        name: str | None = None,
        *,
        disk_only: bool = False,
        key: Key | None = None,
    ) -> SandboxInfo:
        """Make a sandbox that goes on from a snapshot, or boots from its disk; return it running.

        `key` is that of an encrypted one. Raises wrong_key, snapshot_damaged,
        snapshot_incompatible, name_taken, no_capacity, boot_failed.
        """

    def export(self, ref: str, key: Key | None = None) -> AsyncIterator[bytes]:
        """Yield a snapshot as one file, with all that another host needs to restore it.

        With a key it is encrypted. Raises snapshot_damaged, image_not_found, tool_missing,
        disk_full.
        """

    async def load(
        self, pieces: AsyncIterator[bytes], name: str | None = None, key: Key | None = None
    ) -> SnapshotInfo:
        """Take in the file of an exported snapshot, under its own name or another.

        Raises wrong_key, snapshot_damaged, snapshot_incompatible, name_taken, disk_full; nothing is
        left then.
        """


class Forks(Protocol):
    """Children of running sandboxes."""

    async def fork(self, ref: str, names: Sequence[str] = (), count: int | None = None) -> Forked:
        """Make running children of a sandbox, all from one moment of it; it goes on.

        `names` are those of the first, `count` is how many there shall be. Raises what became of
        the first when none came up; wrong_state, name_taken, guest_timeout.
        """


class Checkpoints(Protocol):
    """Moments that sandboxes can be put back to themselves."""

    async def create(
        self, ref: str, *, message: str = "", command: Sequence[str] = ()
    ) -> SnapshotInfo:
        """Take a checkpoint of a running or paused sandbox, which goes on.

        `command` is what will be done next. Raises wrong_state, guest_timeout, disk_full.
        """

    async def list(self, ref: str) -> Sequence[Checkpoint]:
        """Return the checkpoints of a sandbox, the newest first."""

    async def undo(self, ref: str, number: int = 1, *, to: str | None = None) -> SandboxInfo:
        """Put a sandbox back to its `number`th last checkpoint, or to one by id or name.

        It is as it was when that fails. Raises checkpoint_not_found, snapshot_damaged,
        snapshot_incompatible, no_capacity, boot_failed.
        """


class Diffs(Protocol):
    """Moments of sandboxes, compared."""

    async def diff(self, before: str, after: str | None = None) -> Difference:
        """Compare files and processes of two moments.

        A moment is a sandbox as it is now, `SANDBOX@N` for its Nth last checkpoint, or a snapshot.
        Without `after` it is the last checkpoint of the sandbox `before` with it as it is now.
        """


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
    "Checkpoints",
    "Diffs",
    "ExecSession",
    "Execs",
    "FileEntry",
    "Files",
    "Forks",
    "Images",
    "Kernels",
    "LogQuery",
    "LogRecord",
    "Operations",
    "Pools",
    "SandboxFilter",
    "Sandboxes",
    "SessionEvent",
    "Snapshots",
    "System",
    "Templates",
]
