"""What is in force for one sandbox: its policy now, its names, and what was decided so far.

A policy is swapped in one step (`put`); whoever waited for something in between asks again. Owns no
connections.
"""

import asyncio
import logging
from collections.abc import Sequence

from hutch.network.addresses import Address, AddressKind
from hutch.network.carry import Bucket
from hutch.network.dns.client import Resolver
from hutch.network.gateway.connection import NO_POLICY, NOT_JUDGED
from hutch.network.gateway.limits import Limits
from hutch.network.gateway.records import Records
from hutch.network.policy import Rules
from hutch.network.routes import Routes
from hutch.network.synthetic import NameTable
from hutch.networking import Decision, NetworkLayer, NetworkMode, NetworkPolicy

log = logging.getLogger(__name__)


class InForce:
    """A sandbox's policy as `hutch.network.dns.guest.Policy` asks for it, and what goes with it."""

    def __init__(
        self,
        *,
        records: Records,
        resolver: Resolver,
        routes: Routes,
        limits: Limits,
    ) -> None:
        self.records = records
        self.names: NameTable | None = None
        self.resolver = resolver
        self.limits = limits
        self.half_open = asyncio.Semaphore(limits.half_open)
        self.up = Bucket(limits.rate_up) if limits.rate_up else None
        self.down = Bucket(limits.rate_down) if limits.rate_down else None
        self.policy: NetworkPolicy | None = None
        self.rules: Rules | None = None
        self.generation = 0
        self._routes = routes

    def put(self, policy: NetworkPolicy, rules: Rules, names: NameTable) -> None:
        """Put a policy in force, and the names that stand for addresses under it."""
        self.policy, self.rules, self.names = policy, rules, names
        self.generation += 1

    def withdraw(self) -> None:
        """Have no policy in force: everything is denied, and the names are nobody's."""
        self.policy = self.rules = self.names = None
        self.generation += 1

    def kind(self, address: Address) -> AddressKind:
        """Return where an address leads from the host, now."""
        return self._routes.kind(address)

    # What the guest's resolver asks

    def lookup(self, name: str) -> Decision:
        """Judge a name, before anything is asked about it."""
        if self.rules is None:
            return NO_POLICY
        try:
            return self.rules.lookup(name)
        except Exception:  # closed, whatever it is
            log.exception("a look-up cannot be judged")
            return NOT_JUDGED

    def permitted(self, name: str | None, addresses: Sequence[Address]) -> Decision:
        """Judge what a name resolves to: allowed if one address is, on any port.

        None: raw addresses.
        """
        if self.rules is None:
            return NO_POLICY
        denied = NOT_JUDGED
        try:
            for address in addresses:
                kind = self.kind(address)
                for port in self.rules.ports(name or address.reverse_pointer, address):
                    decision = self.rules.address(address, kind, port, name)
                    if decision.allowed:
                        return decision
                    if denied is NOT_JUDGED:
                        denied = decision
        except Exception:  # closed, whatever it is
            log.exception("the addresses of a name cannot be judged")
            return NOT_JUDGED
        return denied

    def opens_host(self) -> bool:
        """Whether any port of the host's loopback is open."""
        policy = self.policy
        return (
            policy is not None and policy.mode is not NetworkMode.NONE and bool(policy.allow_host)
        )

    def looked_up(
        self, decision: Decision, *, name: str, address: str | None = None, detail: str = ""
    ) -> None:
        """Record what was decided about a look-up."""
        self.records.add(NetworkLayer.DNS, decision, name=name, address=address, detail=detail)
