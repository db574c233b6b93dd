"""Lives of sandboxes in real machines: begun, ended in every way, begun again, and told truly."""

import concurrent.futures
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from hutch.process import ProcessId
from tests.harness.hutch import Hutch
from tests.waiting import wait_until

WAITS = "trap 'exit 3' TERM; trap 'echo usr1' USR1; echo up; while :; do sleep 0.1; done"
STUBBORN = "trap '' TERM; echo up; while :; do sleep 0.1; done"


@pytest.fixture
def name(shared: Hutch, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for the test's sandbox, which is removed afterwards."""
    chosen = request.node.name.partition("[")[0].removeprefix("test_").replace("_", "-")[:40]
    yield chosen
    shared.run("rm", "-f", chosen)


def look(hutch: Hutch, name: str) -> dict[str, Any]:
    """Return all about a sandbox."""
    [info] = hutch.json("inspect", name)
    assert isinstance(info, dict)
    return info


def kinds(hutch: Hutch, name: str) -> list[str]:
    """Return what happened to a sandbox, in order."""
    events = [event for event in _events(hutch) if event["name"] == name]
    return [event["kind"].removeprefix("sandbox.") for event in events]


def _events(hutch: Hutch) -> list[dict[str, Any]]:
    return [json.loads(line) for line in hutch.run("--json", "events").text.splitlines()]


def started(hutch: Hutch, name: str, script: str, *options: str) -> None:
    """Start a detached sandbox whose main process has said that it is up."""
    hutch.run("run", "-d", "--name", name, *options, "busybox", "sh", "-c", script)
    wait_until(lambda: b"up\n" in hutch.run("logs", name).stdout, what="it is up")


def test_files_survive_stop_and_start(shared: Hutch, name: str) -> None:
    shared.run("create", "--name", name, "busybox")
    assert look(shared, name)["state"] == "created"
    assert name in shared.run("ps").text
    assert shared.run("start", name).text == name
    first = look(shared, name)
    assert (first["state"], first["idle"]) == ("running", True)
    shared.run("exec", name, "sh", "-c", "echo kept >/root/file; mkdir /root/d; rm /bin/vi")
    assert shared.run("stop", name).text == name
    assert look(shared, name)["state"] == "stopped"
    assert name not in shared.run("ps").text
    shared.run("start", name)
    script = "cat /root/file; ls -d /root/d; ls /bin/vi 2>/dev/null; echo more >>/root/file"
    assert shared.run("exec", name, "sh", "-c", script).text == "kept\n/root/d"
    shared.run("restart", name)
    assert shared.run("exec", name, "cat", "/root/file").text == "kept\nmore"
    assert look(shared, name)["pid"] != first["pid"]
    life = [kind for kind in kinds(shared, name) if not kind.startswith("exec.")]
    assert life == ["created", "started", "stopped", "started", "stopped", "started"]


def test_a_command_of_create_runs_at_each_start(shared: Hutch, name: str) -> None:
    script = "echo again >>/root/count; exit $(wc -l </root/count)"
    shared.run("create", "--name", name, "busybox", "sh", "-c", script)
    for expected in ("1", "2"):
        shared.run("start", name)
        assert shared.run("wait", name).text == expected
    assert look(shared, name)["exit"] == {"reason": "exited", "code": 2, "message": None}


def test_stop_asks_the_main_process(shared: Hutch, name: str) -> None:
    started(shared, name, WAITS)
    shared.run("kill", "-s", "USR1", name)
    wait_until(lambda: b"usr1\n" in shared.run("logs", name).stdout, what="the signal arrives")
    assert look(shared, name)["state"] == "running"
    shared.run("stop", name)
    info = look(shared, name)
    assert (info["state"], info["exit"]["reason"], info["exit"]["code"]) == (
        "stopped",
        "stopped",
        3,
    )
    assert shared.run("stop", name).text == name  # nothing to do is no failure


def test_a_stop_signal_of_its_own(shared: Hutch, name: str) -> None:
    script = "trap 'exit 4' HUP; trap '' TERM; echo up; while :; do sleep 0.1; done"
    started(shared, name, script, "--stop-signal", "HUP")
    shared.run("stop", name)
    assert look(shared, name)["exit"]["code"] == 4


def test_stop_has_a_time_limit(shared: Hutch, name: str) -> None:
    started(shared, name, STUBBORN)
    began = time.monotonic()
    shared.run("stop", "-t", "1s", name)
    assert time.monotonic() - began >= 1.0
    info = look(shared, name)
    assert (info["state"], info["exit"]["code"]) == ("stopped", 137)
    assert info["exit"]["reason"] in ("stopped", "killed")


def test_kill_is_at_once(shared: Hutch, name: str) -> None:
    started(shared, name, STUBBORN.replace("sleep 0.1", "echo on; sleep 0.1"))
    attached = shared.start("attach", "--no-stdin", name)
    assert attached.stdout.readline() == b"on\n"  # it has attached before the end comes
    assert shared.run("kill", name).text == name
    assert look(shared, name)["exit"] == {"reason": "killed", "code": 137, "message": None}
    assert attached.wait(60) == 137


def test_clients_of_a_sandbox_that_stops_are_told(shared: Hutch, name: str) -> None:
    started(shared, name, WAITS)
    client = shared.start("exec", name, "sh", "-c", "trap '' TERM; echo in; sleep 1000")
    assert client.stdout.readline() == b"in\n"
    waiter = shared.start("wait", name)
    follower = shared.start("logs", "-f", name)
    shared.run("stop", "-t", "1s", name)
    assert client.wait(60) == 137
    assert waiter.communicate(timeout=60)[0] == b"3\n"
    assert follower.wait(60) == 0


def test_rename(shared: Hutch, name: str) -> None:
    shared.run("create", "--name", "before", "busybox")
    shared.run("create", "--name", "taken", "busybox")
    failed = shared.run("--json", "rename", "before", "taken", expect=125)
    assert failed.json["error"]["code"] == "name_taken"
    assert (
        shared.run("--json", "rename", "before", "a b", expect=125).json["error"]["code"]
        == "bad_name"
    )
    shared.run("rename", "before", name)
    assert look(shared, name)["name"] == name
    gone = shared.run("--json", "inspect", "before", expect=125)
    assert gone.json["error"]["code"] == "sandbox_not_found"
    shared.run("create", "--name", "before", "busybox")  # the name is free again
    shared.run("rm", "before", "taken")


def test_what_a_state_does_not_allow(shared: Hutch, name: str) -> None:
    shared.run("create", "--name", name, "busybox")
    for args in (("exec", name, "true"), ("stats", name), ("cp", f"{name}:/etc", "-")):
        failed = shared.run("--json", *args, expect=125)
        assert b"wrong_state" in failed.stdout, args
        assert name.encode() in failed.stdout
    shared.run("start", name)
    shared.run("start", name)  # runs already
    [failed] = shared.run("--json", "rm", name, expect=125).json
    assert failed["error"]["code"] == "wrong_state"
    assert "stop" in failed["error"]["hint"]
    failed = shared.run("--json", "wait", "-t", "100ms", name, expect=125)
    assert failed.json["error"]["code"] == "guest_timeout"
    shared.run("rm", "-f", name)
    assert shared.run("rm", name, expect=125).code == 125
    shared.run("rm", "-f", name)


def test_several_at_once_and_one_that_is_missing(shared: Hutch) -> None:
    for which in ("one", "two"):
        shared.run("create", "--name", which, "busybox")
    done = shared.run("rm", "one", "missing", "two", expect=125)
    assert done.text.split() == ["one", "two"]
    assert b"missing" in done.stderr


def test_one_name_for_two(shared: Hutch, name: str) -> None:
    def one(_: int) -> int:
        args = ("create", "--name", name, "busybox")
        return shared.run(*args, expect=None).code

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        codes = sorted(pool.map(one, range(8)))
    assert codes == [0, *[125] * 7]
    assert [info["name"] for info in shared.json("ps", "-a")].count(name) == 1


def test_starts_at_once_are_one_start(shared: Hutch, name: str) -> None:
    shared.run("create", "--name", name, "busybox")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(lambda _: shared.run("start", name, expect=None).code, range(4)))
    assert codes == [0] * 4
    assert kinds(shared, name).count("started") == 1


