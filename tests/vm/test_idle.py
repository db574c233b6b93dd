"""A sandbox that nobody uses is put to rest, whatever the daemon does, and one in use is not."""

import time

import pytest

from tests.harness.hutch import Hutch
from tests.vm.resting import COUNTER, count, look
from tests.waiting import wait_until

IDLE = 1.0


def rested(hutch: Hutch, name: str, state: str) -> bool:
    """Tell whether a sandbox has come to a state, without waking it."""
    return bool(look(hutch, name)["state"] == state)


@pytest.mark.parametrize(("action", "state"), [("pause", "paused"), ("park", "parked")])
def test_it_is_put_to_rest_and_goes_on(hutch: Hutch, action: str, state: str) -> None:
    limits = ["--idle-timeout", f"{IDLE}s", "--idle-action", action, "--timeout", "1h"]
    hutch.run("run", "-d", "--name", "box", *limits, "busybox", "sh", "-c", COUNTER)
    row = hutch.run("ps").text
    assert f"{action} if idle 1s" in row
    assert "stop in 59m" in row
    pid, before = count(hutch, "box")
    wait_until(lambda: rested(hutch, "box", state), what="it rests")
    info = look(hutch, "box")
    assert (info["idle_timeout"], info["idle_action"]) == (IDLE, action)
    assert info["timeout_at"] is not None
    again, after = count(hutch, "box")
    assert again == pid
    assert after >= before
    wait_until(lambda: rested(hutch, "box", state), what="it rests again")


def test_it_is_stopped(hutch: Hutch) -> None:
    limits = ["--idle-timeout", f"{IDLE}s", "--idle-action", "stop"]
    hutch.run("run", "-d", "--idle", "--name", "box", *limits, "busybox")
    wait_until(lambda: rested(hutch, "box", "stopped"), what="it is stopped")
    assert look(hutch, "box")["exit"]["reason"] == "idle"


def test_one_in_use_is_left_alone(hutch: Hutch) -> None:
    limits = ["--idle-timeout", f"{IDLE}s", "--idle-action", "pause"]
    hutch.run("run", "-d", "--idle", "--name", "box", *limits, "busybox")
    client = hutch.start("exec", "-i", "box", "cat")
    client.stdin.write(b"1\n")
    client.stdin.flush()
    assert client.stdout.readline() == b"1\n"
    end = time.monotonic() + 2.5 * IDLE
    while time.monotonic() < end:
        assert rested(hutch, "box", "running")
    client.stdin.write(b"2\n")
    client.stdin.close()
    assert client.stdout.readline() == b"2\n"
    assert client.wait(timeout=60) == 0
    wait_until(lambda: rested(hutch, "box", "paused"), what="it rests")


def test_limits_outlive_the_daemon(hutch: Hutch) -> None:
    idle = ["--idle-timeout", f"{IDLE}s", "--idle-action", "park"]
    hutch.run("run", "-d", "--idle", "--name", "short", "--timeout", "10s", "busybox")
    hutch.run("park", "short", expect=None)  # on a slow host its time may be up already
    hutch.run("run", "-d", "--idle", "--name", "box", *idle, "busybox")
    hutch.kill_daemon()
    hutch.run("ps")
    wait_until(lambda: rested(hutch, "box", "parked"), what="it rests")
    wait_until(lambda: rested(hutch, "short", "stopped"), what="its time is up")
    assert look(hutch, "short")["exit"]["reason"] == "timeout"
