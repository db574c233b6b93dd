"""The networks of one host's sandboxes, as the API sees them: told of, and changed while they run.

A change is on record before it is in force, and in force before it is answered: a daemon that dies
in between puts it in force at its next start. It must not know how anything is carried.
"""

import dataclasses
import logging
from collections.abc import AsyncIterator, Sequence

from hutch.errors import HutchError, error
from hutch.network.policy import Rules
from hutch.networking import (
    Connection,
    NetworkChange,
    NetworkChanged,
    NetworkInfo,
    NetworkMode,
    NetworkPolicy,
    NetworkRecord,
)
from hutch.service.lifecycle import PAUSED
from hutch.service.networklog import NetworkLogs
from hutch.service.parts import Parts
from hutch.service.plugs import Plug
from hutch.service.policies import changed, checked
from hutch.service.records import machine_directory
from hutch.service.registry import Entry, Registry
from hutch.service.telling import Telling
from hutch.tasks import settle

log = logging.getLogger(__name__)


class HostNetworks:
    """Implements `Networks` of the API's operations for one host."""

    def __init__(self, parts: Parts, registry: Registry, telling: Telling) -> None:
        self._parts = parts
        self._registry = registry
        self._network = parts.network
        self._plugs = parts.plugs
        self._telling = telling
        self._adopted = False
        self.logs = NetworkLogs(parts, registry, parts.plugs.owner)

    # ---- the daemon's life

    async def open(self) -> None:
        """Find or start what carries the networks; where that cannot be, sandboxes have none."""
        try:
            await self._network.open()
        except (HutchError, OSError) as failure:
            log.error("sandboxes cannot be attached to the network: %s", failure)
        if not self._network.ability.taps:
            log.warning("sandboxes have no networks: %s", self._network.ability.why)
        self.logs.open(self._network)

    async def adopt(self) -> None:
        """Put the policies in force of all sandboxes that were found running."""
        plugs = {
            machine_directory(self._parts.places, entry.row).name: Plug(
                entry.info.id,
                entry.info.name,
                self._parts.places.names(entry.info.id),
                closed=False,
            )
            for entry in self._registry
            if entry.sandbox is not None
        }
        try:
            await self._plugs.adopt(plugs)
        except HutchError as failure:
            log.error("the networks of %d sandboxes are not in order: %s", len(plugs), failure)
        self._adopted = self._plugs.ability.taps
        for entry in self._registry:
            # What it was told before it was paused is not on record.
            entry.untold = entry.untold or entry.info.state is PAUSED

    async def close(self) -> None:
        """Let go of what carries the networks; end it when nobody needs it any more.

        Before `adopt` it is not known who does: what an earlier daemon has left stays as it is.
        """
        await self.logs.close()
        try:
            if self._adopted and self._plugs.none:
                await self._network.stop()
            else:
                await self._network.close()
        except (HutchError, OSError) as failure:
            log.error("the processes of the network are left: %s", failure)

    # ---- what can be asked for

    async def show(self, ref: str) -> NetworkInfo:
        """Return a sandbox's policy, and what its network has done so far."""
        return await self._info(self._registry.find(ref))

    async def update(self, ref: str, change: NetworkChange) -> NetworkChanged:
        """Change the policy of a sandbox, whatever its state, for what is open, too.

        Carried out to its end also when this is cancelled. Raises bad_policy, network_missing,
        network_failed: then nothing gets through until the next change or start.
        """
        entry = self._registry.find(ref)
        ended = await settle(self._update(entry, change))
        # After the lock: a guest that does not listen must not delay the next change.
        await self._telling.told(entry)
        return NetworkChanged(await self._info(entry), ended)

    async def connections(self, ref: str) -> Sequence[Connection]:
        """Return what a sandbox has open, oldest first."""
        vm_id = self._plugs.vm_of(self._registry.find(ref).info.id)
        return [] if vm_id is None else await self._network.connections(vm_id)

    def log(
        self, ref: str, *, since: int | None = None, tail: int | None = None, follow: bool = False
    ) -> AsyncIterator[NetworkRecord]:
        """Yield what was decided for a sandbox, oldest first."""
        entry = self._registry.find(ref)
        return self.logs.read(entry, since=since, tail=tail, follow=follow)

    # ---- inside

    async def _info(self, entry: Entry) -> NetworkInfo:
        info = entry.info
        vm_id = self._plugs.vm_of(info.id)
        found = None if vm_id is None else await self._network.info(vm_id)
        if found is None:
            found = NetworkInfo(info.id, info.name, attached=False, policy=info.network)
        warnings = self._warnings(info.network)
        if vm_id is not None and not self._plugs.in_force(vm_id):
            warnings.append("its policy is not in force, nothing gets through")
        return dataclasses.replace(
            found,
            sandbox_id=info.id,
            name=info.name,
            policy=info.network,
            warnings=warnings,
        )

    def _warnings(self, policy: NetworkPolicy) -> list[str]:
        ability = self._plugs.ability
        warnings = Rules.of(policy).warnings()
        if policy.mode is not NetworkMode.NONE and not ability.taps:
            warnings.append(f"this host cannot have networks for sandboxes: {ability.why}")
        return warnings

    async def _update(self, entry: Entry, change: NetworkChange) -> int:
        async with entry.policies:
            entry.check_present()
            before = entry.info.network
            policy = checked(changed(before, change), self._plugs.ability)
            await self._parts.store.amend(entry.info.id, network=policy)
            entry.have_policy(policy)
            try:
                ended = await self._put_in_force(entry)
            finally:
                if (before.mode is NetworkMode.NONE) != (policy.mode is NetworkMode.NONE):
                    self._telling.changed(entry)
                elif entry.untold:
                    self._telling.tell(entry)
        self._parts.events.emit(
            "network.changed",
            entry.info.id,
            entry.info.name,
            mode=policy.mode.value,
            ended=ended,
        )
        return ended

    async def _put_in_force(self, entry: Entry) -> int:
        try:
            return await self._plugs.changed(entry.info.id)
        except HutchError as cause:
            raise error(
                cause.code,
                f"the policy of sandbox {entry.info.name} is on record, but not in force, and"
                f" nothing gets through: {cause.message}",
                hint=f"try again, or restart it with `hutch restart {entry.info.name}`",
            ) from cause
