"""What is told of use, health, history: of sandboxes, their processes, the host and the daemon.

Values that cross the API, as those of `hutch.models`, and as light: no imports but that and the
standard library.
"""

from dataclasses import dataclass, field
from typing import Any

from hutch.models import SandboxState, SnapshotInfo


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A process in the guest, as `hutch top` shows it."""

    pid: int
    ppid: int
    user: str
    state: str
    cpu_seconds: float
    memory: int
    threads: int
    started_at: str
    command: str
    exec_id: str | None = None


@dataclass(frozen=True, slots=True)
class SandboxStats:
    """Use of resources, by the guest's own account and by the host's.

    Bytes, seconds, percent of one CPU. What the guest would have to be asked is None while it is
    paused or parked.

    `host_memory` is what its VM takes of the host's memory, made of `host_memory_private` (what of
    the guest's memory it alone has), `host_memory_shared` (its part of what it reads of its
    template's, or of another frozen machine's, together with other clones; `host_memory_template`
    is all of that) and `host_memory_engine` (its part of all that is not guest memory). `host_disk`
    is what goes when it is removed, `host_disk_shared` what others use as well.
    """

    id: str
    name: str
    state: SandboxState
    cpu_percent: float
    cpus: int
    cpu_seconds: float | None = None
    load: list[float] | None = None
    memory_total: int | None = None
    memory_used: int | None = None
    memory_cached: int | None = None
    disk_total: int | None = None
    disk_used: int | None = None
    processes: int | None = None
    uptime_seconds: float | None = None
    oom_kills: int | None = None
    host_memory: int = 0
    host_memory_private: int = 0
    host_memory_shared: int = 0
    host_memory_template: int = 0
    host_memory_engine: int = 0
    host_cpu_seconds: float = 0.0
    host_disk: int = 0
    host_disk_shared: int = 0


@dataclass(frozen=True, slots=True)
class SandboxUsage:
    """What a sandbox takes of the host: bytes of memory (0 without a VM), and of disk, alone."""

    id: str
    name: str
    state: SandboxState
    memory: int
    disk: int


@dataclass(frozen=True, slots=True)
class HostUsage:
    """What the host has for sandboxes, and what they take; bytes.

    No start takes the last `memory_reserve` of `memory_available`, with `memory_pending` kept for
    those under way; `memory_promised` is what all guests with a VM may use together, at most
    `memory_promise_limit`. `template_memory` is held for clones to share. Nothing starts with less
    than `disk_reserve` of `disk_free`.
    """

    memory_total: int
    memory_available: int
    memory_reserve: int
    memory_pending: int
    memory_promised: int
    memory_promise_limit: int
    template_memory: int
    disk_free: int
    disk_reserve: int
    sandboxes: list[SandboxUsage] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Check:
    """A line of `hutch doctor`: status is ok, warn or fail; a fail comes with its fix."""

    name: str
    status: str
    message: str
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class DaemonInfo:
    """The daemon's own state."""

    version: str
    api: str
    pid: int
    started_at: str
    home: str
    sandboxes: int
    running: int
    memory: int


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: `kind` like `sandbox.started`, `exec.exited`, `image.pulled`."""

    seq: int
    time: str
    kind: str
    subject: str
    name: str = ""
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A snapshot that `undo` can go back to.

    `number` says how far back it is: 1 is the last one, also after the sandbox was put back to it.
    None: it is of what was undone, and goes when the next one is taken.
    """

    number: int | None
    snapshot: SnapshotInfo


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file that differs between two moments: `change` is added, removed or modified.

    Type, size and mode are those of then for one that was removed, else those of the later moment.
    """

    change: str
    path: str
    type: str
    size: int
    mode: int


@dataclass(frozen=True, slots=True)
class ProcessChange:
    """A process that runs in one of two moments alone: `change` is added or gone."""

    change: str
    pid: int
    user: str
    command: str


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two moments of sandboxes: files of their disks, and processes.

    `complete` is false when there are more files than are told.
    """

    before: str
    after: str
    files: list[FileChange]
    processes: list[ProcessChange]
    complete: bool

    @property
    def empty(self) -> bool:
        """Whether both are the same."""
        return not (self.files or self.processes)
