"""What a manifest from elsewhere may say, and what it may not."""

import copy
from typing import Any

import pytest

from hutch.errors import HutchError
from hutch.models import (
    SandboxInfo,
    SandboxSpec,
    SandboxState,
    SnapshotInfo,
    SnapshotKind,
    to_json,
)
from hutch.service.belief import believed, disk_sizes
from hutch.service.manifest import FORMAT, Manifest
from hutch.settings import MIB

IMAGE = "sha256:" + "ab" * 32


def body() -> dict[str, Any]:
    size = {"cpus": 1, "memory": 256 * MIB, "disk": 64 * MIB}
    info = SandboxInfo(
        id="sb_1",
        name="web",
        state=SandboxState.RUNNING,
        image="busybox",
        image_id=IMAGE,
        command=["sleep", "9"],
        env={"PATH": "/bin"},
        workdir="/",
        user="",
        tty=False,
        stdin=False,
        idle=False,
        timeout=0.0,
        auto_remove=False,
        labels={},
        hostname="web",
        created_at="then",
        **size,
    )
    snapshot = SnapshotInfo(
        id="sn_1",
        name="web-1",
        kind=SnapshotKind.DISK,
        sandbox_id="sb_1",
        sandbox_name="web",
        image="busybox",
        image_id=IMAGE,
        created_at="then",
        engine="qemu",
        engine_version="7.2",
        machine="microvm",
        accelerator="tcg",
        tsc_khz=None,
        **size,
    )
    manifest = Manifest(FORMAT, snapshot, SandboxSpec("busybox"), info, 1)
    return copy.deepcopy(dict(to_json(manifest)))


def test_a_usual_one_is_believed() -> None:
    assert believed(body()).info.stop_signal == "SIGTERM"
    assert 64 * MIB in disk_sizes(64 * MIB)
    assert 66 * MIB not in disk_sizes(64 * MIB)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("info", "stop_signal", "SIGNONE"),
        ("info", "stop_signal", "99"),
        ("info", "timeout", float("nan")),
        ("info", "timeout", float("inf")),
        ("info", "timeout", -1.0),
        ("info", "timeout", 1 << 2000),
        ("info", "idle_timeout", "x"),
        ("info", "idle_timeout", float("nan")),
        ("info", "boot_seconds", float("nan")),
        ("info", "workdir", "up/../and/away"),
        ("info", "env", {"A=B": "c"}),
        ("info", "command", ["a\0b"]),
        ("info", "command", ["\ud800"]),
        ("info", "memory", 512 * MIB),
        ("info", "exit", [[]]),
        ("spec", "stop_signal", "SIGNONE"),
        ("spec", "timeout", float("nan")),
        ("spec", "idle_timeout", -1.0),
        ("snapshot", "memory_bytes", -1),
        ("snapshot", "memory_bytes", 256 * MIB + 1),
        ("snapshot", "pause_seconds", float("inf")),
        ("snapshot", "kind", "full"),
        ("snapshot", "name", "../up"),
        ("snapshot", "labels", [1]),
    ],
)
def test_what_cannot_be_is_not(part: str, key: str, value: Any) -> None:
    hostile = body()
    hostile[part][key] = value
    with pytest.raises(HutchError) as caught:
        believed(hostile)
    assert caught.value.code == "snapshot_damaged"


@pytest.mark.parametrize("value", [None, [], "text", {}, {"format": FORMAT}])
def test_what_is_no_manifest_at_all(value: Any) -> None:
    with pytest.raises(HutchError) as caught:
        believed(value)
    assert caught.value.code == "snapshot_damaged"


def test_another_format_is_said_to_be_one() -> None:
    with pytest.raises(HutchError) as caught:
        believed(body() | {"format": FORMAT - 1})
    assert caught.value.code == "snapshot_incompatible"
