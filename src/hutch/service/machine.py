"""From a sandbox on record to a VM whose agent answers, with its disks and its identity.

It begins as a clone of a template where there can be one: a new one with the usual disk of a fresh
template, every other of a bare one, to which it brings its own disk. One whose template fails it
boots cold. It must not know of states, nor of the programs that run later.
"""

import dataclasses
import functools
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from hutch.engine.base import BootFiles, Frozen, Machine, MachineSpec, Verdict
from hutch.errors import HutchError, error
from hutch.guest.base import Guest, Identity
from hutch.images.base import no_report
from hutch.models import SandboxInfo, TemplatePoint
from hutch.networking import GATEWAY_ADDRESS, NetworkMode
from hutch.service.boot import Boots, Late, Order, Stalled, boards
from hutch.service.build import Builder, mount_disk, mount_root, nobody
from hutch.service.layers import Layers
from hutch.service.parts import Parts
from hutch.service.plugs import Plug
from hutch.service.recipe import Recipe, fits, fits_bare
from hutch.service.recipe import machine_spec as spec_of
from hutch.service.registry import Registry
from hutch.service.stats import disk_use
from hutch.service.templatefile import Template
from hutch.service.templates import Templates
from hutch.state.base import LayerRow, SandboxRow
from hutch.tasks import in_thread, settle

log = logging.getLogger(__name__)

_TEMPLATE_AT_FAULT: Final = "template"
"""The detail of an engine's error that says that a template will never load."""


class Unmountable(Stalled):
    """The disk that a clone has brought cannot be mounted, which its template cannot help."""


class BootRecord(Protocol):
    """What a boot puts on record of its sandbox, each before the act."""

    @property
    def row(self) -> SandboxRow:
        """The sandbox as it is on record now."""

    @property
    def closed(self) -> bool:
        """Whether its network stays closed until it is opened (see `plugs.py`)."""

    async def machine(self, machine: Mapping[str, Any] | None) -> None:
        """Record the VM as soon as it exists; None once it is gone."""

    async def layer(self, layer: LayerRow, template_id: str | None) -> None:
        """Record a new uppermost layer of its disk, and the template that is behind it."""


@dataclass(frozen=True, slots=True)
class Booted:
    """A VM ready for its first program."""

    machine: Machine
    guest: Guest
    kernel: str
    verdict: Verdict
    seconds: float


