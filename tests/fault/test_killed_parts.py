"""Kill -9 of everything that is not the daemon: QEMU, the tools it calls, the command itself."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from hutch.process import ProcessId
from tests.fault.crash import consistent, content, same_content
from tests.fault.guests import SCRIPTS, give_back, take_over
from tests.harness.fixtures import NewHutch
from tests.harness.hutch import Hutch
from tests.waiting import wait_until


def _process(hutch: Hutch, program: str) -> ProcessId:
    """Wait for a process of a program that has a trace of the home, and return it."""

    def find() -> ProcessId | None:
        found = (who for who, what in hutch.processes().items() if program in what.split(" ")[0])
        return next(found, None)

    return wait_until(find, what=f"{program} runs")


def _state(hutch: Hutch, name: str) -> str:
    return str(hutch.json("inspect", name)[0]["state"])


def test_qemu_while_it_boots(new_hutch: NewHutch) -> None:
    hutch = new_hutch()
    # The first is started again; a VM that dies each time fails the start.
    hutch.run("create", "--name", "one", "busybox")
    starting = hutch.start("start", "one")
    qemu = _process(hutch, "qemu-system")
    # Of the sandbox or, before that, of its template.
    wait_until(lambda: [*hutch.home.glob("*/*/console.log")], what="the kernel boots")
    qemu.kill()
    assert starting.wait(120) == 0, starting.stderr.read()
    assert hutch.run("exec", "one", "echo", "well").text == "well"
    consistent(hutch)


def test_qemu_each_time_it_boots(hutch: Hutch) -> None:
    take_over(hutch, SCRIPTS["says nothing"])  # so that none comes up before it is killed
    hutch.run("create", "--name", "one", "busybox")
    starting = hutch.start("--json", "start", "one")
    while starting.poll() is None:
        for who, what in hutch.processes().items():
            if "qemu-system" in what:
                who.kill()
    out, _ = starting.communicate()
    assert starting.returncode == 125
    assert b'"boot_failed"' in out or b'"engine_failed"' in out, out
    assert _state(hutch, "one") == "failed"
    consistent(hutch)
    give_back(hutch)
    hutch.run("start", "one")
    hutch.run("rm", "-f", "one")


def test_qemu_in_use(hutch: Hutch) -> None:
    hutch.run("run", "-d", "--idle", "--name", "one", "busybox")
    hutch.run("exec", "one", "sh", "-c", "echo kept > /kept; sync")
    working = hutch.start("exec", "one", "sh", "-c", "echo up; sleep 600")
    assert working.stdout.readline() == b"up\n"
    following = hutch.start("logs", "-f", "--boot", "one")
    flowing = hutch.start("exec", "one", "cat", "/dev/zero")
    assert flowing.stdout.read(1) == b"\0"
    _process(hutch, "qemu-system").kill()
    assert working.wait(60) == 125
    assert b"sandbox" in working.stderr.read()
    following.communicate(timeout=60)
    flowing.communicate(timeout=60)
    assert flowing.returncode == 125
    wait_until(lambda: _state(hutch, "one") == "stopped", what="its end is known")
    [info] = hutch.json("inspect", "one")
    assert info["exit"]["reason"] == "engine", info
    assert "SIGKILL" in info["exit"]["message"], info
    consistent(hutch)
    hutch.run("start", "one")
    assert hutch.run("exec", "one", "cat", "/kept").text == "kept"


def test_qemu_while_it_stops(hutch: Hutch) -> None:
    script = "trap '' TERM; echo up; while :; do sleep 1; done"
    hutch.run("run", "-d", "--name", "one", "busybox", "sh", "-c", script)
    wait_until(lambda: hutch.run("logs", "one").stdout == b"up\n", what="it runs")
    stopping = hutch.start("stop", "--timeout", "10m", "one")
    wait_until(lambda: _state(hutch, "one") == "stopping", what="it stops")
    _process(hutch, "qemu-system").kill()
    assert stopping.wait(60) == 0, stopping.stderr.read()
    assert _state(hutch, "one") == "stopped"
    consistent(hutch)


def test_qemu_that_does_not_answer(hutch: Hutch) -> None:
    hutch.run("run", "-d", "--idle", "--name", "one", "busybox")
    qemu = _process(hutch, "qemu-system")
    qemu.kill(signal.SIGSTOP)
    # Another one is served all the same, and this one can be removed at once.
    assert hutch.run("run", "--rm", "busybox", "echo", "well").text == "well"
    hutch.run("rm", "-f", "one", timeout=60)
    wait_until(lambda: not qemu.alive(), what="its VM is gone")


@pytest.mark.parametrize(("tool", "command"), [("tar2sqfs", "pull"), ("mkfs.ext4", "run")])
def test_a_tool(new_hutch: NewHutch, short_tmp: Path, tool: str, command: str) -> None:
    hutch = new_hutch()
    # One that never ends until it may go on as the real one; its PATH tells whose it is.
    directory, go_on = hutch.runtime / "bin", short_tmp / "go-on"
    directory.mkdir()
    stand_in = directory / tool
    real = f'PATH=/usr/bin:/usr/sbin exec {tool} "$@"'
    stand_in.write_text(f"#!/bin/sh\n[ -e {go_on} ] || exec sleep 600\n{real}\n")
    stand_in.chmod(0o755)
    hutch.env["PATH"] = f"{directory}:{os.environ['PATH']}"
    if command == "pull":
        hutch.run("image", "rm", "busybox")
    before = content(hutch)
    argv = ("image", "pull", "busybox") if command == "pull" else ("run", "--rm", "busybox", "true")
    started = hutch.start("--json", *argv)
    _process(hutch, "sleep").kill()
    out, _ = started.communicate(timeout=60)
    assert started.returncode == 125
    assert tool.encode() in out
    assert b'"internal"' not in out
    same_content(hutch, before, when=f"after {tool} was killed")
    # The same with the command killed instead: what it asked for is given up.
    started = hutch.start(*argv)
    slow = _process(hutch, "sleep")
    started.kill()
    wait_until(lambda: not slow.alive(), what=f"{tool} is given up")
    same_content(hutch, before, when="after the command was killed")
    wait_until(lambda: hutch.json("ps", "-a") == [], what="nothing is on record")
    go_on.touch()
    hutch.run(*argv)
    shutil.rmtree(directory)
