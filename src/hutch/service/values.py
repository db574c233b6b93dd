"""Values that cross from the service to its callers and are no part of the public vocabulary.

What a session yields, what a log holds, and how lists and logs are asked for. No behaviour; the API
offers these same names.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hutch.guest.base import Output, OutputEnd, OutputGap
from hutch.models import ExecOutcome, SandboxState

SessionEvent = Output | OutputGap | OutputEnd | ExecOutcome
"""What an attachment to a program yields; an ExecOutcome is the last."""


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A piece of a log: channel 1 or 2, or 3 for the console.

    A gap has `missing` > 0 and no data.
    """

    channel: int
    time_ns: int
    data: bytes
    missing: int = 0


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which part of a log, and whether to go on with what is written from now on.

    The last `tail` lines (None: all), between two Unix times in ns, of the exec `exec_id`; with
    `boot` the console instead.
    """

    follow: bool = False
    tail: int | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    boot: bool = False
    exec_id: str = "main"


@dataclass(frozen=True, slots=True)
class SandboxFilter:
    """Which sandboxes to list; empty fields match all. `labels` are `k` or `k=v`."""

    all: bool = False
    states: Sequence[SandboxState] = ()
    labels: Sequence[str] = ()
    name: str | None = None
    image: str | None = None