def qemus(hutch: Hutch) -> set[ProcessId]:
    return {who for who, what in hutch.processes().items() if "qemu" in what}


def test_a_stop_during_the_boot(shared: Hutch, name: str) -> None:
    before = qemus(shared)
    shared.run("create", "--name", name, "busybox")
    # A clone would run before the stop arrives; this one cannot before its VM goes on.
    starting = shared.start("--json", "start", "--no-template", name)
    booting = wait_until(lambda: qemus(shared) - before, what="it boots").pop()
    booting.kill(signal.SIGSTOP)
    shared.run("stop", name)
    assert starting.wait(60) == 125
    assert not booting.alive()
    info = look(shared, name)
    assert (info["state"], info["pid"]) == ("created", None)
    shared.run("start", name)
    assert shared.run("exec", name, "echo", "fine").text == "fine"


@pytest.fixture(scope="module")
def _fragile(_module_hutch: Hutch) -> str:
    _module_hutch.run("create", "--name", "fragile", "-m", "256m", "busybox")
    return "fragile"


@pytest.fixture
def fragile(shared: Hutch, _fragile: str) -> str:
    """A running sandbox that may be broken: the next test starts it again."""
    shared.run("start", _fragile)
    return _fragile


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("reboot -f", "reboot"),
        ("poweroff -f", "poweroff"),
        ("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger", "panic"),
    ],
)
def test_a_guest_that_ends_by_itself(shared: Hutch, fragile: str, script: str, reason: str) -> None:
    done = shared.run("exec", fragile, "sh", "-c", f"sync; {script}; sleep 100", expect=None)
    assert done.code in (125, 137), done
    shared.run("wait", fragile)
    info = look(shared, fragile)
    assert (info["state"], info["exit"]["reason"]) == ("stopped", reason)
    assert (info["pid"], info["error"]) == (None, None)
    # Its programs' ends, too, are told: before it or after.
    about = [event for event in _events(shared) if event["name"] == fragile]
    last = [event for event in about if event["kind"].startswith("sandbox.")][-1]
    assert (last["kind"], last["fields"]["reason"]) == ("sandbox.stopped", reason)
    if reason == "panic":
        assert b"Kernel panic" in shared.run("logs", "--boot", fragile).stdout


