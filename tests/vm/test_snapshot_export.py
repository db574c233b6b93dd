"""Snapshots that travel: out of one home as a file, and restored by the daemon of another.

The counter writes to a tmpfs: that it goes on proves that memory and processes came along.
"""

from pathlib import Path

import pytest

from tests.harness.fixtures import NewHutch
from tests.harness.hutch import Hutch
from tests.vm.resting import COUNTER, count
from tests.waiting import wait_until


@pytest.fixture
def elsewhere(new_hutch: NewHutch) -> Hutch:
    """Another home with a daemon of its own, without sandboxes and snapshots."""
    return new_hutch()


def sh(hutch: Hutch, name: str, script: str) -> str:
    return hutch.run("exec", name, "sh", "-c", script).text


def test_a_snapshot_goes_on_in_another_home(hutch: Hutch, elsewhere: Hutch, tmp_path: Path) -> None:
    hutch.run("run", "-d", "--name", "box", "busybox", "sh", "-c", COUNTER)
    sh(hutch, "box", "echo before >/root/file; echo warm >/run/warm; sync")
    pid, before = count(hutch, "box")
    hutch.run("snapshot", "create", "--name", "then", "box")
    sh(hutch, "box", "echo after >/root/file")
    file = tmp_path / "then.hutch"
    hutch.run("snapshot", "export", "then", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    assert sh(hutch, "box", "cat /root/file") == "after"
    hutch.run("rm", "-f", "box")
    hutch.run("snapshot", "rm", "then")
    came = elsewhere.json("snapshot", "import", str(file))
    assert (came["name"], came["kind"]) == ("then", "full")
    restored = elsewhere.json("restore", "then", "here")
    assert (restored["state"], restored["origin"]) == ("running", came["id"])
    again, counted = count(elsewhere, "here")
    assert (again, counted >= before) == (pid, True)
    wait_until(lambda: count(elsewhere, "here")[1] > counted)
    assert sh(elsewhere, "here", "cat /root/file /run/warm") == "before\nwarm"
    # With its own disk it boots again, as anything does, and after a restart of the daemon.
    sh(elsewhere, "here", "echo kept >/root/kept; sync")
    elsewhere.kill_daemon()
    elsewhere.run("restart", "-t", "1s", "here")
    assert sh(elsewhere, "here", "cat /root/file /root/kept") == "before\nkept"
    elsewhere.run("restore", "--disk-only", "then", "cold")
    assert sh(elsewhere, "cold", "cat /root/file") == "before"
    elsewhere.run("rm", "-f", "here", "cold")
    elsewhere.run("snapshot", "rm", "then")


def test_a_damaged_file_is_refused(hutch: Hutch, elsewhere: Hutch, tmp_path: Path) -> None:
    hutch.run("run", "-d", "--idle", "--name", "box", "busybox")
    hutch.run("snapshot", "create", "--disk-only", "--name", "then", "box")
    file = tmp_path / "then.hutch"
    hutch.run("snapshot", "export", "then", str(file))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    refused = elsewhere.run("snapshot", "import", str(file), expect=125)
    assert b"(snapshot_damaged)" in refused.stderr
    file.write_bytes(data[: len(data) // 2])
    assert (
        b"(snapshot_damaged)" in elsewhere.run("snapshot", "import", str(file), expect=125).stderr
    )
    assert elsewhere.json("snapshot", "ls") == []
