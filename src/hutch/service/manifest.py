"""What a snapshot's directory says of itself: all that is needed to go on from it, and checks.

The manifest is written last and makes a snapshot complete. It names what a host must have, and the
digests of the files beside it. It must not know how snapshots are made or listed.
"""

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hutch.engine.base import Engine, Frozen, MachineSpec
from hutch.errors import HutchError, error
from hutch.models import SandboxInfo, SandboxSpec, SnapshotInfo, from_json, to_json
from hutch.service.durable import write_json
from hutch.service.hostcpu import lacking, missing_features, other_kind
from hutch.service.misfit import Misfit
from hutch.service.recipe import Recipe, file_identity

FORMAT: Final = 3
MANIFEST: Final = "snapshot.json"

RATE_TOLERANCE: Final = 0.001
"""How far two measurements of one clock rate may be apart, as a share of it."""

_DIGEST: Final = "digest"
"""What the manifest's file has beside the manifest: a digest of it."""

_CHUNK: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Needs:
    """What a host must have to take up a memory: the engine's marks, and the files it saw.

    `files` maps what a disk is to the identity of its file.
    """

    program: str
    layout: str
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A snapshot. `spec`, `info` and `generation` are its source's of that moment.

    One of the disk alone has neither `needs` nor `digests`. `layers` are the digests of the files
    of its disk, by their names on the host that has it.
    """

    format: int
    snapshot: SnapshotInfo
    spec: SandboxSpec
    info: SandboxInfo
    generation: int
    needs: Needs | None = None
    digests: dict[str, str] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)


def needs_of(engine: Engine, spec: MachineSpec, recipe: Recipe) -> Needs:
    """Return what it takes to take up the memory of a machine. Blocking. Raises OSError."""
    files = {"root": file_identity(recipe.rootfs.path), "base": file_identity(recipe.base)}
    return Needs(engine.identity(), engine.layout(spec), files)


def digests_of(frozen: Frozen) -> dict[str, str]:
    """Return the digests of the files of a kept machine. Blocking. Raises OSError.

    Where its memory is in several ones, that of the state's alone: those of the others are in it,
    and what they have in many places is not looked for once more.
    """
    files = [frozen.state] if frozen.below() else [frozen.state, frozen.image]
    return {path.name: digest_of(path) for path in files}


def open_source(source: Path | int) -> int:
    """Return a descriptor, the caller's to close, of a file that has a name or is open only.

    Raises OSError.
    """
    if isinstance(source, int):
        return os.dup(source)
    return os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)


def digest_of(source: Path | int) -> str:
    """Return the digest of a sparse file: of its length, and of what is not zero and where.

    Equal for equal contents, however their holes lie. Blocking. Raises OSError.
    """
    digest = hashlib.sha256()
    fd = open_source(source)
    try:
        size = os.fstat(fd).st_size
        digest.update(size.to_bytes(8, "big"))
        end = 0
        while (start := _data_from(fd, end)) is not None:
            end = os.lseek(fd, start, os.SEEK_HOLE)
            # Whole chunks at fixed places: how far a hole reaches is the file system's affair.
            start = start // _CHUNK * _CHUNK
            while start < end:
                data = os.pread(fd, _CHUNK, start)
                if data.count(0) != len(data):
                    digest.update(start.to_bytes(8, "big"))
                    digest.update(data)
                start += _CHUNK
            end = start
    finally:
        os.close(fd)
    return f"sha256:{digest.hexdigest()}"


def _data_from(fd: int, offset: int) -> int | None:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as cause:
        if cause.errno != errno.ENXIO:
            raise
        return None  # only holes are left


def check_needs(
    manifest: Manifest, now: Needs, recipe: Recipe, engine: str, misfit: Misfit | None
) -> None:
    """Refuse a snapshot that this host cannot take up: `misfit` is why its VM could not.

    Raises snapshot_incompatible.
    """
    then, info, cpu = manifest.needs, manifest.snapshot, recipe.verdict.cpu
    assert then is not None
    if info.cpu is None:
        raise damaged(info.name, "its manifest names no CPU")
    pairs = {
        "the engine": (info.engine, engine),
        "the engine's version": (info.engine_version, recipe.verdict.engine_version),
        "the accelerator": (info.accelerator, recipe.verdict.accelerator.value),
        "the engine's program": (then.program, now.program),
        "the root file system": (then.files.get("root"), now.files["root"]),
        "the empty disk": (then.files.get("base"), now.files["base"]),
    }
    others = [what for what, (old, new) in pairs.items() if old != new]
    if misfit is Misfit.DEVICES:
        others.append("the layout of the VM")
    if not _same_rate(info.tsc_khz, recipe.verdict.tsc_khz):
        others.append(f"the clock rate ({info.tsc_khz} against {recipe.verdict.tsc_khz} kHz)")
    others += other_kind(info.cpu, cpu)
    missing = missing_features(info.cpu, cpu)
    why = [f"other is {', '.join(others)}"] if others else []
    why += [lacking(missing)] if missing else []
    where = "where it was made" if others else "on a host whose CPU has them"
    if misfit is Misfit.NETWORK:
        why.append(misfit)
        where = where if missing else "where `hutch doctor` finds a network"
    if why:
        raise error(
            "snapshot_incompatible",
            f"the snapshot {info.name} cannot go on here: {'; '.join(why)}",
            hint=f"restore it {where}, or its disk alone with --disk-only",
            details={"different": others, "missing": missing},
        )


def _same_rate(then: int | None, now: int | None) -> bool:
    if then is None or now is None:
        return then == now
    return abs(then - now) <= RATE_TOLERANCE * then


def check_files(manifest: Manifest, frozen: Frozen) -> None:
    """Refuse a snapshot whose files are not what they were. Blocking. Raises snapshot_damaged."""
    name = manifest.snapshot.name
    try:
        found = digests_of(frozen)
    except OSError as cause:
        raise damaged(name, f"{cause.filename} cannot be read: {cause.strerror}") from cause
    others = [each for each, digest in manifest.digests.items() if found.get(each) != digest]
    if others or not manifest.digests:
        raise damaged(name, f"its {' and '.join(others) or 'digests'} changed since it was made")


def damaged(name: str, why: str) -> HutchError:
    """Return the error for a snapshot that is not what it was."""
    return error(
        "snapshot_damaged",
        f"the snapshot {name} cannot be used: {why}",
        hint=f"remove it with `hutch snapshot rm {name}`; its disk may still be of use, with"
        " `hutch restore --disk-only`",
    )


def write_manifest(directory: Path, manifest: Manifest, *, lasting: bool = True) -> None:
    """Complete a snapshot: from here on it can be used, whatever happens. Blocking.

    One that is not `lasting` may be lost when the host loses its power.
    """
    body = to_json(manifest)
    digest = {_DIGEST: _digest_of_json(body)}
    write_json(directory / MANIFEST, {**body, **digest}, lasting=lasting)


def read_manifest(directory: Path, name: str) -> Manifest:
    """Return the manifest in a snapshot's directory. Blocking.

    Raises snapshot_damaged, snapshot_incompatible for one of another format.
    """
    try:
        body = json.loads((directory / MANIFEST).read_bytes())
        if body["format"] != FORMAT:
            raise error(
                "snapshot_incompatible",
                f"the snapshot {name} has format {body['format']}, not {FORMAT}",
                hint="use it with the version of Hutch that made it",
            )
        if body.pop(_DIGEST, None) != _digest_of_json(body):
            raise damaged(name, "its manifest was changed")
        return from_json(Manifest, body)
    except OSError as cause:
        raise damaged(name, f"its manifest cannot be read: {cause.strerror}") from cause
    except (ValueError, KeyError, TypeError) as cause:
        raise damaged(name, "its manifest is not readable") from cause


def _digest_of_json(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
