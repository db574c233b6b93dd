"""From a sandbox on record to a VM whose agent answers, with its disks and its identity.

One that was never started begins as a clone of its template where there can be one; every other
boots cold, and so does one whose template fails it. It must not know of states, nor of the programs
that run later.
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
from pathlib import Path
from typing import Any, Final, Protocol

from hutch.engine.base import BootFiles, Machine, MachineSpec, Verdict
from hutch.errors import HutchError, error
from hutch.guest.base import Guest, Identity
from hutch.images.base import no_report
from hutch.models import SandboxInfo
from hutch.service.boot import STALL_SHARE, Boots, Late, Order, Stalled, boards
from hutch.service.build import Builder, mount
from hutch.service.parts import Parts
from hutch.service.recipe import Recipe, fits, machine_spec
from hutch.service.registry import Registry
from hutch.service.templates import Template, Templates
from hutch.state.base import SandboxRow
from hutch.tasks import in_thread, settle_in_thread

log = logging.getLogger(__name__)

_TEMPLATE_AT_FAULT: Final = "template"
"""The detail of an engine's error that says that a template will never load."""


class BootRecord(Protocol):
    """What a boot puts on record of its sandbox, each before the act."""

    async def machine(self, machine: Mapping[str, Any] | None) -> None:
        """Record the VM as soon as it exists; None once it is gone."""

    async def template(self, template_id: str | None) -> None:
        """Record which template's disk is about to be behind the sandbox's."""


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
        self.templates = Templates(parts, registry, Builder(parts, self._boots).build)

    async def boot(self, row: SandboxRow, record: BootRecord, *, cold: bool) -> Booted:
        """Bring a sandbox's VM up to the point where programs can run; `cold` without a template.

        Raises boot_failed (with the console's last lines), image_not_found, kernel_*, engine_*,
        disk_full, tool_missing.
        """
        recipe = await self.recipe(row.info)
        began = time.monotonic()
        reached = None
        if not cold and row.info.started_at is None and self.has_template(recipe):
            reached = await self._from_template(row, record, recipe)
        machine, guest = reached or await self._cold(row, record, recipe)
        seconds = time.monotonic() - began
        return Booted(machine, guest, recipe.kernel.name, recipe.verdict, seconds)

    def has_template(self, recipe: Recipe) -> bool:
        """Tell whether sandboxes of a recipe begin as clones."""
        return self._parts.settings.templates and fits(recipe, self._parts.settings)

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
        )

    # ---- from a template

    async def _from_template(
        self, row: SandboxRow, record: BootRecord, recipe: Recipe
    ) -> tuple[Machine, Guest] | None:
        """Start a clone; None when there is none to be had, and nothing is left of the attempt."""
        async with self.templates.lease(recipe) as template:
            if template is None:
                return None
            try:
                return await self._clone(row, record, recipe, template)
            except (Stalled, Late) as cause:
                why, at_fault = str(cause) or "no time was left", True
            except HutchError as cause:
                if cause.code != "engine_failed":
                    raise
                why, at_fault = cause.message, bool(cause.details.get(_TEMPLATE_AT_FAULT))
            log.warning("%s is no clone of %s, and boots cold: %s", row.info.name, template.id, why)
            await record.template(None)
            if at_fault:
                await self.templates.drop(template.id, f"a clone of it failed: {why}")
            return None

    async def _clone(
        self, row: SandboxRow, record: BootRecord, recipe: Recipe, template: Template
    ) -> tuple[Machine, Guest]:
        await self._new_disk(row, record, recipe, template)
        spec = self._spec(row, recipe, [template.disk])
        spec = dataclasses.replace(spec, machine=template.manifest.machine)
        start = functools.partial(self._parts.engine.clone, frozen=template.frozen)
        set_up = functools.partial(_set_up_clone, row.info, row.generation)
        limit = self._parts.settings.boot_timeout * STALL_SHARE
        order = self._order(row, spec, record, start, set_up)
        return await self._boots.attempt(order, time.monotonic() + limit)

    # ---- cold

    async def _cold(
        self, row: SandboxRow, record: BootRecord, recipe: Recipe
    ) -> tuple[Machine, Guest]:
        layers: list[Path] = []
        if row.info.started_at is None:
            await self._new_disk(row, record, recipe, None)
        else:
            await self._check_disk(row.info)
            if row.info.template is not None:
                layers = [self._parts.places.template_disk(row.info.template)]
        spec = self._spec(row, recipe, layers)
        set_up = functools.partial(_set_up, recipe, row.info, row.generation)
        return await self._boots.boot(
            self._order(row, spec, record, self._parts.engine.boot, set_up)
        )

    async def _new_disk(
        self, row: SandboxRow, record: BootRecord, recipe: Recipe, template: Template | None
    ) -> None:
        """Make the writable disk of a sandbox that was never started.

        Always a new one: what a clone that failed has written on it fits to no other memory.
        """
        path, engine = self._parts.places.disk(row.info.id), self._parts.engine
        await settle_in_thread(path.parent.mkdir, mode=0o700, parents=True, exist_ok=True)
        await settle_in_thread(path.unlink, missing_ok=True)
        based_on = None if template is None else template.id
        await record.template(based_on)
        if row.info.template not in (None, based_on):
            await self.templates.settle(row.info.template)
        if template is None:
            await settle_in_thread(engine.create_disk, path, recipe.disk, recipe.base)
        else:
            await settle_in_thread(engine.create_disk, path, recipe.disk, template.disk, "qcow2")

    async def _check_disk(self, info: SandboxInfo) -> None:
        path = self._parts.places.disk(info.id)
        if not await in_thread(path.exists):
            raise error(
                "engine_failed",
                f"the disk of sandbox {info.name} is gone: {path}",
                hint=f"remove the sandbox with `hutch rm {info.name}`",
            )

    # ---- both

    def _spec(self, row: SandboxRow, recipe: Recipe, layers: list[Path]) -> MachineSpec:
        places, settings, sandbox_id = self._parts.places, self._parts.settings, row.info.id
        own_uid = os.geteuid() == 0 and settings.jail
        return machine_spec(
            recipe,
            vm_id=sandbox_id,
            directory=places.machine(sandbox_id),
            console_log=places.console(sandbox_id),
            disk=places.disk(sandbox_id),
            uid=settings.uid_base + row.slot if own_uid else None,
            layers=layers,
        )

    def _order(
        self,
        row: SandboxRow,
        spec: MachineSpec,
        record: BootRecord,
        start: Callable[[MachineSpec], Awaitable[Machine]],
        set_up: Callable[[Guest], Awaitable[None]],
    ) -> Order:
        name = row.info.name
        return Order(
            subject=f"sandbox {name}",
            spec=spec,
            start=start,
            set_up=set_up,
            record=record.machine,
            hint=f"read its console with `hutch logs --boot {name}`, and see `hutch doctor`",
        )


async def _set_up(recipe: Recipe, info: SandboxInfo, generation: int, guest: Guest) -> None:
    await mount(recipe, guest)
    await guest.identify(_identity(info, generation))
    await _make_workdir(info, guest)


async def _set_up_clone(info: SandboxInfo, generation: int, guest: Guest) -> None:
    # Before anything runs in it: until then it is bit by bit the same as every other clone.
    if not await guest.identify(_identity(info, generation)):
        raise Stalled("the clone did not renew its random numbers")
    await _make_workdir(info, guest)


def _identity(info: SandboxInfo, generation: int) -> Identity:
    return Identity(
        hostname=info.hostname,
        machine_id=hashlib.sha256(info.id.encode()).hexdigest()[:32],
        entropy=secrets.token_bytes(64),
        nonce=secrets.token_bytes(16),
        generation=generation,
        hosts=[("127.0.1.1", info.hostname)],
    )


async def _make_workdir(info: SandboxInfo, guest: Guest) -> None:
    if info.workdir != "/":
        # As container runtimes do: an image may name a working directory that it does not have.
        await guest.files.mkdir(info.workdir, parents=True)
