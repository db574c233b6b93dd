"""Snapshots as values, for tests that look at nothing but their names."""

from dataclasses import replace
from typing import Any

from hutch.models import SnapshotInfo, SnapshotKind


def snapshot(snapshot_id: str, name: str, **fields: Any) -> SnapshotInfo:
    """Return a snapshot of `sb_1` with this id and name, and `fields` as given."""
    info = SnapshotInfo(
        id=snapshot_id,
        name=name,
        kind=SnapshotKind.FULL,
        sandbox_id="sb_1",
        sandbox_name="web",
        image="busybox",
        image_id="sha256:00",
        created_at="2026-01-01T00:00:00.000Z",
        cpus=1,
        memory=1,
        disk=1,
        engine="qemu",
        engine_version="7.2",
        machine="microvm",
        accelerator="tcg",
        tsc_khz=1000,
    )
    return replace(info, **fields)
