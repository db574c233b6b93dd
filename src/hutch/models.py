"""The vocabulary: values that cross the API, as plain frozen dataclasses.

FastAPI validates with them, the SDK builds them from JSON with `from_json`, the CLI prints them. No
behaviour beyond what a value knows of itself; no imports but the standard library and values like
these, so that the CLI's hot path stays light.
"""

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

from hutch.networking import NetworkMode, NetworkPolicy, PublishedPort

T = TypeVar("T")

NAME_PATTERN = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")


def timestamp(seconds: float | None = None) -> str:
    """Return a moment (default: now) as RFC 3339 in UTC with milliseconds."""
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_timestamp(text: str) -> float:
    """Return the Unix seconds of an RFC 3339 timestamp. Raises ValueError."""
    return datetime.fromisoformat(text).timestamp()


class SandboxState(StrEnum):
    """Where a sandbox is in its life."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"  # its VM is there, with its CPUs stopped
    PARKED = "parked"  # its memory is on disk, and there is no VM
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def has_machine(self) -> bool:
        """Tell whether a VM may exist in this state."""
        return self in (
            SandboxState.STARTING,
            SandboxState.RUNNING,
            SandboxState.PAUSED,
            SandboxState.STOPPING,
        )


class IdleAction(StrEnum):
    """What is done with a sandbox that nobody has used for its idle timeout."""

    PAUSE = "pause"
    PARK = "park"
    STOP = "stop"


class StopReason(StrEnum):
    """Why a sandbox is no longer running."""

    EXITED = "exited"  # its main process ended
    STOPPED = "stopped"  # asked to, gracefully
    KILLED = "killed"  # by `kill`, `rm -f`, or because it did not stop in time
    TIMEOUT = "timeout"  # its --timeout ran out
    IDLE = "idle"  # nobody used it for its --idle-timeout
    REBOOT = "reboot"  # the guest rebooted (which is a stop)
    POWEROFF = "poweroff"  # the guest powered itself off
    PANIC = "panic"  # the guest kernel panicked
    ENGINE = "engine"  # the engine process died
    OOM = "oom"  # the main process was killed for lack of memory


class PullPolicy(StrEnum):
    """When to ask the registry."""

    MISSING = "missing"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What `run` and `create` ask for. None means: from the image, else from the settings.

    `env` maps names to values; sizes are bytes, `timeout` is seconds from each start (0: none),
    `idle` means no main process, `auto_remove` removes the sandbox when it stops. When nobody has
    used it for `idle_timeout` seconds (0: never) `idle_action` is done: in use is one with a
    program beside its main process, a client, a file transfer or a tunnel. Without `template` it
    always boots cold. A `provisional` one, which `run` makes, is removed with the
    daemon's next start unless it has begun to run by then. `publish_all` publishes the ports that
    the image exposes, besides `ports`.
    """

    image: str
    name: str | None = None
    command: list[str] | None = None
    entrypoint: list[str] | None = None
    env: dict[str, str] = field(default_factory=dict)
    workdir: str | None = None
    user: str | None = None
    tty: bool = False
    stdin: bool = False
    idle: bool = False
    detached: bool = True
    cpus: int | None = None
    memory: int | None = None
    disk: int | None = None
    timeout: float = 0.0
    auto_remove: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    hostname: str | None = None
    stop_signal: str | None = None
    kernel: str | None = None
    pull: PullPolicy = PullPolicy.MISSING
    template: bool = True
    provisional: bool = False
    idle_timeout: float | None = None
    idle_action: IdleAction | None = None
    network: NetworkPolicy | None = None
    ports: list[PublishedPort] = field(default_factory=list)
    publish_all: bool = False


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a sandbox's last run ended. `code` is the main process's, or 128+n for signal n."""

    reason: StopReason
    code: int | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An error as a value: see hutch.errors."""

    code: str
    message: str
    hint: str | None = None


