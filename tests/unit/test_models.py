import json
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch import models
from hutch.models import (
    NAME_PATTERN,
    ErrorInfo,
    ExitStatus,
    PullPolicy,
    SandboxInfo,
    SandboxSpec,
    SandboxState,
    StopReason,
    TtySize,
    from_json,
    parse_timestamp,
    timestamp,
    to_json,
)
from hutch.networking import NetworkMode, NetworkPolicy
from hutch.reports import Event

VALUES = [cls for cls in vars(models).values() if isinstance(cls, type) and is_dataclass(cls)]


def info(**changes: object) -> SandboxInfo:
    body: dict[str, object] = {
        "id": "sb_1",
        "name": "one",
        "state": SandboxState.RUNNING,
        "image": "busybox",
        "image_id": "sha256:00",
        "command": ["sh"],
        "env": {"A": "1"},
        "workdir": "/",
        "user": "",
        "tty": False,
        "stdin": False,
        "idle": False,
        "cpus": 1,
        "memory": 1 << 29,
        "disk": 10 << 30,
        "timeout": 0.0,
        "auto_remove": False,
        "labels": {},
        "hostname": "one",
        "created_at": "2026-01-02T03:04:05.678Z",
    }
    return SandboxInfo(**(body | changes))  # type: ignore[arg-type]


def test_nested_values_cross_json_unchanged() -> None:
    sent = info(
        exit=ExitStatus(StopReason.OOM, 137, "out of memory"),
        error=ErrorInfo("boot_failed", "no answer"),
        exposed_ports=["80/tcp"],
    )
    wire = json.loads(json.dumps(to_json(sent)))
    assert wire["state"] == "running"
    assert wire["exit"] == {"reason": "oom", "code": 137, "message": "out of memory"}
    got = from_json(SandboxInfo, wire)
    assert got == sent
    assert type(got.state) is SandboxState
    assert got.exit is not None
    assert type(got.exit.reason) is StopReason


def test_missing_optional_fields_take_their_defaults() -> None:
    spec = from_json(SandboxSpec, {"image": "busybox"})
    assert spec == SandboxSpec("busybox")
    assert spec.pull is PullPolicy.MISSING


def test_a_newer_peer_may_send_more() -> None:
    assert from_json(TtySize, {"rows": 24, "cols": 80, "pixels": 7}) == TtySize(24, 80)


@pytest.mark.parametrize(
    ("cls", "body"),
    [
        (TtySize, {"rows": 24}),
        (TtySize, []),
        (TtySize, None),
        (SandboxSpec, {"image": "x", "pull": "sometimes"}),
        (SandboxSpec, {}),
    ],
)
def test_what_is_no_such_value_is_refused(cls: type[object], body: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        from_json(cls, body)


def test_a_sandbox_from_before_there_were_networks_has_none() -> None:
    body = to_json(info())
    del body["network"]
    assert from_json(SandboxInfo, body).network == NetworkPolicy(NetworkMode.NONE)


def test_values_are_frozen_and_slotted() -> None:
    assert VALUES
    for cls in VALUES:
        assert cls.__dataclass_params__.frozen, cls  # type: ignore[attr-defined]
        assert hasattr(cls, "__slots__"), cls
        assert cls.__doc__, cls


def test_defaults_are_not_shared() -> None:
    for cls in VALUES:
        for field in fields(cls):
            assert not isinstance(field.default, list | dict), (cls, field.name)


def test_plain_values_stay_and_tuples_become_lists() -> None:
    @dataclass(frozen=True, slots=True)
    class Odd:
        pair: tuple[int, ...]
        nothing: None
        table: dict[str, tuple[int, int]]

    assert to_json(Odd((1, 2), None, {"a": (3, 4)})) == {
        "pair": [1, 2],
        "nothing": None,
        "table": {"a": [3, 4]},
    }


def test_event_fields_are_passed_through() -> None:
    event = Event(1, timestamp(), "exec.exited", "sb_1", fields={"code": 3, "deep": {"a": [1]}})
    assert from_json(Event, json.loads(json.dumps(to_json(event)))) == event


@given(st.integers(0, 4_000_000_000_000))
def test_a_timestamp_keeps_its_milliseconds(milliseconds: int) -> None:
    text = timestamp(milliseconds / 1000)
    assert text.endswith("Z")
    assert abs(parse_timestamp(text) * 1000 - milliseconds) <= 1


def test_timestamps_sort_as_text() -> None:
    assert timestamp(1) == "1970-01-01T00:00:01.000Z"
    assert timestamp(1.5) < timestamp(1.501) < timestamp(2)
    now = datetime.now(UTC).timestamp()
    assert abs(parse_timestamp(timestamp()) - now) < 60


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01T00:00:00Z"])
def test_what_is_no_timestamp_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"month|isoformat"):
        parse_timestamp(text)


@pytest.mark.parametrize("name", ["a", "A1", "web-1", "a.b_c", "x" * 63])
def test_good_names(name: str) -> None:
    assert NAME_PATTERN.fullmatch(name)


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "a b", "a/b", "x" * 64, "a\n", "ä"])
def test_bad_names(name: str) -> None:
    assert not NAME_PATTERN.fullmatch(name)


def test_only_some_states_may_have_a_machine() -> None:
    at_rest = {
        SandboxState.CREATED,
        SandboxState.PARKED,
        SandboxState.STOPPED,
        SandboxState.FAILED,
    }
    with_machine = {state for state in SandboxState if state.has_machine}
    assert with_machine == set(SandboxState) - at_rest
