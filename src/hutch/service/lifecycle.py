"""The life of a sandbox as a pure table: which state may follow which, and who may ask for it.

    created ──▶ starting ──▶ running ──▶ stopping ──▶ stopped
                  │  ▲ ▲        ▲│                      │
                  │  │ │        ││ pause, resume        │
                  │  │ │        │▼                      │
                  │  │ └────── paused ──▶ stopping      │
                  │  │     ▲                            │
                  │  │     └ parked: memory on disk     │
                  │  └──────────────────────────────────┘
                  ▼
                failed

A VM that ends by itself stops its sandbox from wherever it was.

Whoever changes a state asks `sources` for the states that it may come from and lets the store
compare: two tasks can then never both make the same step.
"""

from collections.abc import Mapping
from typing import Final

from hutch.errors import HutchError, error
from hutch.models import SandboxInfo, SandboxState

CREATED, STARTING, RUNNING, PAUSED, PARKED, STOPPING, STOPPED, FAILED = SandboxState

TRANSITIONS: Final[Mapping[SandboxState, frozenset[SandboxState]]] = {
    CREATED: frozenset({STARTING}),
    STARTING: frozenset({RUNNING, PAUSED, CREATED, PARKED, STOPPED, FAILED}),
    RUNNING: frozenset({PAUSED, PARKED, STOPPING, STOPPED}),
    PAUSED: frozenset({RUNNING, PARKED, STOPPING, STOPPED}),
    PARKED: frozenset({STARTING, STOPPED}),
    STOPPING: frozenset({STOPPED}),
    STOPPED: frozenset({STARTING}),
    FAILED: frozenset({STARTING}),
}

_HINTS: Final[Mapping[SandboxState, str]] = {
    CREATED: "start it with `hutch start {name}`",
    STARTING: "wait until it runs",
    RUNNING: "stop it with `hutch stop {name}` first",
    PAUSED: "it goes on with `hutch resume {name}`, or at its next use",
    PARKED: "it goes on with `hutch resume {name}`, or at its next use",
    STOPPING: "wait until it has stopped (`hutch wait {name}`)",
    STOPPED: "start it with `hutch start {name}`",
    FAILED: "see `hutch inspect {name}` for why, then start it again or remove it",
}


def sources(target: SandboxState) -> tuple[SandboxState, ...]:
    """Return the states from which `target` can be reached in one step."""
    return tuple(state for state, targets in TRANSITIONS.items() if target in targets)


def rest_state(info: SandboxInfo) -> SandboxState:
    """Return where an undone start leaves a sandbox: as it was before."""
    return CREATED if info.ended_at is None else STOPPED


def wrong_state(info: SandboxInfo, wanted: str) -> HutchError:
    """Return the error for an operation that the state does not allow."""
    return error(
        "wrong_state",
        f"sandbox {info.name} is {info.state}, not {wanted}",
        hint=_HINTS[info.state].format(name=info.name),
        details={"state": info.state.value},
    )
