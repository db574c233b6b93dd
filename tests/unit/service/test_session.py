"""Sessions against a keeper that only takes notes."""

from typing import Any, cast

import pytest

from hutch.errors import HutchError, error
from hutch.guest.base import ExecResult
from hutch.models import ExecInfo, ExecOutcome
from hutch.service.output import Follower
from hutch.service.session import AttachedSession

INFO = ExecInfo("ex_1", "sb_1", ["x"], "", False, False, True, 7, "now")


class Notes:
    """A keeper."""

    def __init__(self) -> None:
        self.notes: list[Any] = []
        self.words: ExecOutcome | None = None

    def last_words(self, failure: HutchError) -> ExecOutcome | None:
        return self.words

    def note_exit(self, info: ExecInfo, outcome: ExecOutcome) -> None:
        self.notes.append(("exit", outcome.exit_code))

    def leave(self, exec_id: str, *, ended: bool) -> None:
        self.notes.append(("leave", ended))

    async def keep(self, info: ExecInfo, follower: Follower) -> None:
        self.notes.append("keep")

    async def cancel(self, exec_id: str) -> None:
        self.notes.append("cancel")


class Events:
    """A follower of given events."""

    received = {1: 0, 2: 0}  # noqa: RUF012

    def __init__(self, *events: Any) -> None:
        self.events = list(events)
        self.closed = False

    async def next(self) -> Any:
        event = self.events.pop(0)
        if isinstance(event, HutchError):
            raise event
        return event

    async def close(self) -> None:
        self.closed = True


def session(notes: Notes, *events: Any) -> tuple[AttachedSession, Events]:
    follower = Events(*events)
    return AttachedSession(notes, INFO, cast(Follower, follower)), follower


async def test_the_outcome_comes_last() -> None:
    notes = Notes()
    attached, follower = session(notes, ExecResult(3, None))
    (outcome,) = [event async for event in attached]
    assert isinstance(outcome, ExecOutcome)
    assert outcome.exit_code == 3
    await attached.close(detach=True)
    await attached.close(detach=True)
    assert notes.notes == [("exit", 3), ("leave", True)]
    assert follower.closed


@pytest.mark.parametrize(("detach", "note"), [(True, "keep"), (False, ("leave", False))])
async def test_a_client_that_goes(detach: bool, note: Any) -> None:
    notes = Notes()
    attached, follower = session(notes)
    await attached.close(detach=detach)
    assert notes.notes == [note]
    assert follower.closed is not detach


async def test_a_client_whose_place_was_taken_leaves_the_program_alone() -> None:
    notes = Notes()
    attached, follower = session(notes, error("exec_taken", "another"))
    with pytest.raises(HutchError):
        _ = [event async for event in attached]
    await attached.close(detach=False)
    assert notes.notes == []
    assert follower.closed


async def test_a_sandbox_that_is_stopped_gives_an_outcome() -> None:
    notes = Notes()
    notes.words = ExecOutcome(137, signal=9)
    attached, _ = session(notes, error("sandbox_died", "stopped"))
    assert [event async for event in attached] == [notes.words]
    notes.words = None
    attached, _ = session(notes, error("sandbox_died", "crashed"))
    with pytest.raises(HutchError):
        _ = [event async for event in attached]
