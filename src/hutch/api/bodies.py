"""Bodies of requests that are no value of `hutch.models`, and how any body is checked.

A wrong body is `bad_request`, naming the field; nothing here knows what a request does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import PlainValidator, TypeAdapter, ValidationError, WithJsonSchema

from hutch.errors import HutchError, error
from hutch.models import PullPolicy, SandboxSpec, TtySize
from hutch.networking import PublishedPort

T = TypeVar("T")


def _guest_path(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("not a path")
    return value


GuestPath = Annotated[str, PlainValidator(_guest_path), WithJsonSchema({"type": "string"})]
"""A path in the guest: any bytes but NUL, those that are no UTF-8 as lone surrogates."""


@dataclass(frozen=True, slots=True)
class StartBody:
    """How to start: without `template` cold."""

    template: bool = True


@dataclass(frozen=True, slots=True)
class StopBody:
    """How to stop: None means the sandbox's own signal, and the setting's timeout (seconds)."""

    timeout: float | None = None
    signal: str | None = None


@dataclass(frozen=True, slots=True)
class KillBody:
    """KILL ends the VM; other signals go to the main process."""

    signal: str = "KILL"


@dataclass(frozen=True, slots=True)
class RenameBody:
    """The new name."""

    name: str


@dataclass(frozen=True, slots=True)
class PublishBody:
    """Ports to publish; a `host_port` of 0 is any that is free."""

    ports: list[PublishedPort]


@dataclass(frozen=True, slots=True)
class SignalBody:
    """A signal for the program's process group, or with `all` for everything it started."""

    signal: str
    all: bool = False


@dataclass(frozen=True, slots=True)
class MkdirBody:
    """A directory to make; `mode` is a number (0o755 is 493)."""

    path: GuestPath
    mode: int = 0o755
    parents: bool = False
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class RemoveBody:
    """A path to remove."""

    path: GuestPath
    recursive: bool = False


@dataclass(frozen=True, slots=True)
class MoveBody:
    """A path to move within the guest."""

    source: GuestPath
    target: GuestPath
    replace: bool = True


@dataclass(frozen=True, slots=True)
class ChmodBody:
    """Permission bits to set, as a number."""

    path: GuestPath
    mode: int
    recursive: bool = False


@dataclass(frozen=True, slots=True)
class ChownBody:
    """Owner and group to set, by number."""

    path: GuestPath
    uid: int
    gid: int
    recursive: bool = False
    follow: bool = False


@dataclass(frozen=True, slots=True)
class SymlinkBody:
    """A symbolic link to make at `path`."""

    target: GuestPath
    path: GuestPath


@dataclass(frozen=True, slots=True)
class PullBody:
    """The image to fetch."""

    reference: str


@dataclass(frozen=True, slots=True)
class LoadBody:
    """A path on the daemon's host: an archive, or an OCI layout directory."""

    path: str
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class BuildBody:
    """Paths on the daemon's host, and the reference of the result."""

    context: str
    tag: str
    dockerfile: str | None = None
    args: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PruneBody:
    """With `all` also the images that no sandbox uses."""

    all: bool = False


@dataclass(frozen=True, slots=True)
class KernelPullBody:
    """The package with the kernel; None: the distribution's cloud kernel."""

    package: str | None = None


@dataclass(frozen=True, slots=True)
class KernelUseBody:
    """The kernel to boot from now on."""

    name: str


@dataclass(frozen=True, slots=True)
class KernelLoadBody:
    """Paths on the daemon's host: a vmlinuz or vmlinux, and its modules."""

    path: str
    modules: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class TemplateBuildBody:
    """The image, and the size of the sandboxes that the template is for (None: the usual one)."""

    image: str
    cpus: int | None = None
    memory: int | None = None
    kernel: str | None = None
    pull: PullPolicy = PullPolicy.MISSING


@dataclass(frozen=True, slots=True)
class PoolWarmBody:
    """How many clones are to be ready, of what image, and for sandboxes of what size.

    `wait` is whether the answer comes only once they are.
    """

    image: str
    size: int = 1
    cpus: int | None = None
    memory: int | None = None
    pull: PullPolicy = PullPolicy.MISSING
    wait: bool = True


@dataclass(frozen=True, slots=True)
class SnapshotBody:
    """What to take: `freeze` off leaves the programs running, which a disk alone allows.

    With `encrypt` the request carries a key.
    """

    sandbox: str
    name: str | None = None
    disk_only: bool = False
    freeze: bool = True
    encrypt: bool = False


@dataclass(frozen=True, slots=True)
class SnapshotCollectBody:
    """How many of the newest snapshots of each sandbox (None: of all) are kept."""

    keep: int
    sandbox: str | None = None


@dataclass(frozen=True, slots=True)
class RestoreBody:
    """The new sandbox's name (None: a friendly one), and whether it boots from the disk alone."""

    name: str | None = None
    disk_only: bool = False


@dataclass(frozen=True, slots=True)
class ForkBody:
    """The names of the first children, and how many there shall be (None: as many, or one)."""

    names: list[str] = field(default_factory=list)
    count: int | None = None


@dataclass(frozen=True, slots=True)
class CheckpointBody:
    """Why a checkpoint is taken: a message, or the command that comes after it."""

    message: str = ""
    command: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class UndoBody:
    """How many checkpoints to go back, or `to` which one, by id or name."""

    number: int = 1
    to: str | None = None


@dataclass(frozen=True, slots=True)
class DaemonStopBody:
    """Whether the sandboxes are stopped too, or go on without a daemon."""

    stop_sandboxes: bool = False


@dataclass(frozen=True, slots=True)
class RunStart:
    """The first message of `/v1/run`."""

    spec: SandboxSpec
    attach: bool = True
    size: TtySize | None = None


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """An error of the table in hutch.errors."""

    code: str
    message: str
    hint: str | None
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """The body of every answer from 400 on."""

    error: ErrorDetail


_adapters: dict[Any, TypeAdapter[Any]] = {}


def validated(cls: type[T], body: Any, where: str = "") -> T:
    """Return `body` (JSON values) as a `cls`.

    Raises InvalidInput (bad_request), naming the field below `where`.
    """
    if (adapter := _adapters.get(cls)) is None:
        adapter = _adapters[cls] = TypeAdapter(cls)
    try:
        value: T = adapter.validate_python(body)
    except ValidationError as cause:
        raise invalid(cause.errors(include_url=False), where) from None
    return value


def invalid(problems: Sequence[Any], where: str = "") -> HutchError:
    """Return the error for what pydantic found wrong, the first of it in words."""
    fields = [
        {
            "field": ".".join([where] * bool(where) + [str(part) for part in problem["loc"]]),
            "problem": problem["msg"],
        }
        for problem in problems
    ]
    first = fields[0]
    return error(
        "bad_request",
        f"{first['field'] or 'the request'}: {first['problem']}",
        details={"fields": fields},
    )
