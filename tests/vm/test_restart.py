"""The daemon may be killed at any time: machines, programs, output and names go on.

These tests end the daemon, so each has a `Hutch` of its own.
"""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from hutch.process import ProcessId
from tests.harness.fixtures import NewHutch
from tests.harness.hutch import Hutch
from tests.vm.streams import consume
from tests.waiting import wait_until

UP = b"up\n"
GRACE = 2.0


def pid(hutch: Hutch, name: str) -> int:
    """Return the process of a running sandbox's QEMU."""
    [info] = hutch.json("inspect", name)
    assert info["state"] == "running", info
    return int(info["pid"])


def programs(hutch: Hutch, name: str) -> str:
    """Return the command lines of all processes in a sandbox."""
    return "\n".join(row["command"] for row in hutch.json("top", name))


def test_a_killed_daemon_is_followed_by_another(hutch: Hutch) -> None:
    script = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"
    hutch.run("run", "-d", "--name", "talks", "-l", "k=v", "busybox", "sh", "-c", script)
    hutch.run("create", "--name", "never-started", "busybox")
    exec_id = hutch.run("exec", "-d", "talks", "sh", "-c", "sleep 2; echo late; exit 6").text
    first, daemon = pid(hutch, "talks"), hutch.daemon
    hutch.kill_daemon()
    assert ProcessId.of(first) is not None
    # Whoever asks first starts the next one, which finds everything again.
    rows = {row["name"]: row for row in hutch.json("ps", "-a")}
    assert set(rows) == {"talks", "never-started"}
    assert rows["talks"]["labels"] == {"k": "v"}
    assert hutch.daemon != daemon
    assert pid(hutch, "talks") == first
    assert hutch.run("exec", "talks", "echo", "fine").text == "fine"
    lines = hutch.run("logs", "talks").stdout.splitlines()
    seen = len(lines)
    wait_until(
        lambda: len(hutch.run("logs", "talks").stdout.splitlines()) > seen + 10, what="it talks on"
    )
    lines = hutch.run("logs", "talks").stdout.splitlines()
    assert lines == [b"line %d" % number for number in range(1, len(lines) + 1)]
    wait_until(
        lambda: hutch.run("logs", "--exec", exec_id, "talks").stdout == b"late\n",
        what="the detached program has ended",
    )
    hutch.run("stop", "-t", "1s", "talks")


def test_output_is_whole_across_a_killed_daemon(hutch: Hutch) -> None:
    """An attached exec under load: each byte arrives once, and the exit code in the end."""
    hutch.run("run", "-d", "--idle", "--name", "box", "busybox")
    hutch.run("exec", "box", "sh", "-c", "seq 1 1000000 >/root/part")
    part = b"".join(b"%d\n" % number for number in range(1, 1_000_001))
    script = "echo go; for i in $(seq 10); do cat /root/part; done; echo over >&2; exit 5"
    process = hutch.start("exec", "box", "sh", "-c", script)
    assert process.stdout.readline() == b"go\n"
    head = process.stdout.read(len(part))
    hutch.kill_daemon()
    arrived = consume(process)
    assert head == part
    assert arrived.size == 9 * len(part)
    assert arrived.sha256 == hashlib.sha256(part * 9).hexdigest()
    assert arrived.stderr.endswith(b"over\n")
    assert process.returncode == 5


