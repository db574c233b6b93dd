"""A parked sandbox takes no memory, and goes on where it was as if nothing had been."""

import re
from pathlib import Path

import pytest

from hutch.process import ProcessId
from tests.harness.hutch import Hutch
from tests.vm.resting import COUNTER, count, look

RANDOM = "head -c 32 /dev/urandom | md5sum; cat /proc/sys/kernel/random/uuid"


@pytest.fixture
def counter(hutch: Hutch) -> Hutch:
    hutch.run("run", "-d", "--name", "box", "-l", "k=v", "busybox", "sh", "-c", COUNTER)
    return hutch


def parked_files(hutch: Hutch, name: str) -> list[Path]:
    """Return the files of a sandbox's parked memory."""
    return list((hutch.home / "sandboxes" / look(hutch, name)["id"]).glob("parked/*"))


def test_it_goes_on_where_it_was(counter: Hutch) -> None:
    counter.run("exec", "box", "sh", "-c", "echo kept >/root/file")
    pid, before = count(counter, "box")
    vm = ProcessId.of(look(counter, "box")["pid"])
    assert vm is not None
    counter.run("park", "box")
    parked = look(counter, "box")
    assert (parked["state"], parked["pid"], parked["labels"]) == ("parked", None, {"k": "v"})
    assert not vm.alive()
    assert parked_files(counter, "box")
    counter.run("park", "box")
    assert "parked" in counter.run("ps").text
    counter.run("template", "prune")
    assert counter.run("exec", "box", "cat", "/root/file").text == "kept"
    assert look(counter, "box")["state"] == "running"
    assert not parked_files(counter, "box")
    again, after = count(counter, "box")
    assert again == pid
    assert after >= before
    counter.run("park", "box")
    counter.run("resume", "box")
    assert count(counter, "box") > (pid, after)


def test_output_and_detached_programs_go_on(hutch: Hutch) -> None:
    script = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"
    hutch.run("run", "-d", "--name", "talks", "busybox", "sh", "-c", script)
    exec_id = hutch.run("exec", "-d", "talks", "sh", "-c", "sleep 2; echo late; exit 6").text
    hutch.run("park", "talks")
    told = hutch.run("logs", "talks").stdout.splitlines()
    assert look(hutch, "talks")["state"] == "parked"
    hutch.kill_daemon()
    assert look(hutch, "talks")["state"] == "parked"
    hutch.run("exec", "talks", "true")
    lines = hutch.run("logs", "talks").stdout.splitlines()
    assert lines == [b"line %d" % number for number in range(1, len(lines) + 1)]
    assert len(lines) > len(told)
    assert hutch.run("logs", "-f", "--exec", exec_id, "talks").stdout == b"late\n"


def test_stop_gives_the_memory_up_and_keeps_the_disk(counter: Hutch) -> None:
    counter.run("exec", "box", "sh", "-c", "echo kept >/root/file")
    counter.run("park", "box")
    assert counter.run("rm", "box", expect=125).stderr.count(b"wrong_state") == 1
    counter.run("stop", "box")
    stopped = look(counter, "box")
    assert (stopped["state"], stopped["exit"]["reason"]) == ("stopped", "stopped")
    assert not parked_files(counter, "box")
    counter.run("start", "box")
    assert counter.run("exec", "box", "cat", "/root/file").text == "kept"


def test_a_memory_that_does_not_load_leaves_it_parked(counter: Hutch) -> None:
    counter.run("park", "box")
    [state] = [path for path in parked_files(counter, "box") if path.name == "state"]
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    failed = counter.run("exec", "box", "true", expect=125)
    assert re.search(rb"parked_unusable", failed.stderr)
    assert look(counter, "box")["state"] == "parked"
    state.write_bytes(whole)
    counter.run("exec", "box", "true")
