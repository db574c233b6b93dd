"""`ps` and `inspect`: what is listed and how."""

import json
import time

import pytest

from hutch.cli.listing import limits, parse_filters, status
from hutch.errors import InvalidInput
from hutch.models import (
    ErrorInfo,
    ExitStatus,
    IdleAction,
    SandboxInfo,
    SandboxState,
    StopReason,
    timestamp,
)
from tests.unit.cli.conftest import Cli


def info(**fields: object) -> SandboxInfo:
    values: dict[str, object] = dict.fromkeys(
        ("id", "name", "image", "image_id", "workdir", "user", "hostname"), "x"
    )
    values |= dict.fromkeys(("tty", "stdin", "idle", "auto_remove"), False)
    values |= dict.fromkeys(("cpus", "memory", "disk", "timeout"), 1)
    values |= {"command": [], "env": {}, "labels": {}, "created_at": timestamp()}
    return SandboxInfo(**(values | fields))  # type: ignore[arg-type]


def test_filters_become_the_query() -> None:
    filters = ("status=stopped", "label=a=b", "label=c", "name=we", "image=busybox")
    assert parse_filters(filters) == {
        "state": ["stopped"],
        "label": ["a=b", "c"],
        "name": "we",
        "image": "busybox",
        "all": True,
    }


@pytest.mark.parametrize("text", ["color=red", "status", "status=", "status=asleep"])
def test_wrong_filters(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_filters((text,))


def test_a_filter_twice() -> None:
    with pytest.raises(InvalidInput, match="once"):
        parse_filters(("name=a", "name=b"))


def test_status_says_what_matters() -> None:
    now = timestamp()
    assert status(info(state=SandboxState.RUNNING, started_at=now)) == "running 0s"
    ended = ExitStatus(StopReason.EXITED, 3)
    stopped = info(state=SandboxState.STOPPED, exit=ended, ended_at=now)
    assert status(stopped) == "stopped (exited 3) 0s"
    failed = info(state=SandboxState.FAILED, error=ErrorInfo("boot_failed", "…"))
    assert status(failed) == "failed (boot_failed)"
    assert status(info(state=SandboxState.CREATED)) == "created"


def test_limits_say_what_will_happen_by_itself() -> None:
    assert limits(info(state=SandboxState.RUNNING)) == "-"
    soon = timestamp(time.time() + 90.5)
    both = info(
        state=SandboxState.PAUSED,
        timeout_at=soon,
        idle_timeout=600.0,
        idle_action=IdleAction.PARK,
    )
    assert limits(both) == "stop in 1m 30s, park if idle 10m"


def test_ps_quiet_filter_and_escape(own_hutch: Cli) -> None:
    own_hutch("run", "-d", "--idle", "--name", "web", "-l", "team=a", "busybox")
    own_hutch("run", "-d", "--name", "evil", "busybox", "hang", "\x1b[31mred\x07")
    listed = own_hutch("ps", "--no-trunc").stdout
    assert b"\x1b" not in listed
    assert b"\\x1b[31mred\\x07" in listed
    ids = own_hutch("ps", "-q", "--filter", "label=team=a").stdout.split()
    assert len(ids) == 1
    assert own_hutch("ls", "-q", "-f", "name=web").stdout.split() == ids
    assert json.loads(own_hutch("ps", "-q", "--json", "-f", "name=web").stdout)[0].encode() in ids


def test_ps_with_sizes(hutch: Cli) -> None:
    lines = hutch("ps", "-s").stdout.decode().splitlines()
    assert lines[0].split()[-4:] == ["MEM", "ON", "DISK", "COMMAND"]
    assert "9 MiB" in lines[1]
    assert "11 MiB" in lines[1]
    assert "ON DISK" not in hutch("ps").stdout.decode()
    listed = json.loads(hutch("ps", "--size", "--json").stdout)
    assert listed[0]["usage"]["memory"] == 9 << 20
    assert "usage" not in json.loads(hutch("ps", "--json").stdout)[0]


def test_inspect_several(hutch: Cli) -> None:
    assert json.loads(hutch("inspect", "box").stdout)[0]["name"] == "box"
    done = hutch("inspect", "box", "nosuch", code=125)
    assert len(json.loads(done.stdout)) == 1
    assert b"(sandbox_not_found)" in done.stderr
    assert "error" in json.loads(hutch("inspect", "--json", "box", "nosuch", code=125).stdout)
