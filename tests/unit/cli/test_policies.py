"""`hutch policy` as a process."""

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Cli

WORK = """
mode = "deny"
allow = ["example.com", "*.github.io"]
allow_host = [5432]

[presets.ci]
extends = "work"
deny = ["www.example.com"]
allow = ["www.example.com:22"]
"""


@pytest.fixture
def work(short_tmp: Path) -> Cli:
    """A command whose home holds two policies, and no daemon."""
    cli = Cli(short_tmp)
    (cli.home / "policies").mkdir(parents=True)
    (cli.home / "policies/work.toml").write_text(WORK)
    (cli.home / "policies/broken.toml").write_text("mode =")
    return cli


def test_ls(work: Cli) -> None:
    done = work("policy", "ls")
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    assert lines[0][:3] == ["NAME", "MODE", "ALLOW"]
    assert [line[0] for line in lines[1:]] == [
        *("public", "deny", "open", "none", "offline", "broken", "work", "work#ci")
    ]
    assert lines[7][1:6] == ["deny", "2", "0", "5432", "no"]
    assert b"broken: " in done.stderr
    assert b"it is no TOML" in done.stderr
    listed = json.loads(work("policy", "ls", "--json").stdout)
    assert listed[-1]["reference"] == "work#ci"
    assert listed[-1]["policy"]["allow"] == ["example.com", "*.github.io", "www.example.com:22"]


def test_show(work: Cli) -> None:
    done = work("policy", "show", "work#ci")
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    assert lines == [
        ["mode:", "deny"],
        ["allow:", "example.com"],
        ["allow:", "*.github.io"],
        ["allow:", "www.example.com:22"],
        ["deny:", "www.example.com"],
        ["host", "port:", "5432"],
        ["LAN:", "no"],
    ]
    assert b"www.example.com:22 has no effect: www.example.com denies it" in done.stderr
    assert b"anybody can have a name below github.io" in done.stderr
    assert json.loads(work("policy", "show", "--json", "open").stdout)["mode"] == "open"
    assert b"(policy_not_found)" in work("policy", "show", "nothing", code=125).stderr
    assert b"(bad_policy)" in work("policy", "show", "broken", code=125).stderr


def test_check(work: Cli) -> None:
    done = work("policy", "check", "work", "https://example.com/", "10.0.0.1:22", code=1)
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    assert lines[0] == ["TARGET", "PORT", "VERDICT", "REASON", "RULE", "WHY"]
    assert lines[1][:5] == ["https://example.com/", "443", "allowed", "allowed", "example.com"]
    assert lines[2][:5] == ["10.0.0.1:22", "22", "denied", "address_lan", "-"]
    assert b"10.0.0.1:22: allow it with `--allow 10.0.0.1:22`" in done.stderr
    assert b"warning: *.github.io: anybody" in done.stderr
    assert work("policy", "check", "work").stdout == b"work is right: deny, 2 rules allow, 0 deny\n"


def test_check_with_flags_and_files(work: Cli) -> None:
    path = work.base / "mine.json"
    path.write_text('{"extends": "work", "allow": ["10.1.0.0/16"]}')
    asked = json.loads(work("policy", "check", "--json", str(path), "10.1.0.1:22").stdout)
    assert asked["policy"]["preset"] == str(path)
    assert asked["warnings"]
    assert asked["targets"] == [
        {
            "target": "10.1.0.1:22",
            "name": None,
            "address": "10.1.0.1",
            "port": 22,
            "allowed": True,
            "reason": "allowed",
            "rule": "10.1.0.0/16",
            "text": "10.1.0.1:22 is allowed by 10.1.0.0/16",
            "hint": None,
        }
    ]
    work("policy", "check", "--allow", "*.example.com", "www.example.com")
    work("policy", "check", "--allow", "*.example.com", "example.com", code=1)
    work("policy", "check", "example.com:12345")
    work("policy", "check", "--net", "none", "example.com", code=1)
    work("policy", "check", "--policy", "work", "example.com")


def test_what_fails_is_told(work: Cli) -> None:
    assert b"(policy_not_found)" in work("policy", "check", "wrok", "a.example", code=125).stderr
    assert b"(policy_not_found)" in work("policy", "check", "./no", "a.example", code=125).stderr
    assert b"(bad_request)" in work("policy", "check", "work", "127.1", code=125).stderr
    assert b"(bad_policy)" in work("policy", "check", "--allow", "10.0.0.1/8", code=125).stderr
    assert not (work.base / "run").exists(), "no daemon was started"
