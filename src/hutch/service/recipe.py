"""What a start is made of, and the key that a template for it goes by.

The key stands for everything that went into a frozen machine: two starts of one key can be clones
of one machine, and anything else that changes gives another key. It must not know of templates'
places nor of their lives.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hutch.engine.base import ANY_TAP, BootFiles, Drive, Engine, MachineSpec, MachineType, Verdict
from hutch.images.base import Kernel, RootFs
from hutch.models import TemplatePoint, to_json
from hutch.settings import GIB, MIB, Settings

FORMAT: Final = 6
"""Part of each key: raised when what a template's directory holds, or what is done before a
machine is frozen, changes."""

CPUS: Final = frozenset({1, 2, 4, 8})
MEMORY: Final = frozenset({128 * MIB, 256 * MIB, 512 * MIB, GIB, 2 * GIB, 4 * GIB})

ROOT_SERIAL: Final = "hutch-root"
DISK_SERIAL: Final = "hutch-disk"


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides how a freshly started machine comes out, before it has an identity.

    `base` is the empty disk of `disk` bytes, `boards` are those that are tried, `network`
    is whether it has a TAP. Sizes are bytes.
    """

    image: str
    image_id: str
    rootfs: RootFs
    kernel: Kernel
    base: Path
    verdict: Verdict
    boards: Sequence[MachineType]
    cpus: int
    memory: int
    disk: int
    volumes: Sequence[str]
    network: bool = False

    def files(self, point: TemplatePoint) -> Sequence[Path]:
        """Return the files that have gone into the machine at a point."""
        files = (self.rootfs.path, self.kernel.vmlinux, self.kernel.initramfs)
        return files if point is TemplatePoint.BARE else (*files, self.base)


@dataclass(frozen=True, slots=True)
class Key:
    """A recipe's key, and what of it can be looked at again later: whether it is stale."""

    digest: str
    program: str
    files: Mapping[str, str]


def fits(recipe: Recipe, settings: Settings) -> bool:
    """Tell whether there may be a fresh template of a recipe: only for a few usual sizes."""
    return fits_bare(recipe) and recipe.disk == whole(settings.disk)


def fits_bare(recipe: Recipe) -> bool:
    """Tell whether there may be a bare template of a recipe, whatever the size of its disk."""
    return recipe.cpus in CPUS and recipe.memory in MEMORY


def whole(size: int) -> int:
    """Return a size in whole MiB, as sandboxes have it."""
    return -(-size // MIB) * MIB


def machine_spec(
    recipe: Recipe,
    *,
    vm_id: str,
    directory: Path,
    console_log: Path,
    disk: Path,
    uid: int | None,
    layers: Sequence[Path] = (),
) -> MachineSpec:
    """Return the VM of a recipe, on the first of its boards; `layers` are between disk and base."""
    return MachineSpec(
        id=vm_id,
        boot=BootFiles(recipe.kernel.vmlinux, recipe.kernel.initramfs),
        cpus=recipe.cpus,
        memory=recipe.memory,
        drives=[
            Drive(ROOT_SERIAL, recipe.rootfs.path, read_only=True),
            Drive(DISK_SERIAL, disk, "qcow2", backing=recipe.base, layers=tuple(layers)),
        ],
        directory=directory,
        console_log=console_log,
        machine=recipe.boards[0],
        accelerator=recipe.verdict.accelerator,
        tsc_khz=recipe.verdict.tsc_khz,
        uid=uid,
        tap=ANY_TAP if recipe.network else None,
    )


def key_of(recipe: Recipe, engine: Engine, point: TemplatePoint = TemplatePoint.FRESH) -> Key:
    """Return the key of a recipe at a point. Blocking: looks at files and the engine's program.

    What has not been mounted by then does not count. Raises OSError for a file that cannot be
    looked at, engine_missing.
    """
    nowhere = Path("/")
    spec = machine_spec(
        recipe, vm_id="", directory=nowhere, console_log=nowhere, disk=nowhere, uid=None
    )
    program = engine.identity()
    files = {os.fspath(path): file_identity(path) for path in recipe.files(point)}
    verdict = recipe.verdict
    parts: dict[str, Any] = {
        "format": FORMAT,
        "point": point,
        "image": recipe.image_id,
        "fstype": recipe.rootfs.fstype,
        "files": list(files.values()),  # a home that was moved is no other one
        "program": program,
        "engine": verdict.engine_version,
        "accelerator": verdict.accelerator,
        "tsc_khz": verdict.tsc_khz,
        "cpu": to_json(verdict.cpu),
        "layout": engine.layout(spec),
        "boards": list(recipe.boards),
        "cpus": recipe.cpus,
        "memory": recipe.memory,
    }
    if point is not TemplatePoint.BARE:
        parts |= {"disk": recipe.disk, "volumes": list(recipe.volumes)}
    text = json.dumps(parts, sort_keys=True)
    return Key(hashlib.sha256(text.encode()).hexdigest(), program, files)


def file_identity(path: Path) -> str:
    """Return what tells a file from another or an earlier one. Raises OSError."""
    info = path.stat()
    return f"{path.name} {info.st_size} {info.st_mtime_ns}"


def is_stale(key: Key, engine: Engine) -> bool:
    """Tell whether no start on this host can have that key any more. Blocking."""
    try:
        return key.program != engine.identity() or any(
            file_identity(Path(path)) != identity for path, identity in key.files.items()
        )
    except OSError:
        return True
