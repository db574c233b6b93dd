"""The key of a template: everything that goes into a machine counts, and nothing else."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.engine.base import Accelerator, MachineType, Verdict
from hutch.engine.fake import FakeEngine
from hutch.images.base import Kernel, RootFs
from hutch.models import CpuInfo, TemplatePoint
from hutch.service import recipe as recipes
from hutch.service.recipe import Recipe, fits, fits_bare, is_stale, key_of
from hutch.settings import GIB, MIB, Settings


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    for name in ("root", "vmlinux", "initramfs", "base"):
        (tmp_path / name).write_bytes(name.encode())
    return Recipe(
        image="busybox",
        image_id="sha256:1",
        rootfs=RootFs(tmp_path / "root", "squashfs", 4),
        kernel=Kernel("k", "6.1", tmp_path / "vmlinux", tmp_path / "initramfs"),
        base=tmp_path / "base",
        verdict=Verdict(Accelerator.TCG, "", 2_000_000, "QEMU 7", {}),
        boards=(MachineType.MICROVM, MachineType.Q35),
        cpus=1,
        memory=512 * MIB,
        disk=10 * GIB,
        volumes=("/data",),
    )


def key(recipe: Recipe, engine: FakeEngine | None = None) -> str:
    return key_of(recipe, engine or FakeEngine()).digest


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": "sha256:2"},
        {"cpus": 2},
        {"memory": 256 * MIB},
        {"disk": GIB},
        {"volumes": ()},
        {"boards": (MachineType.Q35,)},
    ],
)
def test_each_part_counts(recipe: Recipe, change: dict[str, Any]) -> None:
    assert key(replace(recipe, **change)) != key(recipe)


@pytest.mark.parametrize(
    "change",
    [
        {"accelerator": Accelerator.KVM},
        {"tsc_khz": 2_000_001},
        {"engine_version": "QEMU 8"},
        {"cpu": CpuInfo("m", "v", ["a"])},
    ],
)
def test_the_hosts_verdict_counts(recipe: Recipe, change: dict[str, Any]) -> None:
    other = replace(recipe, verdict=replace(recipe.verdict, **change))
    assert key(other) != key(recipe)


def bare_key(recipe: Recipe) -> str:
    return key_of(recipe, FakeEngine(), TemplatePoint.BARE).digest


@pytest.mark.parametrize("change", [{"disk": GIB}, {"volumes": ()}, {"base": Path("/none")}])
def test_what_is_not_mounted_yet_does_not_count_for_a_bare_one(
    recipe: Recipe, change: dict[str, Any]
) -> None:
    assert bare_key(replace(recipe, **change)) == bare_key(recipe) != key(recipe)


@pytest.mark.parametrize("change", [{"image_id": "sha256:2"}, {"cpus": 2}, {"memory": 256 * MIB}])
def test_everything_else_counts_for_a_bare_one(recipe: Recipe, change: dict[str, Any]) -> None:
    assert bare_key(replace(recipe, **change)) != bare_key(recipe)


@pytest.mark.parametrize("name", ["root", "vmlinux", "initramfs", "base"])
def test_each_file_counts_by_its_time_and_size(recipe: Recipe, tmp_path: Path, name: str) -> None:
    engine = FakeEngine()
    before = key_of(recipe, engine)
    assert not is_stale(before, engine)
    os.utime(tmp_path / name, ns=(1, 1))
    assert key(recipe) != before.digest
    assert is_stale(before, engine)
    (tmp_path / name).unlink()
    assert is_stale(before, engine)


def test_file_system_program_layout_and_format_count(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key_of(recipe, FakeEngine())
    erofs = replace(recipe, rootfs=replace(recipe.rootfs, fstype="erofs"))
    assert key(erofs) != before.digest
    engine = FakeEngine()
    engine.program = "another build"
    assert key(recipe, engine) != before.digest
    assert is_stale(before, engine)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "program", "fake 1")
        patch.setattr(engine, "layout", lambda spec: "another device")
        assert key(recipe, engine) != before.digest
    monkeypatch.setattr(recipes, "FORMAT", recipes.FORMAT + 1)
    assert key(recipe) != before.digest


def test_names_and_places_do_not_count(recipe: Recipe, tmp_path: Path) -> None:
    before = key(recipe)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("root", "base"):
        (tmp_path / name).rename(moved / name)
    other = replace(
        recipe,
        image="localhost/busybox:latest",
        rootfs=replace(recipe.rootfs, path=moved / "root"),
        base=moved / "base",
        verdict=replace(recipe.verdict, reason="another word", rejected={"kvm": "no"}),
    )
    assert key(other) == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"cpus": 3}, False),
        ({"memory": 300 * MIB}, False),
        ({"disk": GIB}, False),
        ({"cpus": 8, "memory": 4 * GIB}, True),
    ],
)
def test_only_usual_sizes_have_templates(
    recipe: Recipe, settings: Settings, change: dict[str, Any], expected: bool
) -> None:
    assert fits(replace(recipe, **change), settings) is expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"disk": GIB}, True), ({"cpus": 3}, False), ({"memory": 300 * MIB}, False)],
)
def test_bare_ones_are_for_any_disk(recipe: Recipe, change: dict[str, Any], expected: bool) -> None:
    assert fits_bare(replace(recipe, **change)) is expected
