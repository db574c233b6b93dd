"""`hutch snapshot`, `hutch restore` and `hutch fork` as processes."""

import json

from tests.unit.cli.conftest import Cli


def test_snapshots(hutch: Cli) -> None:
    hutch("create", "--name", "web", "busybox")
    assert hutch("snapshot", "create", "--name", "one", "web").stdout == b"one\n"
    taken = json.loads(
        hutch("snapshot", "create", "--json", "--disk-only", "--no-freeze", "web").stdout
    )
    assert taken["kind"] == "disk"
    assert b"(bad_request)" in hutch("snapshot", "create", "--no-freeze", "web", code=125).stderr
    lines = hutch("snapshot", "ls").stdout.splitlines()
    assert lines[0].split()[:3] == [b"NAME", b"ID", b"SANDBOX"]
    assert lines[1].split()[0] == b"one"
    assert json.loads(hutch("snapshots", "--json", "nosuch").stdout) == []
    (shown,) = json.loads(hutch("snapshot", "inspect", "one").stdout)
    assert shown["sandbox_name"] == "web"
    assert hutch("restore", "one", "again").stdout == b"again\n"
    assert json.loads(hutch("restore", "--json", "--disk-only", "one").stdout)["name"] == "restored"
    assert hutch("snapshot", "gc", "--keep", "1").stdout.splitlines()[0] == shown["id"].encode()
    assert json.loads(hutch("snapshot", "gc", "--json", "--keep", "0").stdout)["removed"] == [
        taken["id"]
    ]
    assert b"(snapshot_not_found)" in hutch("snapshot", "rm", "one", code=125).stderr


def test_forks(hutch: Cli) -> None:
    hutch("create", "--name", "src", "busybox")
    assert hutch("fork", "src", "left", "right").stdout == b"left\nright\n"
    assert len(json.loads(hutch("fork", "--json", "--count", "3", "src").stdout)["children"]) == 3
    done = hutch("fork", "src", "bad", "good", code=125)
    assert done.stdout == b"good\n"
    assert b"told to (no_capacity)" in done.stderr
    assert b"(sandbox_not_found)" in hutch("fork", "nosuch", code=125).stderr
