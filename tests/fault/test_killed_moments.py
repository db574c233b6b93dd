"""Kill -9 of the daemon, and of QEMU, at the phases of a snapshot, a restore, a fork, a claim and a
template.

The source goes on, neither stopped nor frozen; nothing half-made is used, and nothing of it stays.
"""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.fault.crash import Crasher, consistent, named
from tests.harness.fixtures import NewHutch
from tests.harness.hutch import Hutch
from tests.vm.resting import COUNTER, count, look
from tests.waiting import wait_until

SNAPSHOT = ("snapshot", "create", "--name", "then", "box")
RESTORE = ("restore", "base", "new")
FORK = ("fork", "--count", "2", "box")
PHASES = {
    SNAPSHOT: (
        "1 sql INSERT INTO snapshots",
        "1 qmp cont",  # it stands still, and its disk is another one
        "1 snapshots/*/logs",  # its programs are frozen
        "1 os.rename",
        "-1 sql UPDATE snapshots",
    ),
    RESTORE: ("-1 qmp cont", "-1 sql UPDATE sandboxes"),
    FORK: ("1 qmp cont", "2 subprocess.Popen", "-1 sql UPDATE sandboxes"),
}


@pytest.fixture
def source(hutch: Hutch) -> Hutch:
    """A running sandbox `box` that counts, with a file on its disk, and a snapshot `base` of it."""
    hutch.run("run", "-d", "--name", "box", "busybox", "sh", "-c", COUNTER)
    hutch.run("exec", "box", "sh", "-c", "echo kept >/root/file; sync")
    hutch.run("snapshot", "create", "--name", "base", "box")
    return hutch


def qemus(hutch: Hutch) -> set[int]:
    return {who.pid for who, what in hutch.processes().items() if "qemu-system" in what}


def memories(pid: int) -> int:
    """Return how many files in memory a process has open."""
    links = (os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir())
    return sum("memfd:" in link for link in links)


def half_made(hutch: Hutch) -> list[str]:
    """Return what is there of snapshots and forks that are none."""
    snapshots = {each["id"] for each in hutch.json("snapshot", "ls")}
    found = [*hutch.home.rglob("*.part"), *hutch.runtime.rglob("fk_*")]
    found += [x for x in hutch.home.glob("snapshots/*") if x.name not in snapshots]
    return [str(path) for path in found]


def check(hutch: Hutch, pid: int, when: str) -> None:
    """Check that the source and what has come of it are whole; remove the latter."""
    assert look(hutch, "box")["state"] == "running", when
    wait_until(lambda: not half_made(hutch), what=f"nothing half-made is left of {when}")
    consistent(hutch)
    same, before = count(hutch, "box")
    assert same == pid, when
    wait_until(lambda: count(hutch, "box")[1] > before, what=f"the source counts after {when}")
    if "then" in [each["name"] for each in hutch.json("snapshot", "ls")]:
        hutch.run("restore", "then", "again")
        hutch.run("snapshot", "rm", "then")
    for row in hutch.json("ps", "-a"):
        if row["name"] != "box":
            assert row["state"] == "running", (when, row)
            assert count(hutch, row["name"])[0] == pid, when
            hutch.run("rm", "-f", row["name"])


@pytest.mark.timeout(900)
def test_the_daemon(source: Hutch) -> None:
    crasher = Crasher(source)
    pid, _ = count(source, "box")
    qemu = look(source, "box")["pid"]
    held = memories(qemu)
    for command, phases in PHASES.items():
        acts = crasher.rehearse(*command)
        check(source, pid, " ".join(command))
        for act in named(acts, *phases):
            assert crasher.crash_at(act, *command).code in (0, 125)
            check(source, pid, act)
    wait_until(lambda: memories(qemu) == held, what="its memory alone is left")
    # What they all have made is gone with the last that needs it.
    source.run("rm", "-f", "box")
    source.run("snapshot", "rm", "base")
    wait_until(lambda: not list(source.home.glob("layers/*")), what="no layer is left")
    wait_until(lambda: not list(source.home.glob("snapshots/*")), what="no snapshot is left")


def test_the_daemon_while_templates_are_completed(new_hutch: NewHutch) -> None:
    hutch = new_hutch()
    crasher = Crasher(hutch)
    for number, complete in ((1, 0), (2, 1)):
        # There are two of one boot, and each is complete with its manifest.
        act = f"{number} os.rename {hutch.home.parent}/*/templates/*/template.json.part"
        assert crasher.crash_at(act, "template", "build", "busybox").code == 125
        whole = {template["id"] for template in hutch.json("template", "ls")}
        assert len(whole) == complete
        assert {path.name for path in hutch.home.glob("templates/*")} == whole
        wait_until(lambda: not qemus(hutch), what="no VM is left")
    assert hutch.run("run", "--rm", "busybox", "echo", "works").text == "works"


def test_the_daemon_while_a_member_is_claimed(hutch: Hutch) -> None:
    claim = ("run", "-d", "--idle", "--name", "box", "busybox")

    def filled() -> None:
        hutch.run("pool", "warm", "busybox")

    crasher = Crasher(hutch, filled)
    acts = crasher.rehearse(*claim)
    assert look(hutch, "box")["template"]
    hutch.run("rm", "-f", "box")
    for act in named(acts, "1 sql UPDATE sandboxes", "1 qmp cont"):
        crasher.crash_at(act, *claim)
        hutch.run("pool", "drain", "busybox")
        consistent(hutch)
        hutch.run("rm", "-f", "box", expect=None)
        assert hutch.json("ps", "-a") == []
        wait_until(lambda: not list(hutch.home.glob("layers/*")), what="no layer is left")
        wait_until(lambda: not qemus(hutch), what="no VM is left")
    filled()
    hutch.run(*claim)
    assert hutch.run("exec", "box", "hostname").text == "box"


def test_qemu(source: Hutch) -> None:
    crasher = Crasher(source)

    def kill_at(phase: str, *command: str, its_own: bool) -> None:
        """Kill the source's QEMU, or all but that, at a phase of a command, which then fails."""
        own = look(source, "box")["pid"]
        with crasher.held_at(phase, "--json", *command) as started:
            for pid in qemus(source):
                if (pid == own) is its_own:
                    os.kill(pid, signal.SIGKILL)
        out, _ = started.communicate(timeout=60)
        assert started.returncode == 125, out
        told = json.loads(out)
        failure = (told[0] if isinstance(told, list) else told)["error"]
        assert failure["code"] in ("sandbox_died", "engine_failed", "parked_unusable"), failure
        wait_until(lambda: not half_made(source), what=f"nothing half-made is left of {phase}")

    for phase, command in (("1 qmp cont", SNAPSHOT), ("1 qmp stop", ("park", "box"))):
        kill_at(phase, *command, its_own=True)
        ended = source.json("wait", "box")[0]
        assert ended["exit"]["reason"] == "engine", ended
        consistent(source)
        source.run("start", "box")
        assert source.run("exec", "box", "cat", "/root/file").text == "kept"
    pid, _ = count(source, "box")
    kill_at("2 qmp cont", "fork", "box", "child", its_own=False)
    consistent(source)
    assert [row["name"] for row in source.json("ps", "-a")] == ["box"]
    check(source, pid, "a child that died")
    source.run("park", "box")
    kill_at("1 qmp cont", "exec", "box", "true", its_own=False)
    wait_until(lambda: look(source, "box")["state"] == "parked", what="it is parked as before")
    assert count(source, "box")[0] == pid
