"""Snapshots that travel: out of one home as a file, and restored by the daemon of another.

The counter writes to a tmpfs: that it goes on proves that memory and processes came along.
"""

import contextlib
import secrets
from pathlib import Path

import pytest

from tests.harness.fixtures import NewHutch
from tests.harness.hutch import Hutch
from tests.vm.resting import COUNTER, count, goes_on
from tests.waiting import wait_until


@pytest.fixture
def elsewhere(new_hutch: NewHutch) -> Hutch:
    """Another home with a daemon of its own, without sandboxes and snapshots."""
    return new_hutch(templates=True)


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
    goes_on(elsewhere, "here", pid, counted)
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


def in_the_clear(mark: str, place: Path) -> list[Path]:
    found = []
    for path in place.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it was just removed
            if path.is_file() and mark.encode() in path.read_bytes():
                found.append(path)
    return found


def test_encrypted_ones_need_their_key(hutch: Hutch, elsewhere: Hutch, tmp_path: Path) -> None:
    mark, key = secrets.token_hex(16), {"HUTCH_SNAPSHOT_KEY": secrets.token_hex(16)}
    options = ("--name", "box", "-e", f"TOKEN={mark}")
    hutch.run("run", "-d", *options, "busybox", "sh", "-c", f"echo {mark}; {COUNTER}")
    sh(hutch, "box", f"echo {mark} >/root/file; echo {mark} >/run/warm; sync")
    pid, before = count(hutch, "box")
    hutch.run("snapshot", "create", "--encrypt", "--name", "then", "box", env=key)
    file = tmp_path / "box.hutch"
    hutch.run("snapshot", "create", "--disk-only", "--name", "plain", "box")
    hutch.run("snapshot", "export", "--encrypt", "plain", str(file), env=key)
    hutch.run("snapshot", "rm", "plain")
    hutch.run("rm", "-f", "box")
    # Nothing is left of it but what is encrypted.
    (made,) = (hutch.home / "snapshots").iterdir()
    assert sorted(path.name for path in made.iterdir()) == ["sealed", "snapshot.json"]
    assert in_the_clear(mark, made) == []
    wait_until(lambda: not in_the_clear(mark, hutch.home / "layers"), what="its disk is gone")
    assert in_the_clear(mark, tmp_path) == []
    # Another key, none, or one changed bit: there is never a VM of it.
    for wrong in ({}, {"HUTCH_SNAPSHOT_KEY": "another key"}):
        assert b"(wrong_key)" in hutch.run("restore", "then", expect=125, env=wrong).stderr
    sealed = made / "sealed"
    whole = sealed.read_bytes()
    sealed.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    assert b"(snapshot_damaged)" in hutch.run("restore", "then", expect=125, env=key).stderr
    sealed.write_bytes(whole)
    assert hutch.json("ps", "-a") == []
    hutch.run("restore", "then", "here", env=key)
    again, counted = count(hutch, "here")
    assert (again, counted >= before) == (pid, True)
    assert sh(hutch, "here", "cat /root/file /run/warm; echo $TOKEN") == f"{mark}\n{mark}\n{mark}"
    assert hutch.run("logs", "here").text == mark
    hutch.run("rm", "-f", "here")
    # What is encrypted goes elsewhere as it is; an encrypted file is opened there.
    hutch.run("snapshot", "export", "then", str(tmp_path / "then.hutch"))
    assert in_the_clear(mark, tmp_path) == []
    assert elsewhere.json("snapshot", "import", str(tmp_path / "then.hutch"))["encrypted"]
    elsewhere.run("restore", "then", "there", env=key)
    assert count(elsewhere, "there")[0] == pid
    elsewhere.run("rm", "-f", "there")
    refused = elsewhere.run("snapshot", "import", str(file), expect=125)
    assert b"(wrong_key)" in refused.stderr
    assert elsewhere.run("snapshot", "import", str(file), env=key).text == "plain"
