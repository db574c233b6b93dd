"""Digests of the layers of snapshots' disks: a snapshot names them, and what goes on is checked.

A layer below a snapshot is never written again, so each file is read once while this daemon lives,
unless its size or time says that somebody has changed it. It must not know what a snapshot is.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from hutch.errors import HutchError
from hutch.service.layers import LAYER_PREFIX, Layers
from hutch.service.manifest import damaged, digest_of
from hutch.service.parts import host_errors
from hutch.tasks import in_thread

_Stamp = tuple[int, int, int]


class DiskDigests:
    """The digests of the disks of one host."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._known: dict[Path, tuple[_Stamp, str]] = {}

    async def of(self, top: str) -> dict[str, str]:
        """Return the digests of a disk's files by their names: its layers, and a template's disk.

        Raises engine_failed, and what the host says of a file that cannot be read.
        """
        with self._layers.pinned(top), host_errors():
            files = [self._layers.path(top), *self._layers.behind(top)]
            return {_name(path): await in_thread(self._digest, path) for path in files}

    async def check(self, name: str, top: str, then: Mapping[str, str]) -> None:
        """Refuse the disk of the snapshot `name` whose files had the digests `then`.

        A file that it does not name has taken the place of others since. Raises snapshot_damaged.
        """
        try:
            now = await self.of(top)
        except HutchError as cause:
            raise damaged(name, f"its disk cannot be read: {cause.message}") from cause
        others = [each for each, digest in now.items() if then.get(each, digest) != digest]
        if others:
            raise damaged(name, f"{others[0]} of its disk changed since it was made")

    def _digest(self, path: Path) -> str:
        stamp = _stamp(path.stat())
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            known = self._known[path] = (stamp, digest_of(path))
        return known[1]


def _name(path: Path) -> str:
    # A template's disk is called as that of any other.
    return path.name if path.name.startswith(LAYER_PREFIX) else f"{path.parent.name}/{path.name}"


def _stamp(found: os.stat_result) -> _Stamp:
    return found.st_ino, found.st_size, found.st_mtime_ns
