"""`hutch pool` as a process."""

import json

from tests.unit.cli.conftest import Cli


def test_verbs(hutch: Cli) -> None:
    pool_id = hutch("pool", "warm", "--size", "3", "-m", "1g", "busybox").stdout.strip()
    warmed = json.loads(hutch("pool", "warm", "--json", "--cpus", "2", "debian").stdout)
    assert (warmed["image"], warmed["cpus"], warmed["ready"]) == ("debian", 2, 1)
    lines = hutch("pool", "status").stdout.splitlines()
    assert lines[0].split()[:3] == [b"ID", b"IMAGE", b"CPUS"]
    assert lines[1].split()[:7] == [pool_id, b"busybox", b"1", b"1", b"GiB", b"3", b"3"]
    known = [info["id"] for info in json.loads(hutch("pool", "ls", "--json").stdout)]
    assert known == [pool_id.decode(), warmed["id"]]
    assert hutch("pool", "drain", "busybox").stdout.strip() == pool_id
    drained = json.loads(hutch("pool", "drain", "--all", "--json").stdout)
    assert drained["removed"] == [warmed["id"]]


def test_what_fails_is_told(hutch: Cli) -> None:
    pool_id = hutch("pool", "warm", "--no-wait", "busybox").stdout.strip()
    done = hutch("pool", "status")
    assert pool_id in done.stdout
    assert done.stderr == pool_id + b": told to (no_capacity)\n"
    hutch("pool", "drain", "--all")
    assert b"(bad_size)" in hutch("pool", "warm", "--size", "0", "busybox", code=125).stderr
    assert b"(pool_not_found)" in hutch("pool", "drain", "debian", code=125).stderr
    for words in ([], ["--all", "busybox"]):
        assert b"either an image or --all" in hutch("pool", "drain", *words, code=125).stderr
