"""Whole disks as plain, sparse files: what a chain of layers says together, and a layer made of it.

Plain files, as nothing in one can name another file. It must not know what a disk is of, nor who
has its layers.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from hutch import process
from hutch.service.flatten import copy_layer, json_name, node_of, sync_file
from hutch.tasks import settle_in_thread

TIMEOUT: Final = 3600.0


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


async def fill_layer(image: Path, layer: Path) -> None:
    """Make an empty layer, just made by us, say all that is in `image`, and nothing of its base.

    Zeros are written, too, so that nothing shows through. Raises as `write_image` does, and
    OSError.
    """
    source = json_name(node_of(image, "raw"))
    await _convert("-n", "-O", "qcow2", source, os.fspath(layer))
    await settle_in_thread(sync_file, layer)


async def _convert(*words: str) -> None:
    await process.run(["qemu-img", "convert", "-q", *words], timeout=TIMEOUT)
