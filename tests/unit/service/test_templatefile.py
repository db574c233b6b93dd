"""A template's directory: whole once its manifest is there, and taken apart in the right order."""

import json
from pathlib import Path

import pytest

from hutch.engine.base import Accelerator, MachineType, Verdict
from hutch.images.base import Kernel, RootFs
from hutch.models import TemplatePoint, from_json
from hutch.service import templatefile
from hutch.service.recipe import Key, Recipe
from hutch.service.templatefile import MANIFEST, Manifest, Template, write_manifest

NOWHERE = Path("/none")
RECIPE = Recipe(
    image="busybox",
    image_id="sha256:1",
    rootfs=RootFs(NOWHERE, "squashfs", 4),
    kernel=Kernel("k", "6.1", NOWHERE, NOWHERE),
    base=NOWHERE,
    verdict=Verdict(Accelerator.TCG, "", 2_000_000, "QEMU 7", {}),
    boards=(MachineType.MICROVM,),
    cpus=1,
    memory=512 << 20,
    disk=10 << 30,
    volumes=(),
)


def template(directory: Path, point: TemplatePoint) -> Template:
    manifest = Manifest.of(
        RECIPE,
        point,
        Key("0" * 64, "qemu", {"/root": "root 1 2"}),
        template_id="000000000000-abcdef",
        board=MachineType.MICROVM,
        seconds=2.5,
    )
    return Template(manifest, directory)


@pytest.mark.parametrize("point", list(TemplatePoint))
def test_what_is_written_is_read_again(tmp_path: Path, point: TemplatePoint) -> None:
    made = template(tmp_path, point)
    if made.disk is not None:
        made.disk.touch()
    write_manifest(made)
    body = json.loads((tmp_path / MANIFEST).read_bytes())
    assert from_json(Manifest, body) == made.manifest
    assert {path.name for path in tmp_path.iterdir()} <= {MANIFEST, "disk.qcow2"}


def test_only_a_fresh_one_has_a_disk(tmp_path: Path) -> None:
    bare, fresh = (template(tmp_path, point) for point in TemplatePoint)
    assert bare.disk is None
    assert [path.name for path in bare.files] == ["state", "memory"]
    assert [path.name for path in fresh.files] == ["state", "memory", "disk.qcow2"]
    with pytest.raises(FileNotFoundError):
        write_manifest(fresh)
    assert not (tmp_path / MANIFEST).exists()


def test_removing_all_but_the_disk(tmp_path: Path) -> None:
    for name in ("disk.qcow2", "memory", "state", MANIFEST):
        (tmp_path / name).touch()
    templatefile.remove_but_disk(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["disk.qcow2"]
    templatefile.remove_but_disk(tmp_path / "none")


def test_removing_all(tmp_path: Path) -> None:
    directory = tmp_path / "template"
    directory.mkdir()
    (directory / MANIFEST).touch()
    templatefile.remove_all(directory)
    assert not directory.exists()
    templatefile.remove_all(directory)
