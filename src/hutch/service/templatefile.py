"""One template's directory: what is on record of it, the files that a clone needs, and their end.

A template is complete once its manifest is there, which is written last and removed first. Blocking
throughout. It must not know of other templates, nor who uses them.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from hutch.engine.base import Frozen, MachineType
from hutch.models import TemplatePoint, timestamp, to_json
from hutch.service.durable import sync, write_json
from hutch.service.parts import TEMPLATE_DISK
from hutch.service.recipe import FORMAT, Key, Recipe

MANIFEST: Final = "template.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is on record of a template, in its directory."""

    format: int
    id: str
    key: Key
    point: TemplatePoint
    image: str
    image_id: str
    kernel: str
    accelerator: str
    machine: MachineType
    cpus: int
    memory: int
    disk: int
    created_at: str
    build_seconds: float

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        point: TemplatePoint,
        key: Key,
        *,
        template_id: str,
        board: MachineType,
        seconds: float,
    ) -> Self:
        """Return that of a template which was just made, on `board`, in so many seconds."""
        return cls(
            format=FORMAT,
            id=template_id,
            key=key,
            point=point,
            image=recipe.image,
            image_id=recipe.image_id,
            kernel=recipe.kernel.name,
            accelerator=recipe.verdict.accelerator.value,
            machine=board,
            cpus=recipe.cpus,
            memory=recipe.memory,
            disk=recipe.disk,
            created_at=timestamp(),
            build_seconds=seconds,
        )


@dataclass(frozen=True, slots=True)
class Template:
    """A template that sandboxes can be cloned from."""

    manifest: Manifest
    directory: Path

    @property
    def id(self) -> str:
        """Its name: the first digits of the key, and some of its own."""
        return self.manifest.id

    @property
    def frozen(self) -> Frozen:
        """What the engine clones."""
        return Frozen(self.directory, self.manifest.memory)

    @property
    def disk(self) -> Path | None:
        """The disk that went with the memory, which nobody writes any more; None: it had none."""
        fresh = self.manifest.point is TemplatePoint.FRESH
        return self.directory / TEMPLATE_DISK if fresh else None

    @property
    def files(self) -> Sequence[Path]:
        """All that a clone needs."""
        files = [self.frozen.state, self.frozen.image]
        return files if self.disk is None else [*files, self.disk]


def write_manifest(template: Template) -> None:
    """Complete a template: from here on it exists, whatever happens. Raises OSError."""
    if template.disk is not None:
        sync(template.disk)
    write_json(template.directory / MANIFEST, to_json(template.manifest))


def directories_in(parent: Path, prefix: str) -> list[Path]:
    """Return the paths in a directory whose names begin so; none for one that is not there."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.name.startswith(prefix))


def remove_all(directory: Path) -> None:
    """Remove a template, its manifest first."""
    if directory.is_dir():
        (directory / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def remove_but_disk(directory: Path) -> None:
    """Remove a template but for the disk, which disks of sandboxes are based on."""
    for path in directories_in(directory, ""):
        if path.name != TEMPLATE_DISK:
            path.unlink(missing_ok=True)
