"""Keeps disks from having too many layers: joins some of them in the background, in good time.

Each moment that is taken of a running sandbox adds a layer to its disk, whoever takes it. It must
not know what moments are taken for, nor how layers are joined.
"""

import asyncio

from hutch.service.flatten import LAYERS_MAX
from hutch.service.layers import Layers
from hutch.service.parts import Parts
from hutch.service.registry import Entry
from hutch.tasks import Scope


class Thinning:
    """Thins out the disks of one host's sandboxes, each by one task at a time."""

    def __init__(self, parts: Parts, layers: Layers) -> None:
        self._parts = parts
        self._layers = layers
        self._scope: Scope | None = Scope("thinning")
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def at_work(self) -> bool:
        """Whether layers of any disk are being joined."""
        return bool(self._tasks)

    def begin(self, entry: Entry) -> None:
        """Thin out the disk of a sandbox in the background, if it has many layers by now."""
        sandbox_id, layer = entry.info.id, entry.row.layer
        if layer is None or entry.removed or self._scope is None or sandbox_id in self._tasks:
            return
        if self._layers.crowded(layer):
            task = self._scope.start(sandbox_id, self._thin_out(entry, layer))
            self._tasks[sandbox_id] = task
            task.add_done_callback(lambda _: self._tasks.pop(sandbox_id))

    async def make_room(self, entry: Entry) -> None:
        """Let a disk that can have no further layer be thinned out before one is asked for.

        That may fail, or come to nothing: whoever makes the layer looks for itself. The entry's
        lock must not be held.
        """
        layer = entry.row.layer
        if layer is None or len(self._layers.chain(layer)) < LAYERS_MAX:
            return
        self.begin(entry)
        task = self._tasks.get(entry.info.id)
        if task is not None:
            await asyncio.wait({task})

    async def _thin_out(self, entry: Entry, layer: str) -> None:
        base = await self._parts.base_disk(self._parts.settings.home, entry.info.disk)
        await self._layers.thin_out(layer, base, entry.lock)

    async def close(self) -> None:
        """Undo what is under way."""
        if (scope := self._scope) is not None:
            self._scope = None
            await scope.close()
