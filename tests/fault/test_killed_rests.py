"""Kill -9 of the daemon at each act of parking and of going on: the sandbox runs, or is parked."""

from collections.abc import Sequence

import pytest

from tests.fault.crash import Crasher, chosen, consistent
from tests.harness.hutch import Hutch
from tests.vm.resting import COUNTER, count, look
from tests.waiting import wait_until

POINTS = 8


def _check(hutch: Hutch, before: tuple[int, int], act: str) -> tuple[int, int]:
    """Check that a sandbox is whole, and return how far its program is."""
    consistent(hutch)

    def is_whole() -> bool:
        info = look(hutch, "box")
        parked = list((hutch.home / "sandboxes" / info["id"]).glob("parked/*"))
        return info["state"] == ("parked" if parked else "running")

    wait_until(is_whole, what=f"it runs, or is parked, after {act}")
    pid, after = count(hutch, "box")
    assert pid == before[0], act
    assert after >= before[1], act
    assert hutch.run("exec", "box", "cat", "/root/file").text == "kept", act
    return pid, after


def _crashes(hutch: Hutch, command: Sequence[str], *, parked: bool) -> None:
    hutch.run("run", "-d", "--name", "box", "busybox", "sh", "-c", COUNTER)
    hutch.run("exec", "box", "sh", "-c", "echo kept >/root/file")
    crasher = Crasher(hutch)
    at = count(hutch, "box")
    if parked:
        hutch.run("park", "box")
    acts = crasher.rehearse(*command)
    assert any(" sql " in act for act in acts), acts
    at = _check(hutch, at, "rehearsal")
    for act in chosen(acts, POINTS):
        if parked:
            hutch.run("park", "box")
        crasher.crash_at(act, *command)
        at = _check(hutch, at, act)


@pytest.mark.timeout(900)
def test_while_it_is_parked(hutch: Hutch) -> None:
    _crashes(hutch, ["park", "box"], parked=False)


@pytest.mark.timeout(900)
def test_while_it_wakes(hutch: Hutch) -> None:
    _crashes(hutch, ["exec", "box", "true"], parked=True)


def test_qemu_is_killed_while_it_rests(hutch: Hutch) -> None:
    hutch.run("run", "-d", "--idle", "--name", "box", "busybox")
    hutch.run("exec", "box", "sh", "-c", "echo kept >/root/file; sync")
    hutch.run("pause", "box")
    for who, what in hutch.processes().items():
        if "qemu-system" in what:
            who.kill()
    ended = hutch.json("wait", "box")[0]
    assert ended["exit"]["reason"] == "engine"
    hutch.run("start", "box")
    assert hutch.run("exec", "box", "cat", "/root/file").text == "kept"
    consistent(hutch)