class Booter:
    """Boots the sandboxes of one host."""

    def __init__(self, parts: Parts, registry: Registry) -> None:
        self._parts = parts
        self._boots = Boots(parts)
        self.layers = Layers(parts, self._settle)
        self.layers.add_holder(registry.layers)
        self.templates = Templates(parts, registry, self.layers, Builder(parts, self._boots).build)

    async def _settle(self, template_id: str) -> None:
        await self.templates.settle(template_id)

    async def boot(self, row: SandboxRow, record: BootRecord, *, cold: bool) -> Booted:
        """Bring a sandbox's VM up to the point where programs can run; `cold` without a template.

        Raises boot_failed (with the console's last lines), image_not_found, kernel_*, engine_*,
        disk_full, tool_missing.
        """
        recipe = await self.recipe(row.info)
        began = time.monotonic()
        reached = None
        if not cold and (point := self._point(row.info, recipe)) is not None:
            reached = await self._from_template(row, record, recipe, point)
        machine, guest = reached or await self._cold(row, record, recipe)
        seconds = time.monotonic() - began
        return Booted(machine, guest, recipe.kernel.name, recipe.verdict, seconds)

    def has_template(self, recipe: Recipe) -> bool:
        """Tell whether new sandboxes of a recipe begin as clones that are ready at once."""
        return self._parts.settings.templates and fits(recipe, self._parts.settings)

    def _point(self, info: SandboxInfo, recipe: Recipe) -> TemplatePoint | None:
        """Return what a sandbox begins as a clone of. None: it boots cold."""
        if _is_new(info) and self.has_template(recipe):
            return TemplatePoint.FRESH
        bare = self._parts.settings.templates and fits_bare(recipe)
        return TemplatePoint.BARE if bare else None

    async def recipe(self, info: SandboxInfo) -> Recipe:
        """Return what a sandbox's VM is made of. Raises image_not_found, kernel_*, engine_*."""
        parts = self._parts
        kernel = await parts.kernels.ensure(info.kernel, no_report)
        rootfs = await in_thread(parts.images.rootfs_path, info.image_id)
        if rootfs is None:
            raise error(
                "image_not_found",
                f"the image {info.image} of sandbox {info.name} is gone",
                hint=f"get it back with `hutch image pull {info.image}`",
            )
        return Recipe(
            image=info.image,
            image_id=info.image_id,
            rootfs=rootfs,
            kernel=kernel,
            base=await parts.base_disk(parts.settings.home, info.disk),
            verdict=await parts.engine.probe(BootFiles(kernel.vmlinux, kernel.initramfs)),
            boards=tuple(boards(parts.settings.machine)),
            cpus=info.cpus,
            memory=info.memory,
            disk=info.disk,
            volumes=tuple(info.volumes),
            network=parts.plugs.ability.taps,
        )

    # ---- from a template

    async def _from_template(
        self, row: SandboxRow, record: BootRecord, recipe: Recipe, point: TemplatePoint
    ) -> tuple[Machine, Guest] | None:
        """Start a clone; None when there is none to be had, and nothing is left of the attempt."""
        reached = None
        try:
            async with self.templates.lease(recipe, point) as template:
                if template is not None:
                    reached = await self._clone_of(template, row, record, recipe, point)
        except BaseException:
            if reached is not None:  # it was the end of the lease that was cut off
                await settle(self._boots.undo(*reached, record.machine))
            raise
        return reached

    async def _clone_of(
        self,
        template: Template,
        row: SandboxRow,
        record: BootRecord,
        recipe: Recipe,
        point: TemplatePoint,
    ) -> tuple[Machine, Guest] | None:
        """Start a clone of a leased template; None when that fails, and nothing is left then."""
        try:
            if point is TemplatePoint.BARE:
                return await self._clone_bare(row, record, recipe, template)
            set_up = functools.partial(set_up_clone, row.info, row.generation)
            return await self.clone(row, record, recipe, template, set_up)
        except (Stalled, Late) as cause:
            why = str(cause) or "no time was left"
            at_fault = not isinstance(cause, Unmountable)
        except HutchError as cause:
            if cause.code != "engine_failed":
                raise
            why, at_fault = cause.message, bool(cause.details.get(_TEMPLATE_AT_FAULT))
        log.warning("%s is no clone of %s, and boots cold: %s", row.info.name, template.id, why)
        if at_fault:
            await self.templates.drop(template.id, f"a clone of it failed: {why}")
        return None

    async def clone(
        self,
        row: SandboxRow,
        record: BootRecord,
        recipe: Recipe,
        template: Template,
        set_up: Callable[[Guest], Awaitable[None]],
    ) -> tuple[Machine, Guest]:
        """Start a clone of a leased fresh template, with a new disk, and `set_up` its guest.

        Nothing but the disk is left when it raises: Stalled, Late, engine_*, disk_full.
        """
        layer = await self._new_disk(row, record, recipe, template)
        spec = self.machine_spec(row, recipe, layer)
        spec = dataclasses.replace(spec, machine=template.manifest.machine)
        return await self.take_up(row, record, spec, template.frozen, set_up)

    async def _clone_bare(
        self, row: SandboxRow, record: BootRecord, recipe: Recipe, template: Template
    ) -> tuple[Machine, Guest]:
        """Start a clone of a bare template that is leased, with the sandbox's own disk.

        Nothing but the disk is left when it raises: Stalled, Late, engine_*, disk_full.
        """
        layer = await self._own_disk(row, record, recipe, template)
        spec = self.machine_spec(row, recipe, layer)
        root, disk = spec.drives
        if recipe.disk != template.manifest.disk:
            disk = dataclasses.replace(disk, size=recipe.disk)
        spec = dataclasses.replace(spec, machine=template.manifest.machine, drives=[root, disk])
        set_up = functools.partial(_set_up_bare, recipe, row.info, row.generation)
        return await self.take_up(row, record, spec, template.frozen, set_up)

    # ---- cold

    async def _cold(
        self, row: SandboxRow, record: BootRecord, recipe: Recipe
    ) -> tuple[Machine, Guest]:
        layer = await self._own_disk(row, record, recipe, None)
        spec = self.machine_spec(row, recipe, layer)
        set_up = functools.partial(_set_up, recipe, row.info, row.generation)
        return await self._boots.boot(
            self._order(row, spec, record, self._parts.engine.boot, set_up)
        )

    # ---- disks

    async def _own_disk(
        self, row: SandboxRow, record: BootRecord, recipe: Recipe, template: Template | None
    ) -> str:
        """Return the uppermost layer of a sandbox's disk, to be mounted; a new one is made."""
        layer = record.row.layer  # an attempt that failed may have joined the layers
        if layer is None or _is_new(row.info):
            return await self._new_disk(row, record, recipe, template)
        await self._check_disk(row.info, layer)
        based_on = row.info.template
        return await self.layers.shorten(
            layer, recipe.base, lambda joined: record.layer(joined, based_on)
        )

    async def _new_disk(
        self, row: SandboxRow, record: BootRecord, recipe: Recipe, template: Template | None
    ) -> str:
        """Make the disk of a sandbox that was never started; returns its only layer.

        Always a new one: what a clone that failed has written on it fits to no other memory. It is
        over the template's disk where there is one, and then fits to no memory but its.
        """
        template_id = None if template is None else template.id
        has_disk = template is not None and template.disk is not None
        layer = self.layers.plan(template=template_id if has_disk else None)
        await settle(self._put_disk(record, layer, template_id, recipe))
        return layer.id

    async def _put_disk(
        self, record: BootRecord, layer: LayerRow, template_id: str | None, recipe: Recipe
    ) -> None:
        before = record.row.layer
        await record.layer(layer, template_id)
        await self.layers.make(layer, recipe.disk, recipe.base)
        await self.layers.release(before)

    async def _check_disk(self, info: SandboxInfo, layer_id: str) -> None:
        for path in (self.layers.path(layer_id), *self.layers.behind(layer_id)):
            if not await in_thread(path.exists):
                raise error(
                    "engine_failed",
                    f"the disk of sandbox {info.name} is gone: {path}",
                    hint=f"remove the sandbox with `hutch rm {info.name}`",
                )

    # ---- both

    def machine_spec(self, row: SandboxRow, recipe: Recipe, layer_id: str) -> MachineSpec:
        """Return the VM of a sandbox whose disk's uppermost layer is `layer_id`."""
        places, settings, sandbox_id = self._parts.places, self._parts.settings, row.info.id
        own_uid = os.geteuid() == 0 and settings.jail
        return spec_of(
            recipe,
            vm_id=sandbox_id,
            directory=places.machine(sandbox_id),
            console_log=places.console(sandbox_id),
            disk=self.layers.path(layer_id),
            uid=settings.uid_base + row.slot if own_uid else None,
            layers=self.layers.behind(layer_id),
        )

    async def take_up(
        self,
        row: SandboxRow,
        record: BootRecord,
        spec: MachineSpec,
        frozen: Frozen,
        set_up: Callable[[Guest], Awaitable[None]],
    ) -> tuple[Machine, Guest]:
        """Start a clone that goes on where a machine stopped; once, and within a clone's time.

        Raises Stalled, Late, and what `Engine.clone` and `set_up` raise; nothing is left then.
        """
        start = functools.partial(self._parts.engine.clone, frozen=frozen)
        order = self._order(row, spec, record, start, set_up)
        order = dataclasses.replace(order, load=await self._to_load(frozen))
        return await self._boots.attempt(order)

    async def _to_load(self, frozen: Frozen) -> int:
        """Return the bytes of frozen memory that the next clone must read in."""
        if self._parts.engine.frozen_memory(frozen):
            return 0
        return await in_thread(lambda: sum(map(disk_use, (frozen.image, *frozen.below()))))

    def _order(
        self,
        row: SandboxRow,
        spec: MachineSpec,
        record: BootRecord,
        start: Callable[[MachineSpec], Awaitable[Machine]],
        set_up: Callable[[Guest], Awaitable[None]],
    ) -> Order:
        name, names = row.info.name, self._parts.places.names(row.info.id)
        return Order(
            subject=f"sandbox {name}",
            spec=spec,
            plug=Plug(row.info.id, name, names, closed=record.closed),
            start=start,
            set_up=set_up,
            record=record.machine,
            hint=f"read its console with `hutch logs --boot {name}`, and see `hutch doctor`",
        )


