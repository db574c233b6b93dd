"""Whole disks as plain, sparse files: what a chain of layers says together, and a layer made of it.

Plain files, as nothing in one can name another file. It must not know what a disk is of, nor who
has its layers.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from hutch import process
from hutch.engine.differences import copy_sparse
from hutch.errors import error
from hutch.service.durable import sync
from hutch.service.flatten import check_layer, copy_layer, json_name, node_of
from hutch.tasks import settle_in_thread

TIMEOUT: Final = 3600.0

_SIZE_AT: Final = 24
"""Where a layer's header says how large the disk is."""


def check_room(layers: Sequence[Path], directory: Path, *, copies: int, reserve: int) -> None:
    """Refuse to copy layers that often where it would not leave `reserve` bytes free. Blocking.

    Raises disk_full, OSError.
    """
    needed = copies * sum(path.stat().st_blocks * 512 for path in layers)
    free = shutil.disk_usage(directory).free
    if free - reserve < needed:
        raise error(
            "disk_full",
            f"{directory}: copies of a disk take {needed >> 20} MiB, and of the {free >> 20} MiB"
            f" that are free {reserve >> 20} MiB are kept in reserve",
            hint="free some space, for example with `hutch snapshot rm` or `hutch image prune`",
        )


async def write_image(
    layers: Sequence[Path], template: Path | None, base: Path, target: Path
) -> None:
    """Write what `layers`, the uppermost first, say over a template's disk, or else the base.

    Nobody may write them meanwhile. What is read are copies of them beside `target`, gone in the
    end: a VM may still have the originals open. Raises tool_missing, disk_full, engine_failed,
    OSError.
    """
    node: dict[str, Any] = node_of(base, "raw")
    if template is not None:
        node = node_of(template, "qcow2", node)
    copies = [target.with_name(f"{target.name}.{number}") for number in range(len(layers))]
    try:
        for path, copy in reversed(list(zip(layers, copies, strict=True))):
            await settle_in_thread(copy_layer, path, copy)
            node = node_of(copy, "qcow2", node)
        await _convert("-O", "raw", json_name(node), os.fspath(target))
    finally:
        for copy in copies:
            await settle_in_thread(copy.unlink, missing_ok=True)


async def write_hidden(
    layers: Sequence[Path], template: Path | None, base: Path, directory: Path
) -> int:
    """Return the same as `write_image` in a file without a name, for the caller to close.

    Nor have the copies names: nothing is left of the content, whatever happens. `directory` is
    where there is room.
    """
    node: dict[str, Any] = node_of(base, "raw")
    if template is not None:
        node = node_of(template, "qcow2", node)
    size, opened = 0, list[int]()
    target = hidden_file(directory)
    try:
        for path in reversed(layers):
            opened.append(copy := hidden_file(directory))
            size = await settle_in_thread(_copy_layer, path, copy)
            node = node_of(path_of(copy), "qcow2", node)
        await settle_in_thread(os.ftruncate, target, size)
        words = ("-n", "--target-is-zero", "-O", "raw", json_name(node), str(path_of(target)))
        await _convert(*words, pass_fds=[*opened, target])
    except BaseException:
        os.close(target)
        raise
    finally:
        for copy in opened:
            os.close(copy)
    return target


def _copy_layer(path: Path, copy: int) -> int:
    """Copy a layer into an empty file, and check it there; returns the size of the disk."""
    with open(path, "rb") as source:
        copy_sparse(source.fileno(), copy, os.fstat(source.fileno()).st_size)
    check_layer(path_of(copy))
    return int.from_bytes(os.pread(copy, 8, _SIZE_AT), "big")


async def fill_layer(image: Path | int, layer: Path) -> None:
    """Make an empty layer, just made by us, say all that is in `image`, and nothing of its base.

    Zeros are written, too, so that nothing shows through. Raises as `write_image` does, and
    OSError.
    """
    path, passed = (path_of(image), [image]) if isinstance(image, int) else (image, [])
    source = json_name(node_of(path, "raw"))
    await _convert("-n", "-O", "qcow2", source, os.fspath(layer), pass_fds=passed)
    await settle_in_thread(sync, layer)


async def _convert(*words: str, pass_fds: Sequence[int] = ()) -> None:
    await process.run(["qemu-img", "convert", "-q", *words], timeout=TIMEOUT, pass_fds=pass_fds)


def hidden_file(directory: Path) -> int:
    """Return a new file that no path leads to, open, the caller's to close. Raises OSError."""
    # Not by O_TMPFILE, which not all file systems know. Nothing is in it while it has its name.
    fd, name = tempfile.mkstemp(dir=directory)
    os.unlink(name)
    return fd


def path_of(fd: int) -> Path:
    """Return the path by which a process that has this descriptor can open its file anew."""
    return Path(f"/proc/self/fd/{fd}")
