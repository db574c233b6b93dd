"""What a manifest from elsewhere says: believed only when every value is one that can be.

For files from other hosts and for what was encrypted, which is no proof of what it is. It must not
know where a manifest lies, nor what is beside it.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from hutch.engine.base import MachineType
from hutch.errors import HutchError, error
from hutch.models import SandboxInfo, SandboxSpec, SnapshotKind, from_json
from hutch.service.manifest import FORMAT, Manifest
from hutch.service.names import SNAPSHOT_PREFIX, check_name
from hutch.service.portable import unreadable
from hutch.service.spec import check_arguments, check_directory, check_timeout, signal_number
from hutch.settings import GIB, MIB

SMALL_MAX: Final = GIB
"""How large the device state and one log may be."""

SIZE_MAX: Final = 1 << 45

_IMAGE_ID: Final = re.compile(r"sha256:[0-9a-f]{64}")
_CPUS_MAX: Final = 1024


def disk_sizes(disk: int) -> range:
    """Return how large the file of a disk of that size may be: it has whole MiB, or did once."""
    return range(disk - MIB, disk + MIB)


def believed(body: Any) -> Manifest:
    """Return a manifest of which every value is of its type and within bounds.

    Raises snapshot_damaged, snapshot_incompatible.
    """
    if isinstance(body, dict) and isinstance(body.get("format"), int) and body["format"] != FORMAT:
        raise error(
            "snapshot_incompatible",
            f"the snapshot has format {body['format']}, not {FORMAT}",
            hint="use it with the version of Hutch that made it",
        )
    try:
        manifest = from_json(Manifest, body)
        conforms = _conforms(Manifest, manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as cause:
        raise unreadable("its manifest is not readable") from cause
    if not conforms:
        raise unreadable("its manifest has a value of a wrong type")
    try:
        can_be = _can_be(manifest)
    except (HutchError, ValueError, OverflowError) as cause:
        raise unreadable("its manifest has a value that cannot be") from cause
    if not can_be:
        raise unreadable("its manifest has a value that cannot be")
    return manifest


def _can_be(manifest: Manifest) -> bool:
    """Tell whether sizes and marks can be. Raises HutchError for other values that cannot."""
    snapshot, info = manifest.snapshot, manifest.info
    check_name(snapshot.name, "snapshot", SNAPSHOT_PREFIX)
    check_name(snapshot.sandbox_name)
    _check_program(info)
    _check_request(manifest.spec)
    full = snapshot.kind is SnapshotKind.FULL
    return (
        0 < info.cpus <= _CPUS_MAX
        and 0 < info.memory < SIZE_MAX
        and 0 < info.disk < SIZE_MAX
        and (snapshot.cpus, snapshot.memory, snapshot.disk) == (info.cpus, info.memory, info.disk)
        and 0 <= snapshot.memory_bytes <= info.memory
        and math.isfinite(snapshot.pause_seconds)
        and math.isfinite(info.boot_seconds or 0.0)
        and _IMAGE_ID.fullmatch(info.image_id) is not None
        and 0 <= manifest.generation < 1 << 62
        and (manifest.needs is not None) is full
        and (not full or snapshot.machine in set(MachineType))
        and (not full or snapshot.cpu is not None)
    )


def _check_program(info: SandboxInfo) -> None:
    check_arguments(info.command, info.env)
    check_directory(info.workdir)
    signal_number(info.stop_signal)
    check_timeout(info.timeout)
    check_timeout(info.idle_timeout)


def _check_request(spec: SandboxSpec) -> None:
    check_arguments([*(spec.entrypoint or ()), *(spec.command or ())], spec.env)
    check_timeout(spec.timeout)
    check_timeout(spec.idle_timeout or 0.0)
    if spec.workdir is not None:
        check_directory(spec.workdir)
    if spec.stop_signal is not None:
        signal_number(spec.stop_signal)


def _conforms(hint: Any, item: Any) -> bool:
    """Tell whether a value is of its declared type, in all its parts."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_conforms(each, item) for each in args)
    if origin is list:
        return isinstance(item, list) and all(_conforms(args[0], each) for each in item)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(item, dict) and all(
            _conforms(args[0], key) and _conforms(args[1], each) for key, each in item.items()
        )
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return isinstance(item, typing.cast(type, hint)) and all(
            _conforms(hints[each.name], getattr(item, each.name))
            for each in dataclasses.fields(hint)
        )
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return isinstance(item, hint)
    if hint is float:
        return type(item) in (int, float)
    return type(item) is hint
