"""`hutch network` and the flags of `run` and `create`, as processes."""

import json
from pathlib import Path

from tests.unit.cli.conftest import Cli


def policy(hutch: Cli, name: str) -> dict[str, object]:
    (info,) = json.loads(hutch("inspect", name).stdout)
    found: dict[str, object] = info["network"]
    return found


def test_show_and_update(hutch: Cli) -> None:
    hutch("create", "--name", "web", "busybox")
    shown = hutch("network", "show", "web").stdout.decode()
    assert "mode:         public" in shown
    assert "1 open, 0 in all" in shown
    done = hutch(
        *("network", "update", "--net", "deny", "--allow", "a.example.com", "--deny", "1.2.3.4"),
        *("--allow-host", "3000", "--allow-lan", "web"),
    )
    assert b"a.example.com" in done.stdout
    assert done.stderr == b"warning: a warning\n1 connections were ended\n"
    hutch("network", "update", "--remove", "a.example.com", "--close-host", "3000", "web")
    hutch("network", "update", "--no-allow-lan", "web")
    answer = json.loads(hutch("network", "show", "--json", "web").stdout)
    assert answer["policy"] == {
        "mode": "deny",
        "allow": [],
        "deny": ["1.2.3.4"],
        "allow_host": [],
        "allow_lan": False,
        "preset": None,
    }
    changed = json.loads(hutch("network", "update", "--json", "--net", "open", "web").stdout)
    assert changed["network"]["policy"]["mode"] == "open"


def test_what_cannot_be(hutch: Cli) -> None:
    hutch("create", "--name", "wrong", "busybox")
    assert b"nothing is to change" in hutch("network", "update", "wrong", code=125).stderr
    both = hutch("network", "update", "--allow-lan", "--no-allow-lan", "wrong", code=125)
    assert b"exclude each other" in both.stderr
    bad = hutch("network", "update", "--allow", "bad", "wrong", code=125)
    assert b"(bad_policy)" in bad.stderr
    assert b"(sandbox_not_found)" in hutch("network", "show", "no", code=125).stderr


def test_a_policy_from_a_file(hutch: Cli, tmp_path: Path) -> None:
    file = tmp_path / "ci.toml"
    file.write_text('mode = "deny"\nallow = ["a.example.com"]\n')
    hutch("create", "--name", "filed", "--policy", str(file), "--deny", "1.2.3.4", "busybox")
    found = policy(hutch, "filed")
    assert (found["mode"], found["allow"], found["deny"]) == (
        "deny",
        ["a.example.com"],
        ["1.2.3.4"],
    )
    hutch("network", "update", "--policy", "open", "filed")
    assert policy(hutch, "filed")["mode"] == "open"
    missing = hutch("create", "--policy", "nosuch", "busybox", code=125)
    assert b"(policy_not_found)" in missing.stderr


def test_the_log(hutch: Cli) -> None:
    hutch("create", "--name", "logged", "busybox")
    first, second = hutch("network", "log", "logged").stdout.decode().splitlines()
    assert "allowed tls a.example.com (5.9.0.1):443 allowed rule=*.com" in first
    assert "DENIED  dns b" in second
    assert "\x1b" not in second
    (line,) = hutch("network", "log", "--denied", "--json", "logged").stdout.splitlines()
    assert json.loads(line)["number"] == 2
    assert hutch("network", "log", "--tail", "0", "logged").stdout == b""


def test_connections(hutch: Cli) -> None:
    hutch("create", "--name", "open", "busybox")
    lines = hutch("network", "connections", "open").stdout.splitlines()
    assert lines[1].split()[:4] == [b"7", b"open", b"a.example.com:443", b"5.9.0.1"]
    (one,) = json.loads(hutch("network", "connections", "--json", "open").stdout)
    assert one["rule"] == "*.com"


def test_run_passes_a_policy_on(hutch: Cli) -> None:
    hutch("run", "-d", "--name", "one", "--net", "none", "busybox", "hang")
    assert policy(hutch, "one")["mode"] == "none"
    hutch("run", "-d", "--name", "two", "--allow", "a.example.com", "busybox", "hang")
    assert (policy(hutch, "two")["mode"], policy(hutch, "two")["allow"]) == (
        "deny",
        ["a.example.com"],
    )
    hutch("run", "-d", "--name", "three", "busybox", "hang")
    assert policy(hutch, "three")["mode"] == "public"


def test_ps_tells_of_it(hutch: Cli) -> None:
    hutch("create", "--name", "listed", "--allow", "a.example.com", "--deny", "1.2.3.4", "busybox")
    hutch("create", "--name", "plain", "busybox")
    lines = hutch("ps", "-a", "--no-trunc").stdout.decode().splitlines()
    assert "NETWORK" in lines[0]
    assert "deny + 2 rules" in next(line for line in lines if " listed " in line)
    assert "  public  " in next(line for line in lines if " plain " in line)
