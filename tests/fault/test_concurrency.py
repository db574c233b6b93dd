"""Many at once: commands, daemons, starts, names, removals. One wins, none hangs, none is lost."""

import subprocess
import sys
from collections.abc import Sequence

from tests.fault.crash import consistent
from tests.fault.guests import SCRIPTS, take_over
from tests.harness.fixtures import NewHutch
from tests.harness.hutch import Hutch
from tests.waiting import wait_until

Ended = tuple[int, bytes, bytes]


def _together(hutch: Hutch, *commands: Sequence[str]) -> list[Ended]:
    started = [hutch.start(*command, stdin=subprocess.DEVNULL) for command in commands]
    ended = []
    for process in started:
        out, err = process.communicate(timeout=120)
        ended.append((process.returncode, out, err))
    return ended


def _codes(ended: Sequence[Ended]) -> list[int]:
    return sorted(code for code, _, _ in ended)


def _daemons(hutch: Hutch) -> list[int]:
    return [who.pid for who, what in hutch.processes().items() if "hutch.api.daemon" in what]


def test_twenty_commands_and_no_daemon(hutch: Hutch) -> None:
    for killed in (False, True):
        if killed:
            hutch.kill_daemon()  # what it leaves must mislead nobody
        ended = _together(hutch, *[("--json", "ps")] * 20)
        assert all((code, out) == (0, b"[]\n") for code, out, _ in ended), ended
        daemon = hutch.daemon
        assert daemon is not None
        wait_until(lambda pid=daemon.pid: _daemons(hutch) == [pid], what="the others leave")


def test_daemons_at_once(hutch: Hutch) -> None:
    argv = [sys.executable, "-m", "hutch.api.daemon", "--detach"]
    racing = [subprocess.Popen(argv, env=hutch.env, stderr=subprocess.DEVNULL) for _ in range(4)]
    assert [process.wait(60) for process in racing] == [0] * 4
    wait_until(lambda: hutch.daemon, what="one is ready")
    wait_until(lambda: len(_daemons(hutch)) == 1, what="the others leave")
    # One more in the foreground finds that there is one, and says so by ending well.
    assert subprocess.run(argv[:-1], env=hutch.env, timeout=60, check=False).returncode == 0
    assert hutch.json("ps") == []


def test_a_name_for_one_only(hutch: Hutch) -> None:
    ended = _together(hutch, *[("--json", "create", "--name", "one", "busybox")] * 6)
    assert _codes(ended) == [0] + [125] * 5
    assert all(b'"name_taken"' in out for code, out, _ in ended if code)
    assert [row["name"] for row in hutch.json("ps", "-a")] == ["one"]


def test_starts_stops_and_removals_of_one(hutch: Hutch) -> None:
    hutch.run("create", "--name", "one", "busybox", "sleep", "600")
    assert _codes(_together(hutch, *[("start", "one")] * 3)) == [0, 0, 0]
    consistent(hutch)
    running = hutch.start("exec", "one", "sh", "-c", "echo up; sleep 600")
    assert running.stdout.readline() == b"up\n"
    assert _codes(_together(hutch, *[("stop", "-t", "1s", "one")] * 3)) == [0, 0, 0]
    assert running.wait(60) in (125, 137, 143), running.stderr.read()
    consistent(hutch)
    ended = _together(hutch, *[("--json", "rm", "one")] * 3)
    assert all(code == 0 or b'"sandbox_not_found"' in out for code, out, _ in ended), ended
    assert hutch.json("ps", "-a") == []
    consistent(hutch)


def test_removal_while_it_starts(new_hutch: NewHutch) -> None:
    hutch = new_hutch(templates=True, boot_timeout="10m")
    take_over(hutch, SCRIPTS["says nothing"])  # so that it is surely in the middle of it
    hutch.run("create", "--no-template", "--name", "one", "busybox")
    starting = hutch.start("--json", "start", "one")
    wait_until(lambda: [*hutch.runtime.glob("*/sb_*/agent.sock")], what="it boots")
    hutch.run("rm", "-f", "one")
    out, _ = starting.communicate(timeout=60)
    assert starting.returncode == 125
    assert b'"sandbox_died"' in out, out
    assert hutch.json("ps", "-a") == []
    consistent(hutch)


def test_everything_at_once(hutch: Hutch) -> None:
    # It ends by itself, for whoever waits for it and is not heard by the others.
    hutch.run("create", "--name", "one", "busybox", "sleep", "3")
    _together(
        hutch,
        ("start", "one"),
        ("stop", "-t", "0s", "one"),
        ("restart", "-t", "0s", "one"),
        ("kill", "one"),
        ("rename", "one", "two"),
        ("inspect", "one"),
        ("exec", "one", "true"),
        ("wait", "one"),
    )
    [row] = hutch.json("ps", "-a")
    consistent(hutch)  # and at rest, or running
    hutch.run("rm", "-f", row["name"])


def test_one_image_twice(new_hutch: NewHutch) -> None:
    hutch = new_hutch()
    hutch.run("image", "rm", "busybox")
    pulls = [("image", "pull", "busybox"), ("create", "--name", "one", "busybox")] * 2
    ended = _together(hutch, *pulls, ("image", "pull", "busybox"))
    assert _codes(ended)[:4] == [0] * 4, ended  # the second `one` is a name twice
    assert len(hutch.json("image", "ls")) == 1
    assert len([*hutch.home.glob("images/rootfs/*")]) == 1
    wait_until(lambda: not [*hutch.home.glob("images/oci/tmp/*")], what="nothing half-made is left")