def test_stdin_and_the_terminal_go_on(hutch: Hutch) -> None:
    hutch.run("run", "-d", "--idle", "--name", "box", "busybox")
    process = hutch.start(
        "exec", "-i", "box", "sh", "-c", "while read x; do echo [$x]; done; exit 4"
    )
    process.stdin.write(b"one\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"[one]\n"
    hutch.kill_daemon()
    assert hutch.run("exec", "box", "true").code == 0
    process.stdin.write(b"two\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"[two]\n"
    process.stdin.close()
    assert process.wait(60) == 4


def test_the_foreground_run_goes_on(hutch: Hutch) -> None:
    script = "echo up; read x; echo got $x; exit 9"
    process = hutch.start("run", "-i", "--rm", "busybox", "sh", "-c", script)
    assert process.stdout.readline() == UP
    hutch.kill_daemon()
    hutch.run("ps")
    process.stdin.write(b"word\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"got word\n"
    assert process.wait(60) == 9
    wait_until(lambda: hutch.json("ps", "-a") == [], what="it is removed")


def test_a_program_whose_client_is_gone_too_has_its_grace(new_hutch: NewHutch) -> None:
    hutch = new_hutch(templates=True, exec_orphan_grace=f"{GRACE}s")
    hutch.run("run", "-d", "--idle", "--name", "box", "busybox")
    process = hutch.start("exec", "box", "sh", "-c", "echo up; exec sleep 4321")
    assert process.stdout.readline() == UP
    kept = hutch.run("exec", "-d", "box", "sleep", "1234").text
    hutch.kill_daemon()
    process.kill()
    process.wait()
    killed = time.monotonic()
    assert "sleep 4321" in programs(hutch, "box") or time.monotonic() - killed > GRACE
    wait_until(lambda: "sleep 4321" not in programs(hutch, "box"), what="it is cancelled")
    assert "sleep 1234" in programs(hutch, "box"), kept


def test_what_ends_while_no_daemon_runs_is_told_by_the_next(hutch: Hutch) -> None:
    script = "echo up; while [ ! -e /root/go ]; do sleep 0.05; done; echo last; exit 3"
    hutch.run("run", "-d", "--name", "ends", "busybox", "sh", "-c", script)
    hutch.run("run", "-d", "--idle", "--name", "killed", "busybox")
    wait_until(lambda: hutch.run("logs", "ends").stdout == UP, what="it is up")
    machine = pid(hutch, "killed")
    # The daemon is gone before the program sees the file.
    hutch.run("exec", "-d", "ends", "sh", "-c", "sleep 1; : >/root/go")
    hutch.kill_daemon()
    os.kill(machine, 9)
    deadline = time.monotonic() + 2.0
    wait_until(lambda: time.monotonic() > deadline, what="the program ends by itself")
    assert hutch.run("wait", "ends").text == "3"
    assert hutch.run("logs", "ends").stdout == b"up\nlast\n"
    [info] = hutch.json("inspect", "killed")
    assert (info["state"], info["exit"]["reason"]) == ("stopped", "engine")
    hutch.run("start", "killed")


def test_killed_again_and_again(hutch: Hutch) -> None:
    hutch.run("run", "-d", "--idle", "--name", "box", "busybox")
    first = pid(hutch, "box")
    script = "i=0; while [ ! -e /root/over ]; do i=$((i+1)); echo $i; sleep 0.05; done"
    process = hutch.start("exec", "box", "sh", "-c", script)
    assert process.stdout.readline() == b"1\n"
    for _ in range(3):
        hutch.kill_daemon()
        assert pid(hutch, "box") == first
    hutch.run("exec", "box", "touch", "/root/over")
    rest = process.stdout.read().splitlines()
    assert rest == [b"%d" % number for number in range(2, len(rest) + 2)]
    assert process.wait(60) == 0


def test_a_stopped_daemon_leaves_its_machines_to_the_next(hutch: Hutch) -> None:
    hutch.run("run", "-d", "--idle", "--name", "box", "busybox")
    first = pid(hutch, "box")
    hutch.run("exec", "-d", "box", "sleep", "1234")
    hutch.run("daemon", "stop")
    assert hutch.daemon is None
    assert hutch.run("daemon", "status", expect=1).code == 1
    assert ProcessId.of(first) is not None
    assert pid(hutch, "box") == first
    assert "sleep 1234" in programs(hutch, "box")
    before = hutch.daemon
    hutch.run("daemon", "restart")
    assert hutch.daemon != before
    assert pid(hutch, "box") == first


def test_a_daemon_that_stops_its_sandboxes(hutch: Hutch) -> None:
    hutch.run("run", "-d", "--idle", "--name", "box", "busybox")
    script = "trap 'echo asked; exit 7' TERM; echo up; while :; do sleep 0.1; done"
    hutch.run("run", "-d", "--name", "main", "busybox", "sh", "-c", script)
    wait_until(lambda: hutch.run("logs", "main").stdout == UP, what="it is up")
    machines = [pid(hutch, "box"), pid(hutch, "main")]
    hutch.run("daemon", "stop", "--sandboxes")
    assert hutch.daemon is None
    assert [who for who in machines if ProcessId.of(who) is not None] == []
    rows = {row["name"]: row for row in hutch.json("ps", "-a")}
    assert {name: row["state"] for name, row in rows.items()} == {
        "box": "stopped",
        "main": "stopped",
    }
    assert rows["main"]["exit"]["code"] == 7
    assert hutch.run("logs", "main").stdout == b"up\nasked\n"


def test_a_time_limit_counts_without_a_daemon(hutch: Hutch) -> None:
    hutch.run("run", "-d", "--idle", "--name", "brief", "--timeout", "4s", "busybox")
    hutch.kill_daemon()
    hutch.run("wait", "brief")
    [info] = hutch.json("inspect", "brief")
    assert info["exit"]["reason"] == "timeout"


@pytest.mark.parametrize("moment", ["created", "starting"])
def test_a_daemon_killed_in_the_middle_of_a_start(new_hutch: NewHutch, moment: str) -> None:
    hutch = new_hutch()  # without a template, which is made first
    process = hutch.start("run", "-d", "--idle", "--name", "half", "busybox")

    def reached() -> bool:
        rows = hutch.json("ps", "-a")
        # On a slow machine it may be further already by the time that we are told.
        return bool(rows) and (moment == "created" or rows[0]["state"] != "created")

    wait_until(reached, what=moment)
    hutch.kill_daemon()
    process.wait(60)
    rows = hutch.json("ps", "-a")
    assert [row["state"] for row in rows] in ([], ["created"], ["stopped"], ["failed"], ["running"])
    if rows:
        hutch.run("start", "half")
        assert hutch.run("exec", "half", "echo", "fine").text == "fine"


def test_an_idle_daemon_of_another_version_is_replaced(hutch: Hutch, tmp_path: Path) -> None:
    other = _other_version(hutch, tmp_path)
    assert hutch.run("ps", env=other).code == 0
    old = hutch.daemon
    status = json.loads(hutch.run("--json", "version", env=other).stdout)
    assert "0.0.1" in json.dumps(status)
    hutch.run("ps")
    assert hutch.daemon != old


def test_a_daemon_of_another_version_with_machines_runs_on(hutch: Hutch, tmp_path: Path) -> None:
    other = _other_version(hutch, tmp_path)
    hutch.run("run", "-d", "--idle", "--name", "box", "busybox", env=other)
    done = hutch.run("ps", expect=125)
    assert b"(daemon_version)" in done.stderr
    assert b"hutch daemon restart" in done.stderr
    hutch.run("daemon", "restart")
    assert hutch.run("exec", "box", "echo", "on").text == "on"


def _other_version(hutch: Hutch, tmp_path: Path) -> dict[str, str]:
    """Return an environment in which `hutch` and its daemon are of another version."""
    (tmp_path / "sitecustomize.py").write_text("import hutch\nhutch.__version__ = '0.0.1'\n")
    return {"PYTHONPATH": str(tmp_path)}
