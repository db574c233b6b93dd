"""Checkpoints of real machines: an agent's session goes wrong, and is put back, processes and all.

The counter writes to a tmpfs: that it goes on under the same pid, beside files in that tmpfs which
are those of an earlier moment, proves that memory and processes are those of then.
"""

import random
import time
from pathlib import Path

import pytest

from tests.harness.hutch import Hutch
from tests.vm.resting import COUNTER, count, goes_on, look
from tests.waiting import wait_until

CLOCK = 5.0
ENDED = ("[sh]", "[sleep]")


@pytest.fixture
def box(hutch: Hutch) -> Hutch:
    """A running sandbox `box` that counts, with a file on its disk."""
    script = f"echo ready; {COUNTER}"
    hutch.run("run", "-d", "--name", "box", "-l", "k=v", "busybox", "sh", "-c", script)
    sh(hutch, "mkdir /job && echo one >/job/file && echo warm >/run/warm")
    return hutch


def sh(hutch: Hutch, script: str, *options: str, expect: int = 0) -> str:
    return hutch.run("exec", *options, "box", "sh", "-c", script, expect=expect).text


def numbers(hutch: Hutch) -> list[tuple[int | None, str]]:
    return [(each["number"], each["snapshot"]["id"]) for each in hutch.json("checkpoints", "box")]


def differences(hutch: Hutch, *moments: str) -> set[str]:
    """Return what differs, but for the naps that the counter takes and its forks for them."""
    found = hutch.run("--json", "diff", *moments, expect=None).json
    files = {f"{each['change']} {each['path']}" for each in found["files"]}
    commands = [(each["change"], each["command"]) for each in found["processes"]]
    # One that has just ended has a name and no arguments any more.
    ran = [each for each in commands if "0.02" not in each[1] and each[1] not in ENDED]
    return files | {f"{change} {command}" for change, command in ran}


def test_a_session_that_goes_wrong(box: Hutch, tmp_path: Path) -> None:
    before = look(box, "box")
    identity = sh(box, "cat /etc/machine-id; hostname")
    pid, counted = count(box, "box")
    began = time.monotonic()
    clean = box.json("checkpoint", "-m", "clean", "box")
    took = time.monotonic() - began
    # What it has in common with the template is not its own.
    assert clean["disk_bytes"] < clean["shared_bytes"] / 4
    print(
        f"a checkpoint: {took:.2f} s, programs stood still for {clean['pause_seconds']:.3f} s,"
        f" {clean['memory_bytes'] >> 20} MiB of memory, {clean['disk_bytes'] >> 20} MiB in all"
    )
    goes_on(box, "box", pid, counted + 20)
    assert differences(box, "box") == set()
    # Installed, then broken: each step with a checkpoint of its own.
    sh(box, "echo two >/job/file; echo tool >/job/tool; rm /run/warm", "--checkpoint")
    sh(box, "rm -rf /job; kill -STOP $(cat /run/pid)", "--checkpoint")
    listed = box.json("checkpoints", "box")
    assert [each["number"] for each in listed] == [1, 2, 3]
    assert listed[0]["snapshot"]["command"][:2] == ["sh", "-c"]
    assert listed[2]["snapshot"]["message"] == "clean"
    between = {"added /job/tool", "modified /job/file"}
    assert differences(box, "box@2", "box@1") == between
    gone = {f"removed {path}" for path in ("/job", "/job/file", "/job/tool")}
    drawn = {sh(box, "head -c 16 /dev/urandom | md5sum")}
    waiting = box.start("exec", "box", "sleep", "1000")
    wait_until(lambda: "sleep 1000" in box.run("top", "box").text)
    assert differences(box, "box") == gone | {"added sleep 1000"}
    # The last step is undone.
    assert box.run("undo", "box").text == listed[0]["snapshot"]["name"]
    assert b"(sandbox_restored)" in waiting.communicate(timeout=60)[1]
    assert sh(box, "cat /job/file /job/tool; ls /run/warm 2>/dev/null; true") == "two\ntool"
    again, further = count(box, "box")
    assert again == pid
    goes_on(box, "box", pid, further)
    assert "sleep 1000" not in box.run("top", "box").text
    # And all of it: files, processes, what was in a tmpfs.
    info = box.json("undo", "box", "3")
    assert sh(box, "cat /job/file /run/warm; ls /job") == "one\nwarm\nfile"
    assert sh(box, "cat /etc/machine-id; hostname") == identity
    assert count(box, "box")[0] == pid
    kept = ("id", "name", "labels", "hostname", "started_at", "image_id")
    assert {key: info[key] for key in kept} == {key: before[key] for key in kept}
    began = time.time()
    now = float(sh(box, "date +%s"))
    assert began - CLOCK - 1 <= now <= time.time() + CLOCK
    # The same moment twice, and no random number twice.
    drawn.add(sh(box, "head -c 16 /dev/urandom | md5sum"))
    box.run("undo", "box")
    drawn.add(sh(box, "head -c 16 /dev/urandom | md5sum"))
    assert len(drawn) == 3
    assert int(sh(box, "cat /run/hutch/generation")) > 1
    assert box.run("logs", "box").text == "ready"
    # What was undone is there until the next one is taken.
    undone = listed[0]["snapshot"]["id"]
    assert [number for number, _ in numbers(box)] == [None, None, 1]
    box.run("undo", "--to", undone, "box")
    assert sh(box, "cat /job/tool") == "tool"
    box.run("undo", "--to", clean["id"], "box")
    box.run("checkpoint", "box")
    assert [number for number, _ in numbers(box)] == [1, 2]
    # It stops and starts with the disk that it was put back to, and comes back from the dead.
    box.run("restart", "-t", "1s", "box")
    assert sh(box, "cat /job/file") == "one"
    box.run("kill", "box")
    assert box.json("undo", "box")["state"] == "running"
    assert count(box, "box")[0] == pid
    # It travels as a whole.
    file = str(tmp_path / "clean.hutch")
    box.run("snapshot", "export", clean["id"], file)
    box.run("snapshot", "import", "--name", "far", file)
    box.run("restore", "far", "copy")
    assert count(box, "copy")[0] == pid


def test_a_daemon_that_is_killed_meanwhile(box: Hutch) -> None:
    box.run("checkpoint", "box")
    sh(box, "echo after >/job/after")
    pid, _ = count(box, "box")
    undoing = box.start("undo", "box")
    time.sleep(
        random.uniform(0.1, 0.6)
    )  # not a wait for anything: the moment of the kill is arbitrary
    box.kill_daemon()
    undoing.wait(60)
    assert look(box, "box")["state"] == "running"
    assert count(box, "box")[0] == pid
    assert sh(box, "ls /job") in ("after\nfile", "file")
    wait_until(lambda: len(list(box.runtime.glob("*/sb_*"))) == 1, what="only one VM is left")
    box.run("undo", "box")
    assert sh(box, "ls /job") == "file"
    assert count(box, "box")[0] == pid