def _no_network() -> NetworkPolicy:
    """Return the policy of a sandbox on record, or in a snapshot, from before there were any."""
    return NetworkPolicy(NetworkMode.NONE)


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    """A sandbox as `inspect` shows it.

    `template` is the one that it first began as a clone of (None: it booted cold). `origin` is the
    id of the snapshot that it was restored from, or of the sandbox that it was forked from.
    `boot_seconds` is how long its last start took. `undone_to` is the checkpoint that it
    was last put back to, at `undone_at`, and `undone` are those that it is without since then.
    """

    id: str
    name: str
    state: SandboxState
    image: str
    image_id: str
    command: list[str]
    env: dict[str, str]
    workdir: str
    user: str
    tty: bool
    stdin: bool
    idle: bool
    cpus: int
    memory: int
    disk: int
    timeout: float
    auto_remove: bool
    labels: dict[str, str]
    hostname: str
    created_at: str
    started_at: str | None = None
    ended_at: str | None = None
    timeout_at: str | None = None
    exit: ExitStatus | None = None
    error: ErrorInfo | None = None
    pid: int | None = None
    engine: str | None = None
    accelerator: str | None = None
    machine: str | None = None
    kernel: str | None = None
    exposed_ports: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    boot_seconds: float | None = None
    stop_signal: str = "SIGTERM"
    template: str | None = None
    origin: str | None = None
    idle_timeout: float = 0.0
    idle_action: IdleAction = IdleAction.PAUSE
    undone_to: str | None = None
    undone_at: str | None = None
    undone: list[str] = field(default_factory=list)
    network: NetworkPolicy = field(default_factory=_no_network)
    ports: list[PublishedPort] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TtySize:
    """Rows and columns of a terminal."""

    rows: int
    cols: int


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """A program to run in a sandbox.

    None means the sandbox's own value; `timeout` is seconds, 0 for none. With `checkpoint` one is
    taken before, for `undo`.
    """

    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    workdir: str | None = None
    user: str | None = None
    tty: TtySize | None = None
    stdin: bool = False
    detached: bool = False
    timeout: float = 0.0
    checkpoint: bool = False


@dataclass(frozen=True, slots=True)
class ExecOutcome:
    """How a program ended.

    `exit_code` is what a shell would see: the code, 128+n for signal n, 124 for a timeout.
    """

    exit_code: int
    code: int | None = None
    signal: int | None = None
    timed_out: bool = False
    oom: bool = False
    started_at: str | None = None
    ended_at: str | None = None
    cpu_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ExecInfo:
    """An exec session; the main process has the id `main`."""

    id: str
    sandbox_id: str
    argv: list[str]
    user: str
    tty: bool
    detached: bool
    running: bool
    pid: int
    started_at: str
    outcome: ExecOutcome | None = None


@dataclass(frozen=True, slots=True)
class FileInfo:
    """An entry of a directory in the guest."""

    name: str
    path: str
    type: str
    mode: int
    uid: int
    gid: int
    size: int
    modified_at: str
    target: str | None = None


class TemplatePoint(StrEnum):
    """How far a machine had come when it was frozen, in this order."""

    BARE = "bare"  # its image's root is mounted: clones bring a disk of any size, new or used
    FRESH = "fresh"  # an empty disk of the default size, too: clones are ready at once


@dataclass(frozen=True, slots=True)
class TemplateInfo:
    """A machine that was frozen when it had booted an image, for sandboxes to begin as its clones.

    `id` begins with `key`'s first digits; `key` stands for all that went into it. `sandboxes` are
    those that began as its clones, `running` those of them that run. `disk` is the size of the disk
    that it was frozen with, which those of a bare one's clones need not have. `disk_bytes` is what
    it takes on disk, `memory_bytes` what of it is held in memory, shared by all clones.
    """

    id: str
    key: str
    point: TemplatePoint
    image: str
    image_id: str
    kernel: str
    accelerator: str
    machine: str
    cpus: int
    memory: int
    disk: int
    created_at: str
    used_at: str
    build_seconds: float
    sandboxes: int
    running: int
    disk_bytes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class CpuInfo:
    """A CPU as a guest sees it.

    `model` is the one that the engine was asked for, `vendor` who it says made it, `features` what
    it can do, by the engine's names and sorted.
    """

    model: str
    vendor: str
    features: list[str]


