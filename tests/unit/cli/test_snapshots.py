"""`hutch snapshot`, `hutch restore` and `hutch fork` as processes."""

import json
from pathlib import Path

from tests.unit.cli.conftest import Cli


def test_snapshots(own_hutch: Cli) -> None:
    hutch = own_hutch
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


def test_snapshots_travel_as_files(hutch: Cli, tmp_path: Path) -> None:
    hutch("create", "--name", "goes", "busybox")
    hutch("snapshot", "create", "--name", "g1", "goes")
    file = tmp_path / "g1.hutch"
    assert hutch("snapshot", "export", "g1", str(file)).stdout == b""
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"hutch g1", 0o600)
    assert hutch("snapshot", "export", "g1", "-").stdout == b"hutch g1"
    done = json.loads(hutch("snapshot", "export", "--json", "g1", str(file)).stdout)
    assert done == {"snapshot": "g1", "file": str(file), "bytes": 8}
    assert hutch("snapshot", "import", "--name", "two", str(file)).stdout == b"two\n"
    assert json.loads(hutch("snapshot", "import", "--json", str(file)).stdout)["name"] == "g1-1"
    nowhere = tmp_path / "none" / "x"
    for verb in (("export", "g1", str(nowhere)), ("import", str(nowhere))):
        assert b"No such file" in hutch("snapshot", *verb, code=125).stderr
    assert b"(snapshot_not_found)" in hutch("snapshot", "export", "no", str(file), code=125).stderr
    assert file.read_bytes() == b"hutch g1"
    (tmp_path / "bad").write_bytes(b"else")
    refused = hutch("snapshot", "import", str(tmp_path / "bad"), code=125)
    assert b"(snapshot_damaged)" in refused.stderr


def test_encrypted_files_need_the_key(hutch: Cli, tmp_path: Path) -> None:
    hutch("create", "--name", "secret", "busybox")
    hutch("snapshot", "create", "--name", "s1", "secret")
    file, key = tmp_path / "s1.hutch", tmp_path / "key"
    key.write_text("a key of mine\n")
    export = ("snapshot", "export", "--encrypt")
    assert b"(wrong_key)" in hutch(*export, "s1", str(file), code=125).stderr
    hutch(*export, "--key-file", str(key), "s1", str(file))
    assert file.read_bytes() == b"sealed s1"
    useless = hutch("snapshot", "export", "--key-file", str(key), "s1", str(file), code=125)
    assert b"(bad_request)" in useless.stderr
    assert b"(wrong_key)" in hutch("snapshot", "import", str(file), code=125).stderr
    load = ("snapshot", "import", "--name", "came", "--key-file", str(key))
    assert hutch(*load, str(file)).stdout == b"came\n"
    key.write_text("short\n")
    assert b"8 to 4096 bytes" in hutch(*export, "--key-file", str(key), "s1", "-", code=125).stderr


def test_encrypted_snapshots_need_the_key(hutch: Cli, tmp_path: Path) -> None:
    hutch("create", "--name", "safe", "busybox")
    key = tmp_path / "key"
    key.write_text("a key of mine\n")
    create = ("snapshot", "create", "--encrypt", "--name")
    assert b"(wrong_key)" in hutch(*create, "e1", "safe", code=125).stderr
    assert hutch(*create, "e1", "--key-file", str(key), "safe").stdout == b"e1\n"
    head, line = hutch("snapshot", "ls", "safe").stdout.splitlines()
    column = head.index(b"ENCRYPTED")
    assert line[column:].split()[0] == b"yes"
    assert b"(wrong_key)" in hutch("restore", "e1", "open", code=125).stderr
    assert hutch("restore", "--key-file", str(key), "e1", "open").stdout == b"open\n"
