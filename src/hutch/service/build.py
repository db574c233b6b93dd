"""Making templates: an image is booted, made ready, let go of, and frozen.

One boot passes both points: at the first the machine is captured and goes on, at the second it
ends. What is done to it before is done once instead of at each start. No program of the image has
run in it.
"""

import contextlib
import functools
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hutch.engine.base import Machine
from hutch.errors import HutchError
from hutch.guest.base import Guest, Identity
from hutch.images.flight import together
from hutch.models import TemplatePoint
from hutch.networking import GATEWAY_ADDRESS
from hutch.service.boot import STALL_SHARE, Boots, Order
from hutch.service.parts import TEMPLATE_DISK, Parts
from hutch.service.plugs import Plug
from hutch.service.recipe import DISK_SERIAL, ROOT_SERIAL, Recipe, machine_spec
from hutch.service.templates import Built, Site
from hutch.tasks import settle, settle_in_thread

NOBODY = "t"
"""The host name of a machine that is nobody's yet."""

_USUAL = ("sh", "env")

HOOKS = "/etc/hutch/generation.d"
"""Where the agent looks for programs that are to be told of a new life."""


class Builder:
    """Builds the templates of one host."""

    def __init__(self, parts: Parts, boots: Boots) -> None:
        self._parts = parts
        self._boots = boots

    async def build(self, recipe: Recipe, site: Site) -> Built:
        """Fill the directories of a site, one for each point that it is to be frozen at.

        The VM is gone when this ends, however it does. Raises boot_failed, no_capacity, engine_*,
        disk_full.
        """
        parts, settings = self._parts, self._parts.settings
        own_uid = os.geteuid() == 0 and settings.jail
        disk = site.last / TEMPLATE_DISK
        await settle_in_thread(parts.engine.create_disk, disk, recipe.disk, recipe.base)
        spec = machine_spec(
            recipe,
            vm_id=site.vm_id,
            directory=parts.places.machine(site.vm_id),
            console_log=site.last / "console.log",
            disk=disk,
            # Past the range of the sandboxes' VMs, and past the user of the canaries.
            uid=settings.uid_base + settings.uid_count + 1 + site.number if own_uid else None,
        )
        programs = await self._programs(recipe)
        order = Order(
            subject=f"a template of {recipe.image}",
            spec=replace(spec, freezable=True),
            plug=Plug(site.vm_id, site.vm_id),
            start=parts.engine.boot,
            set_up=functools.partial(make_bare, recipe, programs),
            record=_no_record,
            hint="see `hutch doctor`",
        )
        # Until it is frozen, not only until it is up: nobody else counts it.
        async with parts.capacity.admit(order.need):
            machine, guest = await self._boots.boot(order)
            try:
                failure = await self._freeze(machine, guest, recipe, programs, site)
            finally:
                await settle(self._end(machine))
        if TemplatePoint.FRESH not in site.directories:
            # Nothing was ever written to it: clones bring their own.
            await settle_in_thread(disk.unlink)
        return Built(machine.record.machine, failure)

    async def _end(self, machine: Machine) -> None:
        try:
            await machine.kill()
        finally:
            await self._boots.remove_directory(machine.record.directory)

    async def _freeze(
        self, machine: Machine, guest: Guest, recipe: Recipe, programs: Sequence[str], site: Site
    ) -> HutchError | None:
        """Freeze a machine at each point; returns why there is only the last, if so."""
        engine, failure = self._parts.engine, None
        async with contextlib.AsyncExitStack() as stack, together() as group:
            stack.push_async_callback(guest.close)
            if TemplatePoint.FRESH in site.directories:
                if (bare := site.directories.get(TemplatePoint.BARE)) is not None:
                    await guest.close()
                    try:
                        frozen = await engine.capture(machine, bare)
                    except HutchError as cause:
                        if cause.code == "sandbox_died":
                            raise
                        failure = cause
                    else:
                        # Its memory is written to disk while the machine goes on.
                        group.create_task(engine.keep(frozen))
                    guest = await self._connect(machine)
                    stack.push_async_callback(guest.close)
                await make_fresh(recipe, programs, guest)
            await guest.close()
            await engine.freeze(machine, site.last)
        return failure

    async def _programs(self, recipe: Recipe) -> list[str]:
        """Return what clones are likely to run first: the image's own command, and a shell."""
        config = (await self._parts.images.inspect(recipe.image_id)).config
        return [*config.entrypoint[:1], *config.command[:1], *_USUAL]

    async def _connect(self, machine: Machine) -> Guest:
        limit = self._parts.settings.boot_timeout * STALL_SHARE
        return await self._parts.connect_guest(machine.agent_socket, timeout=limit)


async def make_bare(recipe: Recipe, programs: Sequence[str], guest: Guest) -> None:
    """Mount the root of a machine, and walk once through what each clone of it begins with.

    The pages of `programs` are in its memory then: to read them is not to run them.
    """
    await mount_root(recipe, guest)
    await guest.identify(nobody())
    await guest.prefetch(programs)


async def make_fresh(recipe: Recipe, programs: Sequence[str], guest: Guest) -> None:
    """Mount its writable disk as well, and walk once through what each clone will do then.

    The names that lead to `programs` are known by then, and those that lead nowhere.
    """
    await mount_disk(recipe, guest)
    await guest.identify(nobody())
    await guest.prefetch(programs)
    with contextlib.suppress(HutchError):  # most images have none
        await guest.files.stat(HOOKS)
    # What is dirty now would be written by each of the clones.
    await guest.sync()


def nobody() -> Identity:
    """Return the identity of a machine that is nobody's yet, with new randomness."""
    return Identity(
        hostname=NOBODY,
        machine_id="0" * 32,
        entropy=secrets.token_bytes(64),
        nonce=secrets.token_bytes(16),
        generation=0,
        hosts=[("127.0.1.1", NOBODY)],
        nameservers=[GATEWAY_ADDRESS],  # as all have it: the file need not be written again
    )


async def mount_root(recipe: Recipe, guest: Guest) -> None:
    """Mount the image's root."""
    await guest.mount_root(ROOT_SERIAL, recipe.rootfs.fstype)


async def mount_disk(recipe: Recipe, guest: Guest, *, size: int | None = None) -> None:
    """Mount the writable disk, which will have `size` bytes where that is about to change."""
    await guest.mount_overlay(DISK_SERIAL, volumes=recipe.volumes, size=size)


async def _no_record(machine: Mapping[str, Any] | None) -> None:
    """Keep none: the VM's sockets are found by its directory's name when the daemon dies."""
