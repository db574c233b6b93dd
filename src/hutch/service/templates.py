"""The templates of one host: found by key, made once, kept within a budget, dropped in one piece.

Each is a directory of its own that is never made again under the same name, for sandboxes' disks
may be based on its disk long after the rest of it is gone. One without a manifest is half made, or
dropped. It must not know how a machine is booted or frozen; `build.py` does.
"""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hutch.engine.base import Frozen, MachineType
from hutch.errors import HutchError, error
from hutch.images.flight import Flights
from hutch.models import TemplateInfo, TemplatePoint, from_json, timestamp
from hutch.service.layers import Layers
from hutch.service.parts import Parts, host_errors
from hutch.service.recipe import FORMAT, Key, Recipe, is_stale, key_of
from hutch.service.registry import Registry
from hutch.service.remains import clear_away
from hutch.service.stats import disk_use, uses_of
from hutch.service.templatefile import (
    MANIFEST,
    Manifest,
    Template,
    directories_in,
    remove_all,
    remove_but_disk,
    write_manifest,
)
from hutch.tasks import in_thread, settle, settle_in_thread

log = logging.getLogger(__name__)

BUILDER_PREFIX: Final = "tb_"
"""How the ids of VMs begin that are booted to become templates."""

BUILDS: Final = 2
"""Templates that are built at once; others wait."""
RETRY_SECONDS: Final = 300.0
"""How long a recipe whose template could not be built is started cold before the next attempt."""

MEMORY_SHARE: Final = 4
"""Templates without running sandboxes are held in memory up to this part of the host's."""

TOUCH_SECONDS: Final = 60.0
"""How exactly it outlasts the daemon when a template was used."""

_PREFIX_MIN: Final = 4


@dataclass(frozen=True, slots=True)
class Site:
    """Where templates are built: the id and number of the VM that becomes them, and their
    directories by the points that it is frozen at.
    """

    vm_id: str
    number: int
    directories: Mapping[TemplatePoint, Path]

    @property
    def last(self) -> Path:
        """The directory for where the VM ends."""
        return self.directories[_last(self.directories)]


@dataclass(frozen=True, slots=True)
class Built:
    """What came of a site: the board, and why there is no bare template although there should."""

    board: MachineType
    failure: HutchError | None = None


Build = Callable[[Recipe, Site], Awaitable[Built]]
"""Boots the machine of a recipe and freezes it at each point of the site."""


