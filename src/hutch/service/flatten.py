"""Long chains of layers made short: one new layer says what a disk's many say together.

It is written beside them, so that a crash at any moment leaves the chain as it was. What the files'
headers say of others is never followed: they were in reach of a VM. It must not know who has them.
"""

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from hutch import process
from hutch.engine.differences import copy_sparse
from hutch.errors import error
from hutch.service.durable import sync
from hutch.tasks import settle_in_thread

DEEPEST: Final = 8
"""How many layers a disk may have when a machine boots from it."""

LAYERS_MAX: Final = 28
"""How many it may have while a machine runs; engines take a few more."""

TIMEOUT: Final = 600.0

_HEAD: Final = struct.Struct(">4sI24xI36xQ")
"""The magic, the version, how the file is encrypted, and the features that a reader must know."""

_HARMLESS: Final = 0b11
"""Features that say how a file was closed. Others could name further files, or need keys."""


async def flatten(
    layers: Sequence[Path],
    template: Path | None,
    base: Path,
    target: Path,
    behind: Sequence[Path] = (),
) -> None:
    """Write the contents of `layers`, the uppermost first, into one new layer, `target`.

    It is over what the last of them is over: the layers `behind` it, the nearest first, over the
    disk of `template`, or else the empty `base`. Nobody may write them meanwhile. Raises
    tool_missing, disk_full, engine_failed; leaves nothing then.
    """
    below = node_of(base, "raw")
    for path in reversed([*behind, *([template] if template is not None else [])]):
        below = node_of(path, "qcow2", below)
    part = target.with_suffix(".part")
    try:
        await settle_in_thread(copy_layer, layers[-1], target)
        for path in reversed(layers[:-1]):
            # Of a copy, as it is opened for writing. Only what is in it is looked at, which is why
            # this is not `rebase`: that one compares whole disks.
            await settle_in_thread(copy_layer, path, part)
            node = node_of(part, "qcow2", node_of(target, "qcow2", below))
            await process.run(["qemu-img", "commit", "-q", "-d", json_name(node)], timeout=TIMEOUT)
            await settle_in_thread(part.unlink)
        await settle_in_thread(sync, target)
    except BaseException:
        for path in (part, target):
            await settle_in_thread(path.unlink, missing_ok=True)
        raise


def node_of(path: Path, driver: str, backing: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return how qemu-img is told of a file, and of what is behind it."""
    node: dict[str, Any] = {"driver": driver}
    # Others may have it open for reading, which is all that is done to it here.
    node["file"] = {"driver": "file", "filename": os.fspath(path), "locking": "off"}
    return node if backing is None else node | {"backing": backing}


def json_name(node: dict[str, Any]) -> str:
    """Return a node as the name of a file for qemu-img."""
    return "json:" + json.dumps(node, separators=(",", ":"))


def copy_layer(path: Path, target: Path) -> None:
    """Copy a layer, and refuse one that asks for more than its own clusters. Blocking.

    Raises engine_failed, OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(path, "rb") as source, open(os.open(target, flags, 0o600), "r+b") as copy:
        copy_sparse(source.fileno(), copy.fileno(), os.fstat(source.fileno()).st_size)
    # Of the copy: a VM that runs may still have the original open for writing.
    check_layer(target)


def check_layer(path: Path) -> None:
    """Refuse a file whose header asks for more than its own clusters. Raises engine_failed."""
    with open(path, "rb") as file:
        head = file.read(_HEAD.size)
    if len(head) == _HEAD.size:
        magic, version, crypt, features = _HEAD.unpack(head)
        if magic == b"QFI\xfb" and version == 3 and not crypt and not features & ~_HARMLESS:
            return
    raise error("engine_failed", f"{path} is no layer of a disk that can be read safely")