class SnapshotKind(StrEnum):
    """What a snapshot holds."""

    FULL = "full"  # memory, devices and disk of one moment
    DISK = "disk"  # the disk alone: what is restored from it boots


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A point in time of one sandbox, to be restored under another name any number of times.

    `sandbox_id` (empty: imported) and `sandbox_name` are of its source. `parent` is the one taken
    before it that it was made on top of; `checkpoint` tells one that `hutch checkpoint` or an exec
    took, with a `message` or the `command` that came after it. `engine_version`, `machine`,
    `accelerator`, `tsc_khz` and `cpu` (None: it has no memory) are what a host must have to restore
    it. `disk_bytes` is what it alone takes on disk, its memory (`memory_bytes` of that) included;
    `shared_bytes` is what others use, too: layers of disk, and what a checkpoint's memory has in
    common with that of the template or of other checkpoints.
    """

    id: str
    name: str
    kind: SnapshotKind
    sandbox_id: str
    sandbox_name: str
    image: str
    image_id: str
    created_at: str
    cpus: int
    memory: int
    disk: int
    engine: str
    engine_version: str
    machine: str
    accelerator: str
    tsc_khz: int | None
    labels: dict[str, str] = field(default_factory=dict)
    parent: str | None = None
    checkpoint: bool = False
    command: list[str] = field(default_factory=list)
    encrypted: bool = False
    disk_bytes: int = 0
    shared_bytes: int = 0
    memory_bytes: int = 0
    pause_seconds: float = 0.0
    message: str = ""
    cpu: CpuInfo | None = None


@dataclass(frozen=True, slots=True)
class ForkFailure:
    """A child of a fork that did not come up, and why."""

    name: str
    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class Forked:
    """What a fork has made of a sandbox; `pause_seconds` is how long its programs stood still."""

    source: str
    children: list[SandboxInfo]
    failed: list[ForkFailure]
    pause_seconds: float


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """Clones of one image and size that are started, warmed and stopped, waiting to be claimed.

    `size` is how many there shall be; `ready` how many there are, `filling` how many are being
    made. `claimed` counts since the daemon's start. `error` is why the last one was not made.
    """

    id: str
    image: str
    image_id: str
    cpus: int
    memory: int
    size: int
    ready: int
    filling: int
    claimed: int
    memory_bytes: int
    error: ErrorInfo | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """A step of long work (pull, build): `done` of `total` bytes (None: unknown) for item `id`."""

    stage: str
    id: str = ""
    done: int = 0
    total: int | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Removed:
    """What a removal or prune freed."""

    removed: list[str]
    bytes: int = 0


def to_json(value: Any) -> Any:
    """Return dataclasses, enums, lists and dicts as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def from_json(cls: type[T], body: Any) -> T:
    """Return what `to_json` was given, but for unknown keys. Raises ValueError, TypeError."""
    if not isinstance(body, Mapping):
        raise TypeError(f"{cls.__name__} is not made from {type(body).__name__}")
    hints = _hints(cls)  # type: ignore[arg-type]
    return cls(**{key: _convert(hints[key], item) for key, item in body.items() if key in hints})


@functools.cache
def _hints(cls: type) -> Mapping[str, Any]:
    """Return the types of a dataclass's fields: looking them up takes most of a conversion."""
    hints = typing.get_type_hints(cls)
    return {each.name: hints[each.name] for each in dataclasses.fields(cls)}


def _convert(hint: Any, item: Any) -> Any:
    if item is None:
        return None
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _convert(next(arg for arg in args if arg is not type(None)), item)
    if origin is list:
        return [_convert(args[0], part) for part in item]
    if origin is dict:
        return {key: _convert(args[1], part) for key, part in item.items()}
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type[Any], hint), item)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint(item)
    return item
