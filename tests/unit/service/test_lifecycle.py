"""The table of a sandbox's life."""

import dataclasses

import pytest

from hutch.models import SandboxState
from hutch.service import lifecycle
from hutch.service.lifecycle import TRANSITIONS
from tests.unit.state.test_sqlite import info


def test_every_state_has_a_way_in_and_out() -> None:
    assert TRANSITIONS.keys() == set(SandboxState)
    for state in SandboxState:
        assert TRANSITIONS[state], f"{state} is a dead end"
        assert lifecycle.sources(state), f"{state} is never reached"


def test_nothing_runs_without_having_started() -> None:
    assert set(lifecycle.sources(SandboxState.RUNNING)) == {
        SandboxState.STARTING,
        SandboxState.PAUSED,
    }
    assert SandboxState.RUNNING not in lifecycle.sources(SandboxState.STARTING)
    assert SandboxState.STOPPING not in lifecycle.sources(SandboxState.STARTING)


def test_an_undone_start_leaves_it_as_before() -> None:
    fresh = info("sb_1", "one")
    assert lifecycle.rest_state(fresh) is SandboxState.CREATED
    ran = dataclasses.replace(fresh, ended_at="2026-01-01T00:00:00.000Z")
    assert lifecycle.rest_state(ran) is SandboxState.STOPPED


@pytest.mark.parametrize("state", SandboxState)
def test_a_wrong_state_comes_with_a_hint(state: SandboxState) -> None:
    failure = lifecycle.wrong_state(dataclasses.replace(info("sb_1", "one"), state=state), "x")
    assert failure.code == "wrong_state"
    assert failure.details == {"state": state.value}
    assert failure.hint
    assert "{" not in failure.hint
