"""Pools with real VMs: how soon a claimed sandbox runs a program, and that no two are alike."""

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from hutch.models import SandboxSpec
from hutch.process import ProcessId
from hutch.sdk import Client, Sandbox
from tests.harness.hutch import Hutch
from tests.waiting import wait_until

FASTER = 4
"""How many times as fast as a cold boot the way to the first output must at least be once.

On a quiet host it is far more, always: a busy one slows down the many small steps of a claim most.
"""
FILLED = 120
CLAIMS = 5
UNIQUE = (
    "head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid /etc/machine-id;"
    " hostname; cat /etc/hostname"
)


@contextlib.contextmanager
def connected(hutch: Hutch) -> Iterator[Client]:
    """Speak to the daemon from this process: a command's own start is not to be measured."""
    record = json.loads((hutch.home / "daemon.lock").read_text())
    with Client(socket=record["socket"]) as client:
        yield client


def pool(hutch: Hutch) -> dict[str, Any]:
    (info,) = hutch.json("pool", "status")
    assert isinstance(info, dict)
    return info


def fill(hutch: Hutch, size: int) -> None:
    """Wait until the one pool has as many members as it shall have."""

    def full() -> bool:
        info = pool(hutch)
        return (info["ready"], info["filling"]) == (size, 0)

    wait_until(full, timeout=FILLED, what=f"{size} members are ready")


def qemus(hutch: Hutch) -> set[ProcessId]:
    return {who for who, what in hutch.processes().items() if "qemu" in what}


def first_output(client: Client, *, template: bool = True) -> float:
    """Return the seconds from the request for a sandbox to its first program's output."""
    began = time.monotonic()
    info = client.create(SandboxSpec("busybox", idle=True, template=template))
    try:
        box = Sandbox.connect(info.id, client=client)
        assert box.commands.run(["echo", "here"]).stdout == "here\n"
        return time.monotonic() - began
    finally:
        client.remove(info.id, force=True)


def test_a_claimed_sandbox_runs_at_once(hutch: Hutch) -> None:
    hutch.run("pool", "warm", "busybox")
    with connected(hutch) as client:
        cold = first_output(client, template=False)
        claimed = []
        for _ in range(CLAIMS):
            fill(hutch, 1)
            claimed.append(first_output(client))
    told = ", ".join(f"{seconds * 1000:.0f}" for seconds in claimed)
    print(f"to the first output: cold {cold * 1000:.0f} ms, claimed {told} ms")
    assert pool(hutch)["claimed"] == CLAIMS
    assert min(claimed) * FASTER <= cold


def test_two_claims_at_once_have_nothing_in_common(hutch: Hutch) -> None:
    hutch.run("pool", "warm", "--size", "2", "busybox")
    names = ["one", "two"]
    script = ("run", "--name")
    started = [hutch.start(*script, name, "busybox", "sh", "-c", UNIQUE) for name in names]
    seen = [each.communicate(timeout=120)[0].decode().splitlines() for each in started]
    assert [each.returncode for each in started] == [0, 0]
    assert pool(hutch)["claimed"] == 2
    assert [lines[3:] for lines in seen] == [[name, name] for name in names]
    assert all(one != two for one, two in zip(*seen, strict=True)), seen
    ids = {info["id"] for info in hutch.json("inspect", *names)}
    assert len(ids) == 2


def test_a_claimed_sandbox_is_as_any_other(hutch: Hutch) -> None:
    hutch.run("pool", "warm", "busybox")
    hutch.run("run", "-d", "--idle", "--name", "box", "-w", "/srv/work", "busybox")
    assert pool(hutch)["claimed"] == 1
    before = time.time()
    told = hutch.run("exec", "box", "sh", "-c", "pwd; date +%s; ps | wc -l").text.split()
    assert told[0] == "/srv/work"
    assert before - 5 <= int(told[1]) <= time.time() + 5
    (box,) = hutch.json("inspect", "box")
    assert box["template"] is not None
    assert 0 < box["boot_seconds"] < 30
    execs = hutch.json("inspect", "box")
    assert len(execs) == 1
    hutch.run("exec", "box", "sh", "-c", "echo kept > /kept; sync")
    hutch.run("stop", "-t", "1s", "box")
    hutch.run("start", "box")
    assert hutch.run("exec", "box", "cat", "/kept", "/etc/hostname").text == "kept\nbox"


def test_a_member_that_is_killed_is_replaced_and_never_handed_out(hutch: Hutch) -> None:
    hutch.run("pool", "warm", "busybox")
    (member,) = qemus(hutch)
    member.kill(signal.SIGKILL)
    # At once: the daemon may not have noticed yet.
    assert hutch.run("run", "--rm", "busybox", "echo", "served").text == "served"
    fill(hutch, 1)
    assert member not in qemus(hutch)


def test_a_member_that_hangs_is_not_handed_out(hutch: Hutch) -> None:
    hutch.run("pool", "warm", "busybox")
    (member,) = qemus(hutch)
    member.kill(signal.SIGSTOP)
    assert hutch.run("run", "--rm", "busybox", "echo", "served").text == "served"
    wait_until(lambda: not member.alive(), what="it is ended")
    fill(hutch, 1)


@pytest.mark.parametrize("phase", ["fills", "waits", "is claimed"])
def test_a_killed_daemon_leaves_nothing_and_the_next_one_fills(hutch: Hutch, phase: str) -> None:
    hutch.run("template", "build", "busybox")
    hutch.run(
        "pool", "warm", "--size", "2", *(["--no-wait"] if phase == "fills" else []), "busybox"
    )
    if phase == "is claimed":
        hutch.run("create", "--name", "box", "busybox", "sh", "-c", UNIQUE)
    left = wait_until(lambda: qemus(hutch), timeout=FILLED, what="there is a member")
    hutch.kill_daemon()
    left |= qemus(hutch)
    fill(hutch, 2)
    wait_until(lambda: len(qemus(hutch)) == 2, what="nothing else is left")
    assert not left & qemus(hutch)
    boxes = list((hutch.home / "sandboxes").iterdir())
    assert len(boxes) == (3 if phase == "is claimed" else 2)
    if phase == "is claimed":
        assert hutch.run("start", "box").code == 0
        hutch.run("wait", "box")
        hutch.run("rm", "box")


def test_draining_leaves_no_process(hutch: Hutch) -> None:
    hutch.run("pool", "warm", "--size", "2", "busybox")
    assert len(qemus(hutch)) == 2
    assert "pool" in hutch.run("image", "rm", "busybox", expect=125).stderr.decode()
    hutch.run("pool", "drain", "busybox")
    assert qemus(hutch) == set()
    assert list((hutch.home / "sandboxes").iterdir()) == []
    assert list((hutch.home / "layers").iterdir()) == []
    hutch.run("image", "rm", "busybox")


def test_members_end_with_the_daemon(hutch: Hutch) -> None:
    hutch.run("pool", "warm", "busybox")
    (member,) = qemus(hutch)
    hutch.run("daemon", "stop")
    assert not member.alive()
    assert list((hutch.home / "sandboxes").iterdir()) == []
    fill(hutch, 1)
