"""Which VMs of this host are plugged into its network, and that the right policy is in force there.

A VM is attached before its engine starts it, and detached when what it leaves is cleared away. What
a policy says is asked of the records each time it is put in force, one change after the other for
each VM: so no change can be overtaken by an older one. It must not know what a policy means.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hutch.errors import HutchError
from hutch.network.base import Ability, Attachment, Network
from hutch.networking import NetworkPolicy
from hutch.tasks import settle, settle_in_thread

log = logging.getLogger(__name__)

NO_NAMES: Final = Path(os.devnull)
"""The table of names of a VM that never asks for one."""

PolicyOf = Callable[[str], NetworkPolicy | None]
"""Returns the policy of a sandbox by its id, as it is on record now; None: there is no such one."""


@dataclass(frozen=True, slots=True)
class Plug:
    """Whose a VM is, for the network: a sandbox's, or nobody's yet.

    `names` is the file with the names that its memory knows. While it is `closed` nothing answers
    it: until `Plugs.open`, which for a template's never comes.
    """

    sandbox_id: str
    name: str
    names: Path = NO_NAMES
    closed: bool = True


@dataclass(slots=True)
class _Held:
    """A VM that is attached, or about to be. `lock` is held by who changes what is in force.

    One that is `open` answers to the policy on record, which is in force unless it `failed`.
    """

    plug: Plug
    open: bool = False
    failed: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Plugs:
    """Attaches the VMs of one host."""

    def __init__(self, network: Network, policy_of: PolicyOf) -> None:
        self._network = network
        self._policy_of = policy_of
        self._held: dict[str, _Held] = {}

    @property
    def ability(self) -> Ability:
        """What the host can do."""
        return self._network.ability

    @property
    def none(self) -> bool:
        """Whether no VM is attached."""
        return not self._held

    def owner(self, vm_id: str) -> str | None:
        """Return the sandbox that a VM is attached for."""
        held = self._held.get(vm_id)
        return None if held is None else held.plug.sandbox_id

    def vm_of(self, sandbox_id: str) -> str | None:
        """Return the VM that answers to the policy of a sandbox (None: there is none)."""
        for vm_id, held in self._held.items():
            if held.plug.sandbox_id == sandbox_id and held.open:
                return vm_id
        return None

    def in_force(self, vm_id: str) -> bool:
        """Tell whether a VM has the policy on record; else nothing gets through."""
        held = self._held.get(vm_id)
        return held is not None and held.open and not held.failed

    @contextlib.asynccontextmanager
    async def attached(self, vm_id: str, plug: Plug) -> AsyncIterator[int | None]:
        """Attach a VM that is started in the block; hands out its TAP (None: the host has none).

        It stays attached until `detach`, also when this raises: network_failed, bad_policy.
        """
        if not self.ability.taps:
            yield None
            return
        held = self._held[vm_id] = _Held(plug)
        taps: list[int] = []
        try:
            # To its end: a descriptor that nobody has heard of could not be closed.
            await settle(self._attach(vm_id, held, taps))
            yield taps[0]
        finally:
            for tap in taps:
                os.close(tap)

    async def _attach(self, vm_id: str, held: _Held, taps: list[int]) -> None:
        plug = held.plug
        if plug.names != NO_NAMES:
            await settle_in_thread(plug.names.parent.mkdir, 0o700, parents=True, exist_ok=True)
        async with held.lock:
            policy = None if plug.closed else self._policy_of(plug.sandbox_id)
            held.open = policy is not None
            attachment = Attachment(vm_id, plug.name, plug.names, policy)
            taps.append(await self._network.attach(attachment))

    async def open(self, vm_id: str, policy: NetworkPolicy | None = None) -> None:
        """Put the policy in force of the sandbox that a VM was attached for, closed.

        `policy` is that of one that is not on record yet. Raises network_failed, bad_policy.
        """
        if (held := self._held.get(vm_id)) is None:
            return
        async with held.lock:
            held.open = True
            # What is on record goes before: it may have been changed since the caller has read it.
            await self._put_in_force(vm_id, held, self._policy_of(held.plug.sandbox_id) or policy)

    async def changed(self, sandbox_id: str) -> int:
        """Put the policy of a sandbox in force that was changed on record.

        Returns how many connections were ended. When it raises, nothing gets through any more until
        the next change, or start: network_failed, bad_policy.
        """
        ended = 0
        for vm_id, held in list(self._held.items()):
            if held.plug.sandbox_id != sandbox_id:
                continue
            async with held.lock:
                if held.open and vm_id in self._held:
                    ended += await self._put_in_force(vm_id, held, self._policy_of(sandbox_id))
        return ended

    async def _put_in_force(self, vm_id: str, held: _Held, policy: NetworkPolicy | None) -> int:
        held.failed = True
        try:
            ended = await self._network.update(vm_id, policy)
        except HutchError:
            with contextlib.suppress(HutchError):
                await self._network.update(vm_id, None)
            raise
        held.failed = False
        return ended

    async def detach(self, vm_id: str) -> None:
        """Take a VM out of the network that is gone; carried out to its end, and never raises."""
        await settle(self._detach(vm_id))

    async def _detach(self, vm_id: str) -> None:
        if (held := self._held.get(vm_id)) is None:
            return
        async with held.lock:
            try:
                await self._network.detach(vm_id)
            except HutchError as failure:
                # Nobody is behind its TAP any more; the next start of the daemon removes it.
                log.error("the network of %s is not removed: %s", vm_id, failure)
            finally:
                if self._held.get(vm_id) is held:
                    del self._held[vm_id]

    async def adopt(self, plugs: Mapping[str, Plug]) -> None:
        """Take up the VMs that an earlier daemon has left running; all others are detached.

        Their policies are in force again when it returns. Raises network_failed.
        """
        if not self.ability.taps:
            return
        held = {vm_id: _Held(plug, open=True, failed=True) for vm_id, plug in plugs.items()}
        self._held |= held
        await self._network.adopt(
            [
                Attachment(vm_id, plug.name, plug.names, self._policy_of(plug.sandbox_id))
                for vm_id, plug in plugs.items()
            ]
        )
        for each in held.values():
            each.failed = False
        for vm_id in plugs.keys() - self._held.keys():
            await self._network.detach(vm_id)  # it has ended meanwhile
