"""Snapshots whose files are not what they were: refused, and nothing is started for them."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.service.manifest import FORMAT, Manifest, read_manifest, write_manifest
from tests.fault.crash import consistent, content, same_content
from tests.harness.hutch import Hutch

Damage = Callable[[Path], None]


def shorter(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flipped(path: Path) -> None:
    """Change one bit of what is no hole."""
    with path.open("r+b") as file:
        start = os.lseek(file.fileno(), 0, os.SEEK_DATA)
        file.seek(start + (os.lseek(file.fileno(), start, os.SEEK_HOLE) - start) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


def other(path: Path) -> None:
    path.write_text("[1]")


def replaced(change: Callable[[Manifest], Manifest]) -> Damage:
    """Have another manifest, as another host or version of Hutch may have written it."""

    def write(path: Path) -> None:
        write_manifest(path.parent, change(read_manifest(path.parent, "then")))

    return write


def changed(path: Path) -> None:
    body = json.loads(path.read_bytes())
    body["generation"] += 1
    path.write_text(json.dumps(body))


def other_version(manifest: Manifest) -> Manifest:
    return replace(manifest, snapshot=replace(manifest.snapshot, engine_version="1.2.3"))


def other_build(manifest: Manifest) -> Manifest:
    assert manifest.needs is not None
    return replace(manifest, needs=replace(manifest.needs, program="other"))


def other_cpu(manifest: Manifest) -> Manifest:
    cpu = manifest.snapshot.cpu
    assert cpu is not None
    cpu = replace(cpu, features=[*cpu.features, "zmm99"])
    return replace(manifest, snapshot=replace(manifest.snapshot, cpu=cpu))


def more_memory(manifest: Manifest) -> Manifest:
    return replace(manifest, info=replace(manifest.info, memory=manifest.info.memory * 2))


CASES: dict[str, tuple[str, Damage, str]] = {
    "a memory that is shorter": ("memory", shorter, "snapshot_damaged"),
    "a memory that is gone": ("memory", Path.unlink, "snapshot_damaged"),
    "a bit of the memory": ("memory", flipped, "snapshot_damaged"),
    "a state that is shorter": ("state", shorter, "snapshot_damaged"),
    "no state": ("state", empty, "snapshot_damaged"),
    "a bit of the state": ("state", flipped, "snapshot_damaged"),
    "a disk that is shorter": ("../../layers/*", shorter, "snapshot_damaged"),
    "an empty disk": ("../../layers/*", empty, "snapshot_damaged"),
    "a disk that is gone": ("../../layers/*", Path.unlink, "snapshot_damaged"),
    "a bit of the disk": ("../../layers/*", flipped, "snapshot_damaged"),
    "a template's disk that is shorter": (
        "../../templates/{template}/disk.qcow2",
        shorter,
        "snapshot_damaged",
    ),
    "a manifest that is shorter": ("snapshot.json", shorter, "snapshot_damaged"),
    "an empty manifest": ("snapshot.json", empty, "snapshot_damaged"),
    "a manifest that is gone": ("snapshot.json", Path.unlink, "snapshot_damaged"),
    "a manifest of something else": ("snapshot.json", other, "snapshot_damaged"),
    "a manifest that was changed": ("snapshot.json", changed, "snapshot_damaged"),
    "a manifest without needs": (
        "snapshot.json",
        replaced(lambda manifest: replace(manifest, needs=None)),
        "snapshot_damaged",
    ),
    "a manifest without digests": (
        "snapshot.json",
        replaced(lambda manifest: replace(manifest, digests={})),
        "snapshot_damaged",
    ),
    "another version of Hutch": (
        "snapshot.json",
        replaced(lambda manifest: replace(manifest, format=FORMAT + 1)),
        "snapshot_incompatible",
    ),
    "another version of the engine": (
        "snapshot.json",
        replaced(other_version),
        "snapshot_incompatible",
    ),
    "another build of the engine": (
        "snapshot.json",
        replaced(other_build),
        "snapshot_incompatible",
    ),
    "a CPU that can do more": ("snapshot.json", replaced(other_cpu), "snapshot_incompatible"),
    "more memory": ("snapshot.json", replaced(more_memory), "snapshot_incompatible"),
}


@pytest.fixture(scope="module")
def snapshot(_module_hutch: Hutch) -> Path:
    """The directory of a snapshot `then`, whose source is gone."""
    _module_hutch.run("run", "-d", "--idle", "--name", "source", "-m", "128m", "busybox")
    _module_hutch.run("exec", "source", "sh", "-c", "echo kept >/root/file")
    taken = _module_hutch.json("snapshot", "create", "--name", "then", "source")
    _module_hutch.run("rm", "-f", "source")
    return _module_hutch.home / "snapshots" / str(taken["id"])


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused(shared: Hutch, snapshot: Path, tmp_path: Path, case: str) -> None:
    name, damage, code = CASES[case]
    # The template of that size is this home's own; the files of the others are not.
    template = read_manifest(snapshot, "then").info.template
    (victim,) = snapshot.glob(name.format(template=template))
    victim = victim.resolve()
    before = content(shared)
    whole = tmp_path / "whole"
    subprocess.run(["cp", "--sparse=always", "--preserve", victim, whole], check=True)
    damage(victim)
    try:
        refused = shared.run("--json", "restore", "then", "new", expect=125)
        assert refused.json["error"]["code"] == code, refused
        assert refused.json["error"]["hint"], refused
        same_content(shared, before, before - {str(victim.relative_to(shared.home))}, when=case)
        assert shared.json("ps", "-a") == []
        consistent(shared)
    finally:
        victim.unlink(missing_ok=True)
        subprocess.run(["cp", "--sparse=always", "--preserve", whole, victim], check=True)


def test_what_is_whole_again_is_restored(shared: Hutch, snapshot: Path) -> None:
    shared.run("daemon", "stop")
    shared.run("restore", "then", "new")
    assert shared.run("exec", "new", "cat", "/root/file").text == "kept"
    shared.run("rm", "-f", "new")
