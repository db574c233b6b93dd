"""The layers of disks: files of which sandboxes and snapshots share all but their own uppermost.

A layer that has another over it is never written again. Each is on record before its file is made
and until its file is gone; one that nobody holds and nothing is over is removed. It must not know
how a machine is given its disk, nor what the holders are.
"""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from hutch.errors import HutchError, error
from hutch.models import timestamp
from hutch.service.flatten import DEEPEST, flatten
from hutch.service.names import new_id
from hutch.service.parts import LAYER_SUFFIX, Parts, host_errors
from hutch.state.base import LayerRow
from hutch.tasks import in_thread, settle, settle_in_thread

log = logging.getLogger(__name__)

LAYER_PREFIX: Final = "ly_"

CROWDED: Final = 24
"""Above so many layers those of a machine that runs are joined, where nobody needs them apart."""

RETIRED_SECONDS: Final = 600.0
"""How long layers stay that were joined: longer than one takes to open what it was told of."""

Holder = Callable[[], Iterable[str | None]]
"""Returns the uppermost layers that something on record holds."""


class DiskUse(NamedTuple):
    """The bytes that a disk takes on the host: its alone, and those that others use as well."""

    own: int
    shared: int


class Layers:
    """All layers of one host.

    Invariant: a row in memory is one on record, and its file, once made, is there.
    """

    def __init__(self, parts: Parts, settle: Callable[[str], Awaitable[None]]) -> None:
        """`settle` is told of a template that has a layer less over its disk."""
        self._parts = parts
        self._settle = settle
        self._rows: dict[str, LayerRow] = {}
        self._holders: list[Holder] = []
        self._pins: Counter[str] = Counter()
        self._retired: deque[tuple[float, str]] = deque()

    def add_holder(self, holder: Holder) -> None:
        """Keep the layers that `holder` returns, now and later."""
        self._holders.append(holder)

    # ---- making

    def plan(self, *, parent: str | None = None, template: str | None = None) -> LayerRow:
        """Return a new layer over `parent`, or over a template's disk, to be put on record."""
        return LayerRow(new_id(LAYER_PREFIX), parent, template, timestamp())

    def know(self, layer: LayerRow) -> None:
        """Take note of a layer that is on record now, and that `make` or `release` is to follow."""
        self._rows[layer.id] = layer

    async def make(self, layer: LayerRow, size: int, base: Path) -> Path:
        """Make the file of a layer that is on record; returns its path.

        `size` is that of the whole disk, `base` the empty disk below all layers. What is over from
        an attempt that failed is the caller's to release. Raises disk_full, engine_failed.
        """
        self.know(layer)
        path = self.path(layer.id)
        behind = (self.behind(layer.id) or [base])[0]
        form = "raw" if behind == base else "qcow2"
        with host_errors():
            await settle_in_thread(self._make, path, size, behind, form)
        return path

    def _make(self, path: Path, size: int, behind: Path, form: str) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._parts.engine.create_disk(path, size, behind, form)

    @contextlib.asynccontextmanager
    async def over(self, below: str, size: int) -> AsyncIterator[LayerRow]:
        """Make a layer over another; it goes with the block unless somebody holds it by then.

        `size` is that of the whole disk. Raises disk_full, engine_failed.
        """
        layer = self.plan(parent=below)
        try:
            with self.pinned(layer.id):
                await settle(self._record_and_make(layer, size))
                yield layer
        finally:
            await settle(self.release(layer.id))

    async def _record_and_make(self, layer: LayerRow, size: int) -> None:
        with host_errors():
            base = await self._parts.base_disk(self._parts.settings.home, size)
            await self._parts.store.add_layer(layer)
            await self.make(layer, size, base)

    async def shorten(
        self, top: str, base: Path, record: Callable[[LayerRow], Awaitable[None]]
    ) -> str:
        """Join the layers of a disk that nobody has open, if they are many; return the uppermost.

        `record` puts the new one on record as its holder's. When they cannot be joined, for lack
        of space or of the tool, the disk is as good as before.
        """
        rows = self.chain(top)
        if len(rows) <= DEEPEST:
            return top
        joined = self.plan(template=rows[-1].template)
        behind = joined.template and self._parts.places.template_disk(joined.template)
        try:
            with host_errors():
                files = [self.path(row.id) for row in rows]
                await flatten(files, behind or None, base, self.path(joined.id))
        except HutchError as failure:
            log.warning("the %d layers of %s stay apart: %s", len(rows), top, failure)
            return top
        return await settle(self._replace(top, joined, record))

    async def _replace(
        self, top: str, joined: LayerRow, record: Callable[[LayerRow], Awaitable[None]]
    ) -> str:
        """Put what was joined on record in the place of a disk's layers; return the uppermost."""
        self.know(joined)
        try:
            await record(joined)
        except HutchError as failure:
            log.warning("the layers of %s stay apart: %s", top, failure)
            await self.release(joined.id)
            return top
        await self.release(top)
        return joined.id

    def crowded(self, top: str) -> bool:
        """Tell whether a disk has so many layers that it is to be thinned out."""
        return len(self.chain(top)) > CROWDED

    async def thin_out(self, top: str, base: Path, lock: asyncio.Lock) -> None:
        """Join some layers of a disk into one, if it has many: at best such as nobody else needs.

        Else those of which a copy takes least, which others go on to use apart. `lock` is that of
        whoever has the disk, taken for the last step alone. Machines may run on it: they have the
        files, not their names. When they cannot be joined, or the disk is another by then, it is as
        good as before.
        """
        rows = self.chain(top)
        if not self.crowded(top) or self._read_by_name():
            return
        chosen = self._needed_alone(rows)
        if len(chosen) < 2:
            chosen = await in_thread(self._smallest, rows)
        below = rows[rows.index(chosen[-1]) + 1 :]
        joined = self.plan(parent=below[0].id if below else None, template=chosen[-1].template)
        template = rows[-1].template and self._parts.places.template_disk(rows[-1].template)
        try:
            with host_errors():
                files = [self.path(row.id) for row in chosen]
                behind = [self.path(row.id) for row in below]
                await flatten(files, template or None, base, self.path(joined.id), behind)
            async with lock:
                await settle(self._join(top, chosen, joined))
        except HutchError as failure:
            log.warning("the %d layers of %s stay apart: %s", len(rows), top, failure)
        finally:
            if joined.id not in self._rows:
                await settle_in_thread(self.path(joined.id).unlink, missing_ok=True)

    async def _join(self, top: str, chosen: list[LayerRow], joined: LayerRow) -> None:
        """Put what was joined on record, if those are still the layers of that disk."""
        rows = self.chain(top)
        at = rows.index(chosen[0]) if chosen[0] in rows else 0
        if at == 0 or rows[at : at + len(chosen)] != chosen or self._read_by_name():
            return
        above = rows[at - 1]
        self._rows[joined.id] = joined
        try:
            await self._parts.store.join_layers(joined, above.id)
        except HutchError:
            await self.release(joined.id)
            raise
        self._rows[above.id] = dataclasses.replace(above, parent=joined.id, template=None)
        # Not at once: somebody may be about to open them for a machine that starts.
        self._retired.append((time.monotonic(), chosen[0].id))

    def _smallest(self, rows: list[LayerRow]) -> list[LayerRow]:
        """Return half a crowd of neighbours, below the uppermost, that are small together."""
        count = CROWDED // 2
        sizes = [_bytes_of([self.path(row.id)]) for row in rows]
        starts = range(len(rows) - count, 0, -1)
        start = min(starts, key=lambda at: sum(sizes[at : at + count]))
        return rows[start : start + count]

    def _read_by_name(self) -> bool:
        # Who pins a layer may be reading those behind it.
        return any(pins > 0 for pins in self._pins.values())

    def _needed_alone(self, rows: list[LayerRow]) -> list[LayerRow]:
        """Return the lowest layers of a chain that nobody holds, and that have one above them."""
        held, above = set(self._held()), Counter(row.parent for row in self._rows.values())
        found: list[LayerRow] = []
        for row in reversed(rows):
            if row.id in held or above[row.id] != 1:
                break
            found.insert(0, row)
        return found

    # ---- looking

    def path(self, layer_id: str) -> Path:
        """Return where a layer's file is."""
        return self._parts.places.layer(layer_id)

    def chain(self, top: str) -> list[LayerRow]:
        """Return a disk's layers from the uppermost down. Raises engine_failed for a broken one."""
        found: list[LayerRow] = []
        at: str | None = top
        while at is not None:
            row = self._rows.get(at)
            if row is None or len(found) == len(self._rows):
                raise error("engine_failed", f"the layer {at} of the disk {top} is not on record")
            found.append(row)
            at = row.parent
        return found

    def behind(self, top: str) -> list[Path]:
        """Return the qcow2 files behind a layer, nearest first: others, and a template's disk."""
        _, *others = rows = self.chain(top)
        files = [self.path(row.id) for row in others]
        if (template := rows[-1].template) is not None:
            files.append(self._parts.places.template_disk(template))
        return files

    def based_on(self, template_id: str) -> bool:
        """Tell whether a disk is based on a template's."""
        return any(row.template == template_id for row in self._rows.values())

    async def sizes(self, top: str | None) -> DiskUse:
        """Return what a disk takes; a template's disk counts as shared, the empty base not."""
        if top is None or top not in self._rows:
            return DiskUse(0, 0)
        users = Counter(row.id for held in self._held() for row in self._known_chain(held))
        rows = self.chain(top)
        own = [self.path(row.id) for row in rows if users[row.id] <= 1]
        everything = [self.path(top), *self.behind(top)]
        shared = [path for path in everything if path not in own]
        return DiskUse(await in_thread(_bytes_of, own), await in_thread(_bytes_of, shared))

    def _held(self) -> list[str]:
        return [top for holder in self._holders for top in holder() if top is not None]

    def _known_chain(self, top: str) -> list[LayerRow]:
        with contextlib.suppress(HutchError):
            return self.chain(top)
        return []

    # ---- letting go

    @contextlib.contextmanager
    def pinned(self, layer_id: str) -> Iterator[None]:
        """Keep a layer for the length of the block, whoever lets go of it."""
        self._pins[layer_id] += 1
        try:
            yield
        finally:
            self._pins[layer_id] -= 1

    async def release(self, top: str | None) -> int:
        """Remove a layer that nobody holds any more, and what is behind it down to one in use.

        Returns the bytes that are freed. One that is in use is left as it is. Carried out to its
        end also when this is cancelled.
        """
        if top is None or top not in self._rows or self._in_use(top):
            return 0
        return await settle(self._release(top))

    async def _release(self, top: str | None) -> int:
        freed = 0
        while self._retired and time.monotonic() - self._retired[0][0] > RETIRED_SECONDS:
            _, retired = self._retired.popleft()
            freed += await self.release(retired)
        while top is not None and top in self._rows and not self._in_use(top):
            row = self._rows.pop(top)
            # First the file: a full disk could not even take the note that it is gone.
            freed += await settle_in_thread(_remove, self.path(top))
            await self._forget(top)
            if row.template is not None:
                await self._settle(row.template)
            top = row.parent
        return freed

    async def empty(self, top: str | None) -> None:
        """Free the space of a layer that nobody holds, while it cannot be released yet."""
        if top is not None and not self._in_use(top):
            await settle_in_thread(_remove, self.path(top))

    def _in_use(self, layer_id: str) -> bool:
        if self._pins[layer_id] > 0 or layer_id in self._held():
            return True
        return any(row.parent == layer_id for row in self._rows.values())

    async def _forget(self, layer_id: str) -> None:
        try:
            await self._parts.store.remove_layer(layer_id)
        except HutchError as failure:
            # The next start of the daemon finds a layer that nobody holds.
            log.error("the layer %s is gone, which cannot be recorded: %s", layer_id, failure)

    # ---- at the start of the daemon

    async def open(self) -> None:
        """Take up what is on record and held; remove the rest. For holders that are complete."""
        self._rows = {row.id: row for row in await self._parts.store.layers()}
        for top in [row.id for row in reversed(self._rows.values())]:
            if top in self._rows and not self._in_use(top):
                log.info("removing the layer %s, which nobody holds", top)
                await self.release(top)
        for path in await in_thread(_files, self._parts.places.layers):
            if path.name.removesuffix(LAYER_SUFFIX) not in self._rows:
                log.warning("removing %s, which is not on record", path)
                await in_thread(path.unlink, missing_ok=True)

    async def take_over(self, sandbox_id: str, layer_id: str | None) -> None:
        """Move the disk that an older Hutch has left in a sandbox's own directory to its place.

        A VM that runs on it goes on: it has the file, not its name.
        """
        old = self._parts.places.old_disk(sandbox_id)
        if layer_id is not None and await in_thread(old.exists):
            await settle_in_thread(_move, old, self.path(layer_id))


def _bytes_of(files: Iterable[Path]) -> int:
    total = 0
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def _remove(path: Path) -> int:
    freed = _bytes_of([path])
    path.unlink(missing_ok=True)
    return freed


def _move(old: Path, new: Path) -> None:
    new.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    old.replace(new)


def _files(parent: Path) -> list[Path]:
    return sorted(parent.iterdir()) if parent.is_dir() else []