class Templates:
    """All templates of one host.

    Invariants: one that is leased, or behind a disk, keeps the files that are needed for that; one
    that is found by key is complete.
    """

    def __init__(self, parts: Parts, registry: Registry, layers: Layers, build: Build) -> None:
        self._parts = parts
        self._registry = registry
        self._layers = layers
        self._build = build
        self._shelf: dict[str, Template] = {}
        self._used: dict[str, float] = {}
        self._noted: dict[str, float] = {}
        """When it was put on record last that a template is used."""
        self._leases: Counter[str] = Counter()
        self._failed: dict[str, float] = {}
        self._flights = Flights()
        self._sites = asyncio.Semaphore(BUILDS)
        self._numbers = set(range(BUILDS))
        self._opened = False

    # ---- using

    @contextlib.asynccontextmanager
    async def lease(
        self, recipe: Recipe, point: TemplatePoint = TemplatePoint.FRESH
    ) -> AsyncIterator[Template | None]:
        """Give the template of a recipe, making it if need be; it stays as long as the block.

        None when it cannot be made, which is told in the log and by an event. Raises no_capacity.
        """
        template = await self._find_or_make(recipe, point)
        if template is None:
            yield None
            return
        self._leases[template.id] += 1
        try:
            await self._touch(template)
            yield template
        finally:
            self._leases[template.id] -= 1
            await settle(self._tidy_up(template.id))

    async def _tidy_up(self, template_id: str) -> None:
        await self.settle(template_id)
        await self._keep_memory()

    async def _find_or_make(self, recipe: Recipe, point: TemplatePoint) -> Template | None:
        digest = ""
        try:
            with host_errors():
                key = await in_thread(key_of, recipe, self._parts.engine, point)
                digest = key.digest
                async with self._flights.over(digest):
                    if (found := self._by_key(digest)) is not None:
                        return found
                    if self._failed_lately(digest):
                        return None
                    return await self._make(recipe, point, key)
        except HutchError as cause:
            if cause.code == "no_capacity":
                raise  # a cold boot would take as much, and there may be room in a moment
            self._fail(digest, recipe, cause)
            return None

    async def build(self, recipe: Recipe) -> Template:
        """Return the fresh template of a recipe, making it if need be; a bare one comes with it.

        Raises why it cannot be made.
        """
        point = TemplatePoint.FRESH
        with host_errors():
            key = await in_thread(key_of, recipe, self._parts.engine, point)
            async with self._flights.over(key.digest):
                found = self._by_key(key.digest)
                return await self._make(recipe, point, key) if found is None else found

    def _failed_lately(self, digest: str) -> bool:
        return time.monotonic() < self._failed.get(digest, 0.0)

    def _fail(self, digest: str, recipe: Recipe, cause: HutchError) -> None:
        self._failed[digest] = time.monotonic() + RETRY_SECONDS
        log.warning("no template of %s, which boots cold: %s", recipe.image, cause)
        self._parts.events.emit(
            "template.failed", digest, recipe.image, code=cause.code, message=cause.message
        )

    def _by_key(self, digest: str) -> Template | None:
        return next((t for t in self._shelf.values() if t.manifest.key.digest == digest), None)

    async def _touch(self, template: Template) -> None:
        now = time.time()
        if now - self._noted.get(template.id, 0.0) >= TOUCH_SECONDS:
            self._noted[template.id] = now
            with contextlib.suppress(OSError):
                await in_thread(os.utime, template.directory / MANIFEST)
        self._used[template.id] = now

    # ---- making

    async def _make(self, recipe: Recipe, point: TemplatePoint, key: Key) -> Template:
        """Make a template, and on the way to a fresh one the bare one if there is none."""
        if point is TemplatePoint.BARE:
            return await self._build_all(recipe, {point: key})
        bare = await in_thread(key_of, recipe, self._parts.engine, TemplatePoint.BARE)
        # Whoever makes a bare one alone never waits for a fresh one: this order is without end.
        async with self._flights.over(bare.digest):
            if self._by_key(bare.digest) is None and not self._failed_lately(bare.digest):
                return await self._build_all(recipe, {TemplatePoint.BARE: bare, point: key})
        return await self._build_all(recipe, {point: key})

    async def _build_all(self, recipe: Recipe, keys: Mapping[TemplatePoint, Key]) -> Template:
        """Make a template for each key, with one boot; returns that of the last point."""
        async with self._sites:
            began = time.monotonic()
            ids = {point: f"{k.digest[:12]}-{secrets.token_hex(3)}" for point, k in keys.items()}
            directories = {point: self._parts.places.template(ids[point]) for point in keys}
            number = self._numbers.pop()
            made: dict[TemplatePoint, Template] = {}
            try:
                for directory in directories.values():
                    await settle_in_thread(directory.mkdir, mode=0o700, parents=True)
                vm_id = f"{BUILDER_PREFIX}{ids[_last(ids)]}"
                built = await self._build(recipe, Site(vm_id, number, directories))
                seconds = round(time.monotonic() - began, 4)
                for point, key in keys.items():
                    if built.failure is None or point is not TemplatePoint.BARE:
                        manifest = Manifest.of(
                            recipe,
                            point,
                            key,
                            template_id=ids[point],
                            board=built.board,
                            seconds=seconds,
                        )
                        made[point] = Template(manifest, directories[point])
                        await settle_in_thread(write_manifest, made[point])
            except BaseException:
                made.clear()
                raise
            finally:
                self._numbers.add(number)  # its VM is gone
                # Where all are made, nothing may be awaited before they are on the shelf.
                if unmade := [directories[point] for point in keys.keys() - made.keys()]:
                    await settle(self._discard(unmade, recipe.memory))
        if built.failure is not None:
            self._fail(keys[TemplatePoint.BARE].digest, recipe, built.failure)
        for template in made.values():
            self._shelve(template, time.time())
            self._failed.pop(template.manifest.key.digest, None)
            self._emit("template.built", template, seconds=seconds)
        await self._keep_budget([template.id for template in made.values()])
        return made[_last(made)]

    async def _discard(self, directories: Iterable[Path], memory: int) -> None:
        for directory in directories:
            await self._parts.engine.drop(Frozen(directory, memory))
            await in_thread(shutil.rmtree, directory, ignore_errors=True)

    def _shelve(self, template: Template, used: float) -> None:
        self._shelf[template.id] = template
        self._used[template.id] = used

    async def _keep_budget(self, newest: Collection[str] = ()) -> None:
        """Drop those least recently used, without living clones, until the rest fits."""
        sizes = {t.id: await in_thread(disk_use, t.directory) for t in list(self._shelf.values())}
        for template_id in sorted(sizes, key=lambda each: self._used.get(each, 0.0)):
            if sum(sizes.values()) <= self._parts.settings.template_disk:
                return
            if template_id in newest or self._leases[template_id] or self._running(template_id):
                continue
            await self.drop(template_id, "the space for templates is used up")
            del sizes[template_id]

    async def _keep_memory(self) -> None:
        """Let go of memory that no running sandbox shares; the next clone reads it in again."""
        engine, limit = self._parts.engine, self._parts.host.memory // MEMORY_SHARE
        held = {each: engine.frozen_memory(t.frozen) for each, t in self._shelf.items()}
        for template_id in sorted(held, key=lambda each: self._used.get(each, 0.0)):
            if sum(held.values()) <= limit:
                return
            template = self._shelf.get(template_id)
            if template and not self._leases[template_id] and not self._running(template_id):
                await engine.drop(template.frozen)
                del held[template_id]

    # ---- dropping

    async def drop(self, template_id: str, reason: str) -> int:
        """Drop a template; returns the bytes that are freed.

        No start finds it from now on. Its disk stays while others are based on it. Carried out to
        its end also when this is cancelled.
        """
        return await settle(self._drop(template_id, reason))

    async def _drop(self, template_id: str, reason: str) -> int:
        template = self._shelf.pop(template_id, None)
        if template is None:
            return 0
        self._used.pop(template_id, None)
        self._noted.pop(template_id, None)
        size = (await in_thread(uses_of, template.directory)).own
        await settle_in_thread((template.directory / MANIFEST).unlink, missing_ok=True)
        await self._parts.engine.drop(template.frozen)
        self._emit("template.dropped", template, reason=reason)
        await self.settle(template_id)
        return max(0, size - (await in_thread(uses_of, template.directory)).own)

    async def settle(self, template_id: str) -> None:
        """Remove what nobody needs any more of a template that was dropped."""
        if not self._opened:  # what is complete is not known yet, and `open` clears the rest
            return
        if template_id in self._shelf or self._leases[template_id] > 0:
            return
        del self._leases[template_id]
        await self._clear(template_id)

    async def _clear(self, template_id: str) -> None:
        directory = self._parts.places.template(template_id)
        keep = self._layers.based_on(template_id)
        await in_thread(remove_but_disk if keep else remove_all, directory)

    # ---- looking

    def find(self, ref: str) -> Template:
        """Find by id, or by the beginning of one or of a key. Raises template_not_found."""
        if ref in self._shelf:
            return self._shelf[ref]
        found = [
            template
            for template in self._shelf.values()
            if template.id.startswith(ref) or template.manifest.key.digest.startswith(ref)
        ]
        if len(ref) >= _PREFIX_MIN and len(found) == 1:
            return found[0]
        raise error(
            "template_not_found",
            f"there is no template {ref}",
            hint="`hutch template ls` lists all of them",
        )

    async def infos(self) -> Sequence[TemplateInfo]:
        """Return all templates, the most recently used first."""
        order = sorted(self._shelf, key=lambda each: self._used.get(each, 0.0), reverse=True)
        return [await self.info(self._shelf[each]) for each in order if each in self._shelf]

    async def info(self, template: Template) -> TemplateInfo:
        """Return one template as users see it."""
        manifest = template.manifest
        return TemplateInfo(
            id=manifest.id,
            key=manifest.key.digest,
            point=manifest.point,
            image=manifest.image,
            image_id=manifest.image_id,
            kernel=manifest.kernel,
            accelerator=manifest.accelerator,
            machine=manifest.machine.value,
            cpus=manifest.cpus,
            memory=manifest.memory,
            disk=manifest.disk,
            created_at=manifest.created_at,
            used_at=timestamp(self._used.get(template.id)),
            build_seconds=manifest.build_seconds,
            sandboxes=len(self._registry.based_on(template.id)),
            running=self._running(template.id),
            disk_bytes=await in_thread(disk_use, template.directory),
            memory_bytes=self._parts.engine.frozen_memory(template.frozen),
        )

    def memory_use(self) -> int:
        """Return the bytes of host memory that templates hold for clones to share."""
        return sum(self._parts.engine.frozen_memory(t.frozen) for t in self._shelf.values())

    def has(self, template_id: str) -> bool:
        """Tell whether starts still find a template."""
        return template_id in self._shelf

    def unused(self) -> Sequence[str]:
        """Return the ids of those that no sandbox has begun as a clone of, or is about to."""
        return [
            each
            for each in self._shelf
            if not self._leases[each]
            and not self._layers.based_on(each)
            and not self._registry.based_on(each)
        ]

    def _running(self, template_id: str) -> int:
        based = self._registry.based_on(template_id)
        return sum(info.state.has_machine for info in based)

    # ---- at the start of the daemon

    async def open(self) -> None:
        """Take up what is complete and can still be used; remove the rest. For a full registry."""
        places = self._parts.places
        for directory in await in_thread(directories_in, places.runtime, BUILDER_PREFIX):
            log.warning("removing what is left of the template build %s", directory.name)
            await clear_away(self._parts, directory)
        for directory in await in_thread(directories_in, places.templates, ""):
            taken = await in_thread(self._read, directory)
            if taken is not None:
                self._shelve(*taken)
            else:
                await self._clear(directory.name)
        self._opened = True
        await self._keep_budget()

    def _read(self, directory: Path) -> tuple[Template, float] | None:
        """Return a template and when it was last used; None for one that is of no use."""
        path = directory / MANIFEST
        try:
            body = json.loads(path.read_bytes())
            if body["format"] != FORMAT:
                return None
            manifest = from_json(Manifest, body)
            template = Template(manifest, directory)
            complete = all(file.is_file() for file in template.files)
            complete = complete and manifest.id == directory.name
            used = path.stat().st_mtime
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("the template in %s is not readable", directory)
            return None
        if not complete or is_stale(manifest.key, self._parts.engine):
            log.info("the template %s of %s cannot be used any more", manifest.id, manifest.image)
            path.unlink(missing_ok=True)
            self._emit("template.dropped", template, reason="what it was made of has changed")
            return None
        return template, used

    def _emit(self, kind: str, template: Template, **fields: Any) -> None:
        self._parts.events.emit(kind, template.id, template.manifest.image, **fields)


def _last(points: Collection[TemplatePoint]) -> TemplatePoint:
    """Return the last of some points that a boot comes to."""
    return TemplatePoint.FRESH if TemplatePoint.FRESH in points else TemplatePoint.BARE