def test_a_killed_qemu(shared: Hutch, fragile: str) -> None:
    client = shared.start("exec", fragile, "sh", "-c", "echo in; sleep 1000")
    assert client.stdout.readline() == b"in\n"
    os.kill(look(shared, fragile)["pid"], signal.SIGKILL)
    shared.run("wait", fragile)
    info = look(shared, fragile)
    assert (info["state"], info["exit"]["reason"]) == ("stopped", "engine")
    assert client.wait(60) == 125
    assert b"(sandbox_died)" in client.stderr.read()


def test_a_program_that_takes_all_memory(shared: Hutch, fragile: str) -> None:
    done = shared.run("--json", "exec", fragile, "tail", "/dev/zero", expect=137)
    assert done.json["outcome"]["oom"] is True
    assert shared.run("exec", fragile, "echo", "lives").text == "lives"
    told = wait_until(
        lambda: [event for event in _events(shared) if event["kind"] == "sandbox.oom"],
        what="it is told",
    )
    assert told[-1]["name"] == fragile
    assert told[-1]["fields"]["process"] == "tail"
    [stats] = shared.json("stats", fragile)
    assert stats["oom_kills"] >= 1


def test_a_main_process_that_takes_all_memory(shared: Hutch, name: str) -> None:
    small = ("-m", "128m", "--no-template", "busybox")  # a template would be for this one alone
    shared.run("run", "--name", name, *small, "tail", "/dev/zero", expect=137)
    assert look(shared, name)["exit"]["reason"] == "oom"


def test_a_full_disk_of_the_guest_does_no_harm(shared: Hutch, name: str) -> None:
    shared.run("run", "-d", "--idle", "--name", name, "--disk", "64m", "busybox")
    full = shared.run("exec", name, "sh", "-c", "cat /dev/zero >/root/big", expect=1)
    assert b"No space left" in full.stderr
    shared.run("exec", name, "rm", "/root/big")
    shared.run("restart", name)
    assert shared.run("exec", name, "sh", "-c", "echo x >/root/y; cat /root/y").text == "x"


def test_the_list(shared: Hutch, name: str) -> None:
    shared.run("create", "--name", name, "-l", "team=web", "busybox")
    [row] = shared.json("ps", "-a", "-f", "label=team=web")
    assert row["name"] == name
    assert shared.run("ps", "-aq", "-f", f"name={name}").text == row["id"]
    assert shared.json("ps", "-a", "-f", "status=running", "-f", "label=team=web") == []
    for alias in ("ps", "list", "ls"):
        assert name in shared.run(alias, "-a").text
    assert look(shared, row["id"])["name"] == name
    assert look(shared, row["id"][:8])["name"] == name


def test_remove_all(shared: Hutch) -> None:
    shared.run("create", "--name", "all-one", "busybox")
    shared.run("run", "-d", "--idle", "--name", "all-two", "busybox")
    done = shared.run("rm", "--all").text.split()
    assert "all-one" in done
    assert "all-two" not in done
    assert "all-two" in shared.run("rm", "-f", "--all").text.split()
    assert shared.json("ps", "-a") == []
