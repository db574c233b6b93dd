"""Making a template: an image is booted, made ready, let go of, and frozen.

What is done to it before the freeze is done once instead of at each start: mounts, and the code of
the paths that every sandbox takes, which emulation translates at first use. No program of the image
has run in it.
"""

import functools
import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hutch.engine.base import MachineType
from hutch.guest.base import Guest, Identity
from hutch.service.boot import Boots, Order
from hutch.service.parts import TEMPLATE_DISK, Parts
from hutch.service.recipe import DISK_SERIAL, ROOT_SERIAL, Recipe, machine_spec
from hutch.service.templates import Site
from hutch.tasks import settle_in_thread

NOBODY = "template"
"""The host name of a machine that is nobody's yet."""


class Builder:
    """Builds the templates of one host."""

    def __init__(self, parts: Parts, boots: Boots) -> None:
        self._parts = parts
        self._boots = boots

    async def build(self, recipe: Recipe, site: Site) -> MachineType:
        """Fill a template's directory; returns the board.

        The VM is gone when this ends, however it does. Raises boot_failed, no_capacity, engine_*,
        disk_full.
        """
        parts, settings = self._parts, self._parts.settings
        own_uid = os.geteuid() == 0 and settings.jail
        disk = site.directory / TEMPLATE_DISK
        await settle_in_thread(parts.engine.create_disk, disk, recipe.disk, recipe.base)
        spec = machine_spec(
            recipe,
            vm_id=site.vm_id,
            directory=parts.places.machine(site.vm_id),
            console_log=site.directory / "console.log",
            disk=disk,
            # Past the range of the sandboxes' VMs, and past the user of the canaries.
            uid=settings.uid_base + settings.uid_count + 1 + site.number if own_uid else None,
        )
        order = Order(
            subject=f"a template of {recipe.image}",
            spec=replace(spec, freezable=True),
            start=parts.engine.boot,
            set_up=functools.partial(make_ready, recipe),
            record=_no_record,
            hint="see `hutch doctor`",
        )
        # Until it is frozen, not only until it is up: nobody else counts it.
        async with parts.capacity.admit(order.need):
            return await self._boot_and_freeze(order, site)

    async def _boot_and_freeze(self, order: Order, site: Site) -> MachineType:
        machine, guest = await self._boots.boot(order)
        try:
            try:
                await guest.close()
            except BaseException:
                await machine.kill()
                raise
            await self._parts.engine.freeze(machine, site.directory)
        finally:
            await self._boots.remove_directory(order.spec.directory)
        return machine.record.machine


async def make_ready(recipe: Recipe, guest: Guest) -> None:
    """Mount a machine's disks, and walk once through what each clone of it will do."""
    await mount(recipe, guest)
    await guest.identify(
        Identity(
            hostname=NOBODY,
            machine_id="0" * 32,
            entropy=secrets.token_bytes(64),
            nonce=secrets.token_bytes(16),
            generation=0,
            hosts=[("127.0.1.1", NOBODY)],
        )
    )
    await guest.files.stat("/")
    # What is dirty now would be written by each of the clones.
    await guest.sync()


async def mount(recipe: Recipe, guest: Guest) -> None:
    """Mount the root and the writable disk."""
    await guest.mount_root(ROOT_SERIAL, recipe.rootfs.fstype)
    await guest.mount_overlay(DISK_SERIAL, volumes=recipe.volumes)


async def _no_record(machine: Mapping[str, Any] | None) -> None:
    """Keep none: the VM's sockets are found by its directory's name when the daemon dies."""
