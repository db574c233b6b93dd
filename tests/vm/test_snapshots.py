"""Snapshots of running machines: what is in them, what is not, and what comes of it when restored.

The counter writes to a tmpfs: that it goes on proves that memory and processes came along.
"""

import os
from typing import Any

import pytest

from tests.harness.hutch import Hutch
from tests.vm.resting import COUNTER, count, goes_on, look

UNIQUE = (
    "head -c 32 /dev/urandom | sha256sum; cat /proc/sys/kernel/random/uuid;"
    " cat /etc/machine-id; hostname"
)


@pytest.fixture
def source(hutch: Hutch) -> Hutch:
    """A running sandbox `box` that counts, with a file on its disk."""
    hutch.run(
        "run", "-d", "--name", "box", "-e", "COLOR=red", "-l", "k=v", "busybox", "sh", "-c", COUNTER
    )
    hutch.run("exec", "box", "sh", "-c", "echo before >/root/file; echo warm >/run/warm")
    return hutch


def sh(hutch: Hutch, name: str, script: str) -> str:
    return hutch.run("exec", name, "sh", "-c", script).text


def sees_the_cpu(hutch: Hutch, name: str, cpu: dict[str, Any]) -> None:
    """Check that a snapshot tells what the kernel of its guest has found."""
    seen = sh(hutch, name, "cat /proc/cpuinfo")
    flags = set(seen.partition("flags")[2].partition("\n")[0].split())
    assert f"vendor_id\t: {cpu['vendor']}\n" in seen
    for feature in ("fpu", "sse2", "aes", "avx2", "erms", "fsrm"):
        assert (feature in cpu["features"]) == (feature in flags), feature


def test_what_is_in_a_snapshot_and_what_is_not(source: Hutch) -> None:
    pid, before = count(source, "box")
    taken = source.json("snapshot", "create", "--name", "then", "box")
    assert (taken["kind"], taken["sandbox_name"]) == ("full", "box")
    assert taken["memory_bytes"] > 1 << 20
    sees_the_cpu(source, "box", taken["cpu"])
    sh(source, "box", "echo after >/root/after; echo changed >/root/file")
    first = source.json("restore", "then", "first")
    assert (first["state"], first["origin"], first["labels"]) == (
        "running",
        taken["id"],
        {"k": "v"},
    )
    again, counted = count(source, "first")
    assert (again, counted >= before) == (pid, True)
    assert sh(source, "first", "cat /root/file /run/warm; echo $COLOR") == "before\nwarm\nred"
    assert sh(source, "first", "ls /root") == "file"
    assert sh(source, "box", "cat /root/file /root/after") == "changed\nafter"
    # The source goes on, and what is restored diverges from it and from its like.
    sh(source, "first", "echo first >/root/file")
    source.run("restore", "then", "second")
    assert sh(source, "second", "cat /root/file") == "before"
    goes_on(source, "first", pid, counted)
    # Without the source, and after a restart of the daemon.
    source.run("rm", "-f", "box", "first", "second")
    source.kill_daemon()
    source.run("restore", "then", "box")
    assert count(source, "box")[0] == pid
    assert sh(source, "box", "cat /root/file; sync; echo kept >/root/kept; sync") == "before"
    # What was restored stops and starts with its own disk; the snapshot may go.
    source.run("snapshot", "rm", "then")
    source.run("restart", "-t", "1s", "box")
    assert sh(source, "box", "cat /root/file /root/kept") == "before\nkept"


def test_two_restores_share_nothing_that_must_be_unique(source: Hutch) -> None:
    source.run("snapshot", "create", "--name", "then", "box")
    seen = [sh(source, "box", UNIQUE).splitlines()]
    for name in ("one", "two"):
        source.run("restore", "then", name)
        seen.append(sh(source, name, UNIQUE).splitlines())
        shown = float(source.run("exec", name, "cat", "/run/hutch/generation").text)
        assert shown > 1
    for values in zip(*seen, strict=True):
        assert len(set(values)) == 3, values
    assert [values[3] for values in seen[1:]] == ["one", "two"]


def test_a_paused_one_and_the_disk_alone(source: Hutch) -> None:
    source.run("pause", "box")
    source.run("snapshot", "create", "--name", "full", "box")
    assert look(source, "box")["state"] == "paused"
    source.run("resume", "box")
    source.run("snapshot", "create", "--disk-only", "--name", "disk", "box")
    sh(source, "box", "echo after >/root/file")
    for snapshot, options in (("disk", []), ("full", ["--disk-only"])):
        info = source.json("restore", *options, snapshot, snapshot)
        assert info["state"] == "running"
        assert sh(source, snapshot, "cat /root/file; ls /run/warm 2>/dev/null; true") == "before"
    source.run("stop", "-t", "1s", "box")
    source.run("snapshot", "create", "--disk-only", "--name", "cold", "box")
    source.run("restore", "cold", "copy")
    assert sh(source, "copy", "cat /root/file") == "after"
    assert "(wrong_state)" in source.run("snapshot", "create", "box", expect=125).stderr.decode()


def test_a_damaged_one_is_refused_before_anything_starts(source: Hutch) -> None:
    taken = source.json("snapshot", "create", "--name", "then", "box")
    memory = source.home / "snapshots" / taken["id"] / "memory"
    with memory.open("r+b") as file:
        file.seek(os.lseek(file.fileno(), 0, os.SEEK_DATA) + 100)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    failure = source.run("restore", "then", "new", expect=125)
    assert "(snapshot_damaged)" in failure.stderr.decode()
    assert [info["name"] for info in source.json("ps", "-a")] == ["box"]
    # Its disk is still of use.
    source.run("restore", "--disk-only", "then", "new")
    assert sh(source, "new", "cat /root/file") == "before"
