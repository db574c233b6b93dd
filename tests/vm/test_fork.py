"""Forks of running machines: children go on where the source was, and are machines of their own."""

import pytest

from tests.harness.fixtures import NewHutch
from tests.harness.hutch import Hutch
from tests.vm.resting import COUNTER, count, goes_on, look

UNIQUE = (
    "head -c 32 /dev/urandom | sha256sum; cat /proc/sys/kernel/random/uuid;"
    " cat /etc/machine-id; hostname"
)


@pytest.fixture
def source(hutch: Hutch) -> Hutch:
    """A running sandbox `box` that counts, with a file on its disk."""
    hutch.run("run", "-d", "--name", "box", "-l", "k=v", "busybox", "sh", "-c", COUNTER)
    sh(hutch, "box", "echo before >/root/file; echo warm >/run/warm")
    return hutch


def sh(hutch: Hutch, name: str, script: str) -> str:
    return hutch.run("exec", name, "sh", "-c", script).text


def test_children_go_on_and_diverge(source: Hutch) -> None:
    pid, before = count(source, "box")
    forked = source.json("fork", "--count", "3", "box", "left")
    names = [child["name"] for child in forked["children"]]
    assert (names, forked["failed"]) == (["left", "box-1", "box-2"], [])
    assert 0 < forked["pause_seconds"] < 30
    for child in forked["children"]:
        assert (child["state"], child["labels"]) == ("running", {"k": "v"})
        again, counted = count(source, child["name"])
        assert (again, counted >= before) == (pid, True)
        assert sh(source, child["name"], "cat /root/file /run/warm") == "before\nwarm"
    # Nobody sees what another writes.
    for name in ("box", *names):
        assert sh(source, name, f"echo {name} >/root/file; echo {name} >/run/warm") == ""
    for name in ("box", *names):
        assert sh(source, name, "sync; cat /root/file /run/warm") == f"{name}\n{name}"
    goes_on(source, "box", pid, before)
    # A fork of a fork, when its parents are gone, and after a restart of the daemon.
    source.run("fork", "left", "deep")
    source.run("rm", "-f", "box", *names)
    source.kill_daemon()
    assert count(source, "deep")[0] == pid
    assert sh(source, "deep", "cat /root/file /run/warm") == "left\nleft"
    source.run("restart", "-t", "1s", "deep")
    assert sh(source, "deep", "cat /root/file") == "left"


def test_they_share_nothing_that_must_be_unique(source: Hutch) -> None:
    source.run("fork", "box", "one", "two")
    seen = [sh(source, name, UNIQUE).splitlines() for name in ("box", "one", "two")]
    for values in zip(*seen, strict=True):
        assert len(set(values)) == 3, values
    assert [values[3] for values in seen[1:]] == ["one", "two"]
    assert look(source, "one")["origin"] == look(source, "box")["id"]


def test_a_paused_source_stays_paused(source: Hutch) -> None:
    pid, _ = count(source, "box")
    source.run("pause", "box")
    source.run("fork", "box", "child")
    assert look(source, "box")["state"] == "paused"
    assert count(source, "child")[0] == pid
    source.run("resume", "box")
    assert count(source, "box")[0] == pid


def test_programs_with_a_client_go_on_without_it(new_hutch: NewHutch) -> None:
    hutch = new_hutch(templates=True, exec_orphan_grace="0.5s")
    hutch.run("run", "-d", "--idle", "--name", "box", "busybox")
    attached = hutch.start("exec", "box", "sh", "-c", COUNTER + " & echo on; wait")
    assert attached.stdout.readline() == b"on\n"
    hutch.run("fork", "box", "child")
    # Longer than a client is waited for, also after a restart of the daemon.
    for end in (hutch.kill_daemon, lambda: None):
        pid, before = count(hutch, "child")
        goes_on(hutch, "child", pid, before + 40)
        end()
    assert attached.poll() is None
