"""Verbs on several sandboxes: each reported, none stops the others."""

import json

import pytest

from tests.unit.cli.conftest import Cli


@pytest.fixture
def three(own_hutch: Cli) -> Cli:
    for name in ("one", "two", "three"):
        own_hutch("run", "-d", "--idle", "--name", name, "busybox")
    return own_hutch


def states(hutch: Cli) -> dict[str, str]:
    infos = json.loads(hutch("ps", "-a", "--json").stdout)
    return {info["name"]: info["state"] for info in infos}


def test_stop_goes_on_after_a_failure(three: Cli) -> None:
    done = three("stop", "one", "thre", "two", code=125)
    assert done.stdout == b"one\ntwo\n"
    assert b"(sandbox_not_found)" in done.stderr
    assert b"hint: did you mean three?" in done.stderr
    assert states(three) == {
        "box": "running",
        "one": "stopped",
        "two": "stopped",
        "three": "running",
    }


def test_json_lists_results(three: Cli) -> None:
    done = three("kill", "--json", "one", "nosuch", code=125)
    first, second = json.loads(done.stdout)
    assert (first["name"], first["ok"], first["result"]["state"]) == ("one", True, "stopped")
    assert (second["ok"], second["error"]["code"]) == (False, "sandbox_not_found")
    assert done.stderr == b""


def test_start_restart_rename_wait(three: Cli) -> None:
    three("stop", "one")
    three("start", "one")
    three("restart", "-t", "1s", "two")
    assert three("rename", "one", "uno").stdout == b""
    assert states(three)["uno"] == "running"
    three("kill", "uno")
    assert three("wait", "uno").stdout == b"137\n"
    assert json.loads(three("wait", "--json", "uno").stdout)[0]["exit"]["reason"] == "killed"
    three("wait", "-t", "100ms", "two", code=125)


def test_pause_park_resume(three: Cli) -> None:
    assert three("pause", "one", "two").stdout == b"one\ntwo\n"
    assert (states(three)["one"], states(three)["two"]) == ("paused", "paused")
    three("park", "two", "three")
    assert (states(three)["two"], states(three)["three"]) == ("parked", "parked")
    assert b"(wrong_state)" in three("pause", "two", code=125).stderr
    three("unpause", "one")
    three("resume", "two", "three")
    assert set(states(three).values()) == {"running"}


def test_create_is_idle_without_a_command(three: Cli) -> None:
    out = three("create", "--name", "quiet", "busybox").stdout.decode().strip()
    quiet, started, busy = json.loads(
        three(
            "inspect",
            out,
            json.loads(three("create", "--start", "--json", "busybox").stdout)["id"],
            three("create", "busybox", "true").stdout.decode().strip(),
        ).stdout
    )
    assert (quiet["state"], quiet["idle"]) == ("created", True)
    assert (started["state"], started["idle"]) == ("running", True)
    assert (busy["state"], busy["idle"], busy["command"]) == ("created", False, ["true"])


def test_rm_takes_names_or_all(three: Cli) -> None:
    assert b"names or --all" in three("rm", code=125).stderr
    assert b"names or --all" in three("rm", "--all", "one", code=125).stderr
    assert b"(wrong_state)" in three("rm", "one", code=125).stderr
    three("rm", "-f", "one")
    three("rm", "one", code=125)
    three("rm", "-f", "one")  # gone already: no failure with -f
    three("stop", "two")
    assert three("rm", "--all").stdout == b"two\n"
    three("rm", "--all", "-f")
    assert states(three) == {}


def test_one_name_given_twice_is_one(three: Cli) -> None:
    assert three("stop", "one", "one").stdout == b"one\n"