def _is_new(info: SandboxInfo) -> bool:
    """Tell whether there is nothing on a sandbox's disk: it was never started, nor restored."""
    return info.started_at is None and info.origin is None


async def _set_up(recipe: Recipe, info: SandboxInfo, generation: int, guest: Guest) -> None:
    await mount_root(recipe, guest)
    await mount_disk(recipe, guest)
    await guest.identify(_identity(info, generation))
    await _make_workdir(info, guest)


async def _set_up_bare(recipe: Recipe, info: SandboxInfo, generation: int, guest: Guest) -> None:
    """Mount a clone's own disk, and make it the sandbox that it is.

    Raises Stalled if it did not renew its randomness, Unmountable for a disk that was used before.
    """
    # Mounting draws random numbers, too. Name and files come when there is a place for them.
    if not await guest.identify(nobody()):
        raise Stalled("the clone did not renew its random numbers")
    try:
        await mount_disk(recipe, guest, size=recipe.disk)
    except HutchError as cause:
        if _is_new(info):
            raise
        raise Unmountable(f"its disk cannot be mounted: {cause.message}") from cause
    await set_up_clone(info, generation, guest)


async def set_up_clone(info: SandboxInfo, generation: int, guest: Guest) -> None:
    """Make a clone the sandbox that it is. Raises Stalled if it did not renew its randomness."""
    await identify_clone(info, generation, guest)
    await _make_workdir(info, guest)


async def identify_clone(info: SandboxInfo, generation: int, guest: Guest) -> None:
    """Give a clone its identity. Raises Stalled if it did not renew its randomness."""
    # Before anything runs in it: until then it is bit by bit the same as every other clone.
    if not await guest.identify(_identity(info, generation)):
        raise Stalled("the clone did not renew its random numbers")


def _identity(info: SandboxInfo, generation: int) -> Identity:
    return Identity(
        hostname=info.hostname,
        machine_id=hashlib.sha256(info.id.encode()).hexdigest()[:32],
        entropy=secrets.token_bytes(64),
        nonce=secrets.token_bytes(16),
        generation=generation,
        hosts=[("127.0.1.1", info.hostname)],
        # Where there is no network it is never asked, and fails at once.
        nameservers=[GATEWAY_ADDRESS],
        network=info.network.mode is not NetworkMode.NONE,
    )


async def _make_workdir(info: SandboxInfo, guest: Guest) -> None:
    if info.workdir != "/":
        # As container runtimes do: an image may name a working directory that it does not have.
        await guest.files.mkdir(info.workdir, parents=True)
