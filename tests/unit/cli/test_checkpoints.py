"""`hutch checkpoint`, `hutch checkpoints` and `hutch undo` as processes."""

import json

from tests.unit.cli.conftest import Cli


def test_a_past_of_its_own(hutch: Cli) -> None:
    hutch("create", "--name", "past", "busybox")
    name = hutch("checkpoint", "-m", "it works", "past").stdout.strip()
    second = json.loads(hutch("checkpoint", "--json", "past").stdout)
    lines = hutch("checkpoints", "past").stdout.splitlines()
    assert lines[0].split()[:3] == [b"NUMBER", b"ID", b"NAME"]
    assert [line.split()[0] for line in lines[1:]] == [b"1", b"2"]
    assert name in lines[2]
    assert lines[2].endswith(b"it works")
    listed = json.loads(hutch("checkpoints", "--json", "past").stdout)
    assert [each["number"] for each in listed] == [1, 2]
    assert hutch("undo", "past").stdout.strip() == second["name"].encode()
    back = json.loads(hutch("undo", "--json", "past", "2").stdout)
    assert back["undone_to"] == listed[1]["snapshot"]["id"]
    assert hutch("undo", "--to", second["id"], "past").stdout.strip() == second["name"].encode()
    assert b"(checkpoint_not_found)" in hutch("undo", "past", "9", code=125).stderr
    for wrong in (("past", "0"), ("--to", "x", "past", "1")):
        assert b"(bad_request)" in hutch("undo", *wrong, code=125).stderr
    names = [each["name"] for each in json.loads(hutch("snapshots", "--json", "past").stdout)]
    assert names == []
    assert len(hutch("snapshot", "ls", "--checkpoints", "past").stdout.splitlines()) == 3


def test_two_moments(hutch: Cli) -> None:
    done = hutch("diff", "web@1", "web", code=1)
    assert done.stdout.splitlines() == [b"+ /d/", b"- /f?", b"- process 7 (root): sleep 1000"]
    assert hutch("diff", "web", "web").stdout == b""
    part = hutch("diff", "web", code=1)
    assert b"more files" in part.stderr
    assert json.loads(hutch("diff", "--json", "web", code=1).stdout)["files"][0]["type"] == "dir"
    assert b"(sandbox_not_found)" in hutch("diff", "nosuch", code=125).stderr
