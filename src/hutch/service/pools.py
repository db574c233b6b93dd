"""The pools of one host: those on record, what users ask of them, and who claims a member.

A pool outlives the daemon, its members do not: the next daemon removes what is left of them and
fills anew. A member is claimed by one sandbox at most, which takes over its row, slot, disk and VM
in one step on record.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from hutch.errors import HutchError, error
from hutch.images.base import Report, no_report
from hutch.images.reference import parse
from hutch.models import (
    PoolInfo,
    PullPolicy,
    Removed,
    SandboxInfo,
    SandboxSpec,
    timestamp,
)
from hutch.service.ahead import look_ahead
from hutch.service.machine import Booted, Booter
from hutch.service.names import new_id
from hutch.service.parts import Parts
from hutch.service.policies import policy_of
from hutch.service.pool import Lull, Pool, Yard
from hutch.service.pool_member import Member, Members
from hutch.service.spec import default_hostname, sizes
from hutch.state.base import PoolRow, SandboxRow
from hutch.tasks import Scope, give_way, settle

log = logging.getLogger(__name__)

POOL_PREFIX: Final = "po_"
SIZE_MAX: Final = 256
CLAIM_SECONDS: Final = 60.0
"""A sandbox that is not started within that time gives its member up, and begins as others do."""


class MachineRecord(Protocol):
    """Where it is noted that a sandbox has no VM any more (see `machine.BootRecord`)."""

    async def machine(self, machine: Mapping[str, Any] | None) -> None:
        """Record the VM, or that it is gone."""


@dataclasses.dataclass(slots=True)
class Offer:
    """A member that was taken out of its pool for a sandbox that is likely to claim it."""

    pool: Pool | None = None
    member: Member | None = None


class Pools:
    """Implements `Pools` of the API's operations, and lends members to the lives of sandboxes."""

    def __init__(self, parts: Parts, booter: Booter, abandoned: Callable[[str], None]) -> None:
        """`abandoned` is told of a sandbox that has lost the VM which it had claimed."""
        self._parts = parts
        self._abandoned = abandoned
        self._booter = booter
        self._members = Members(parts, booter)
        self._lull = Lull()
        self._yard = Yard(self._members, self._make, parts.events, self._lull, asyncio.Lock())
        self._pools: dict[str, Pool] = {}
        self._claimed: dict[str, Member] = {}
        self._changes = asyncio.Lock()
        self._claims = Scope("claims")
        self._ends = Scope("claims given up", grace=10.0)
        self._leaving: dict[str, asyncio.Task[None]] = {}

    # ---- what users ask for

    async def list(self) -> Sequence[PoolInfo]:
        """Return all pools, in the order of their making."""
        return [await pool.info() for pool in list(self._pools.values())]

    async def warm(self, spec: SandboxSpec, size: int, report: Report, *, wait: bool) -> PoolInfo:
        """Have `size` members for sandboxes like `spec` from now on; see the Protocol."""
        if not 1 <= size <= SIZE_MAX:
            raise error(
                "bad_size",
                f"{size} cannot be the size of a pool",
                hint=f"use 1 to {SIZE_MAX}; `hutch pool drain` ends a pool",
            )
        ahead = await look_ahead(self._parts, self._booter, spec, report)
        image, info = self._name_of(spec.image), ahead.info
        async with self._changes:
            pool = self._find(image, info.cpus, info.memory)
            if pool is None:
                pool_id = new_id(POOL_PREFIX)
                row = PoolRow(pool_id, image, info.cpus, info.memory, size, timestamp())
                await self._parts.store.put_pool(row)
                pool = self._pools[row.id] = Pool(row, self._yard)
            else:
                row = dataclasses.replace(pool.row, size=size)
                await self._parts.store.put_pool(row)
                pool.resize(row)
            pool.image_id = info.image_id
        if wait:
            await pool.filled(report)
        return await pool.info()

    async def drain(self, image: str | None = None) -> Removed:
        """End the pools of an image (None: all) with their members. Raises pool_not_found."""
        name = None if image is None else self._name_of(image)
        found = [pool for pool in self._pools.values() if name in (None, pool.row.image)]
        if not found and image is not None:
            raise error(
                "pool_not_found",
                f"there is no pool of {image}",
                hint="`hutch pool status` lists all of them",
            )
        await self._end(found)
        return Removed([pool.row.id for pool in found])

    async def drain_image(self, image_id: str) -> None:
        """End the pools whose members are of an image."""
        await self._end([pool for pool in self._pools.values() if pool.image_id == image_id])

    def images(self) -> Sequence[str]:
        """Return the ids of the images that have a pool."""
        return sorted({pool.image_id for pool in self._pools.values() if pool.image_id})

    async def refresh(self) -> None:
        """Discard the members whose template was dropped; others take their places."""
        for pool in list(self._pools.values()):
            await pool.keep_only(lambda each: self._booter.templates.has(each.template.id))

    async def _end(self, pools: Sequence[Pool]) -> None:
        async with self._changes:
            for pool in pools:
                await settle(self._drain(pool))

    async def _drain(self, pool: Pool) -> None:
        # First off the record: a crash then leaves members only, which are swept.
        await self._parts.store.remove_pool(pool.row.id)
        self._pools.pop(pool.row.id, None)
        await pool.close()
        self._parts.events.emit("pool.drained", pool.row.id, pool.row.image)

    def _find(self, image: str, cpus: int, memory: int) -> Pool | None:
        wanted = (image, cpus, memory)
        for pool in self._pools.values():
            if (pool.row.image, pool.row.cpus, pool.row.memory) == wanted:
                return pool
        return None

    def _name_of(self, image: str) -> str:
        with contextlib.suppress(HutchError):  # it is the id of one
            return str(parse(image, self._parts.settings.default_registry))
        return image

    # ---- filling

    async def _make(self, pool: Pool) -> Member:
        """Make a member as a sandbox of today would be; those of yesterday are discarded."""
        row = pool.row
        spec = SandboxSpec(
            row.image, idle=True, cpus=row.cpus, memory=row.memory, pull=PullPolicy.NEVER
        )
        ahead = await look_ahead(self._parts, self._booter, spec, no_report)
        pool.image_id = ahead.info.image_id
        has = self._booter.templates.has
        await pool.keep_only(lambda each: each.recipe == ahead.recipe and has(each.template.id))
        return await self._members.make(row.id, ahead)

    # ---- for the lives of sandboxes

    def starting(self) -> AbstractContextManager[None]:
        """Let no member be made for the length of the block, in which a sandbox is started."""
        return self._lull.broken()

    @contextlib.asynccontextmanager
    async def offer(self, spec: SandboxSpec, name: str) -> AsyncIterator[Offer]:
        """Let a member that is likely to become the sandbox `name` go on as it from now on.

        Only for a `run`, whose start follows at once; meanwhile it is found out what the sandbox
        is. What is not claimed by the end of the block is gone.
        """
        offer = Offer()
        if spec.provisional and spec.template and spec.pull is not PullPolicy.ALWAYS:
            self._rouse(spec, name, offer)
        try:
            with self.starting() if offer.member else contextlib.nullcontext():
                await give_way()  # to what it is told
                yield offer
        finally:
            if offer.member is not None:
                await self._members.discard(offer.member)

    def _rouse(self, spec: SandboxSpec, name: str, offer: Offer) -> None:
        cpus, memory, disk = sizes(spec, self._parts.settings, self._parts.host)
        kernel = spec.kernel or self._parts.settings.kernel
        pool = self._find(self._name_of(spec.image), cpus, memory)
        if pool is None:
            return
        member = pool.take(
            lambda each: each.row.info.disk == disk and kernel in ("", each.recipe.kernel.name)
        )
        if member is not None:
            offer.pool, offer.member = pool, member
            self._members.rouse(
                member,
                hostname=spec.hostname or default_hostname(name),
                workdir=spec.workdir or member.row.info.workdir,
                network=policy_of(spec, self._parts.settings, self._parts.plugs.ability),
            )

    async def claim(
        self, spec: SandboxSpec, info: SandboxInfo, kernel: str, offer: Offer
    ) -> SandboxRow | None:
        """Put a sandbox on record that takes over a ready member, and its id; None: there is none.

        `kernel` is the one that it is to run on. Raises name_taken, disk_full.
        """
        if not spec.template:
            return None
        # The next member is not made before what claims this one is started.
        with self.starting():
            while (found := self._next(info, kernel, offer)) is not None:
                pool, member = found
                try:
                    if await self._members.is_fresh(member):
                        return await self._hand_over(pool, member, spec, info)
                except BaseException:
                    await self._members.discard(member)
                    raise
                await self._members.discard(member)
        return None

    def _next(self, info: SandboxInfo, kernel: str, offer: Offer) -> tuple[Pool, Member] | None:
        """Take the member that was offered, if it suits, or else any that does."""
        offered = offer.member
        if offered is not None and offered.suits(info, kernel):
            assert offer.pool is not None
            offer.member = None
            return offer.pool, offered
        for pool in list(self._pools.values()):
            if (member := pool.take(lambda each: each.suits(info, kernel))) is not None:
                return pool, member
        return None

    async def _hand_over(
        self, pool: Pool, member: Member, spec: SandboxSpec, info: SandboxInfo
    ) -> SandboxRow:
        info = dataclasses.replace(info, id=member.id)
        machine = member.machine.record.to_json()
        row = await self._parts.store.claim_member(spec, info, machine)
        self._claimed[member.id] = member
        self._claims.start(member.id, self._expire(member.id))
        pool.count_claim(member.id)
        return row

    async def start(self, row: SandboxRow, record: MachineRecord, *, cold: bool) -> Booted | None:
        """Let the member that a sandbox has claimed go on as it; None: it has none that does.

        One that shall not, or does not, is gone then.
        """
        if cold or row.info.id in self._leaving:
            await self.give_up(row.info.id)
        member = self._claimed.pop(row.info.id, None)
        if member is None:
            return None
        booted = None
        try:
            booted = await self._members.begin(member, row)
        finally:
            if booted is None:
                await record.machine(None)
        return booted

    async def give_up(self, sandbox_id: str) -> None:
        """End the VM that a sandbox has claimed and not yet started, if there is one.

        When this returns it is gone, whoever began to end it: there can be another one.
        """
        member = self._claimed.pop(sandbox_id, None)
        if member is not None:
            leaving = self._ends.start(sandbox_id, self._give_up(member))
            self._leaving[sandbox_id] = leaving
            leaving.add_done_callback(lambda _: self._leaving.pop(sandbox_id, None))
        if sandbox_id in self._leaving:
            await asyncio.wait({self._leaving[sandbox_id]})

    async def _give_up(self, member: Member) -> None:
        await self._members.abandon(member)
        with contextlib.suppress(HutchError):  # the next daemon finds it gone
            await self._parts.store.set_machine(member.id, None)
        self._abandoned(member.id)

    async def _expire(self, sandbox_id: str) -> None:
        await asyncio.sleep(CLAIM_SECONDS)
        await self.give_up(sandbox_id)

    # ---- the daemon's life

    async def forget_members(self) -> None:
        """Forget what an earlier daemon has left of members, before its remains are swept."""
        await self._members.forget_all()

    async def open(self) -> None:
        """Take up the pools on record, which fill from now on."""
        for row in await self._parts.store.pools():
            self._pools[row.id] = Pool(row, self._yard)

    async def close(self) -> None:
        """End all members; the pools stay on record."""
        await self._claims.close()
        pools, self._pools = list(self._pools.values()), {}
        async with asyncio.TaskGroup() as group:
            for pool in pools:
                group.create_task(pool.close())
            for sandbox_id in list(self._claimed):
                group.create_task(self.give_up(sandbox_id))
        await self._ends.close()
        await self._members.close()
