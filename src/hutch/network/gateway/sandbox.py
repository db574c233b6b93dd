"""One sandbox's place in the gateway: its sockets, its connections, and what is in force for it.

Nothing is taken from its sockets before a policy is in force. Another policy judges all connections
again, however far they have come, before `update` returns.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Final

from hutch.errors import error
from hutch.network.dns import guest as dns_guest
from hutch.network.dns.client import Resolver
from hutch.network.dns.guest import GuestLimits, GuestResolver
from hutch.network.gateway.accept import Acceptor, Endpoint, reset
from hutch.network.gateway.connection import NO_POLICY, Connection, Phase, Place
from hutch.network.gateway.inforce import InForce
from hutch.network.gateway.judge import identify
from hutch.network.gateway.limits import Limits
from hutch.network.gateway.lookups import Lookups
from hutch.network.gateway.records import Records
from hutch.network.gateway.serve import Serving
from hutch.network.policy import Rules
from hutch.network.routes import Routes
from hutch.network.synthetic import NameTable
from hutch.networking import (
    Decision,
    NetworkInfo,
    NetworkLayer,
    NetworkMode,
    NetworkPolicy,
    Reason,
)
from hutch.tasks import Scope

log = logging.getLogger(__name__)

SWEEP: Final = 1.0
"""Seconds between looks at connections that keep us waiting."""
END_TIME: Final = 5.0
"""Seconds that ended connections have to be gone."""
SHED: Final = 8
"""Connections that a sandbox loses at once when the gateway runs out of descriptors."""

_WITHDRAWN: Final = NetworkPolicy(mode=NetworkMode.NONE)


@dataclass(frozen=True, slots=True)
class Identity:
    """Which sandbox it is, and the one interface that its sockets are bound to."""

    sandbox_id: str
    name: str
    interface: str
    ifindex: int


@dataclass(frozen=True, slots=True)
class Ends:
    """A sandbox's sockets, and a descriptor of the file of its names."""

    listener: socket.socket
    dns: socket.socket
    clock: socket.socket
    names: int

    def close(self) -> None:
        """Close them all."""
        self.listener.close()
        self.dns.close()
        self.clock.close()
        os.close(self.names)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a sandbox shares with others, or is given by the gateway.

    `resolver` makes one for a sandbox, `dns` is what guests may ask; `internal` are the names'
    domains that only the host's networks know; `crowded` is called when descriptors run out.
    """

    limits: Limits
    routes: Routes
    resolver: Callable[[], Resolver]
    internal: Callable[[], Collection[str]]
    crowded: Callable[[], None]
    dns: GuestLimits = dns_guest.DEFAULTS
    reserved: set[int] = field(default_factory=set)


class Sandbox:
    """One attached sandbox."""

    def __init__(
        self, identity: Identity, ends: Ends, records: Records, around: Surroundings
    ) -> None:
        """Take the sockets over. Raises OSError if they are not of that interface."""
        self.identity = identity
        self.records = records
        self._around = around
        self._limits = around.limits
        self._names = ends.names
        self._acceptor = Acceptor(ends.listener, identity.ifindex, self._admit, around.crowded)
        self._lookups = Lookups(
            ends.dns,
            ends.clock,
            identity.ifindex,
            limit=self._limits.lookups,
            message_time=self._limits.hello_time,
        )
        self._resolver = around.resolver()
        self._in_force = InForce(
            records=records,
            resolver=self._resolver,
            routes=around.routes,
            limits=self._limits,
        )
        self._loop = asyncio.get_running_loop()
        self._scope = Scope(identity.sandbox_id)
        self._connections: dict[int, Connection] = {}
        self._total = 0
        self._sent = self._received = 0
        self._sweeping: asyncio.TimerHandle | None = None
        self._closed = False

    # The policy

    @property
    def generation(self) -> int:
        """How often the policy was changed."""
        return self._in_force.generation

    async def update(self, policy: NetworkPolicy | None) -> int:
        """Put a policy in force, or none. Returns how many connections were ended by that.

        They are gone when this returns. Raises bad_policy and network_failed (the names cannot be
        read): what was in force stays so then.
        """
        if self._closed:
            raise error("network_failed", "the sandbox is not attached any more")
        if policy is None:
            self._withdraw()
        else:
            self._put(policy)
        return await self._judge_again()

    async def reserve(self) -> None:
        """Learn that other ports of the host are reserved now."""
        policy, rules = self._in_force.policy, self._in_force.rules
        if rules is not None and rules.may_open_host() and not self._closed:
            await self.update(policy)

    def _put(self, policy: NetworkPolicy) -> None:
        rules = Rules.of(policy, self._around.internal(), self._around.reserved)
        in_force = self._in_force
        names = in_force.names
        begins = names is None
        if names is None:
            names = self._read_names()
        in_force.put(policy, rules, names)
        self._lookups.silent = not rules.network().allowed
        if not begins:
            return
        # What came while nobody decided is not decided on now.
        self._acceptor.drain()
        limits = replace(self._around.dns, in_flight=self._limits.lookups)
        self._lookups.resume(
            GuestResolver(in_force, names, self._resolver, in_force.looked_up, limits)
        )
        self._acceptor.resume()

    def _read_names(self) -> NameTable:
        try:
            return NameTable(self._names)
        except OSError as cause:
            text = f"the names of {self.identity.name} cannot be read: {cause}"
            raise error("network_failed", text) from cause

    def _withdraw(self) -> None:
        self._in_force.withdraw()
        self._acceptor.pause()
        self._acceptor.drain()
        self._lookups.pause()

    async def _judge_again(self) -> int:
        """End all connections that the policy in force denies."""
        rules = self._in_force.rules
        ended, ending = [], []
        for connection in list(self._connections.values()):
            if connection.ending is not None:
                ending.append(connection)
                continue
            decision = connection.verdict(rules)
            told = connection.phase is Phase.REFUSING and not connection.connected
            if told and decision.reason is not Reason.NETWORK_DOWN:
                continue  # it is denied already, and only hears why
            if decision.allowed:
                connection.generation = self._in_force.generation
                continue
            text = f"the policy was changed: {decision.text}"
            self._end(connection, Decision(False, Reason.POLICY_CHANGED, decision.rule, text))
            ended.append(connection)
        await self._gone([*ended, *ending])
        return len(ended)

    def _end(self, connection: Connection, why: Decision) -> None:
        if connection.ending is None:
            connection.ending = why
            assert connection.task is not None
            connection.task.cancel()

    async def _gone(self, connections: Collection[Connection]) -> None:
        """Wait until ended connections are gone."""
        tasks = [item.task for item in connections if item.task is not None]
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=END_TIME)
            for task in stuck:
                log.error("%s: %s does not end", self.identity.sandbox_id, task.get_name())

    # Connections

    def _admit(self, guest: socket.socket, destination: Endpoint) -> bool:
        self._total += 1
        try:
            connection = identify(self._total, destination, self._in_force)
        except Exception:  # closed, whatever it is
            log.exception("%s: a connection is nowhere", self.identity.sandbox_id)
            reset(guest)
            return True
        self._connections[connection.number] = connection
        connection.task = self._scope.start(
            f"connection {connection.number}", self._serve(connection, guest)
        )
        # Not by the task itself: one that is cancelled before its first step does nothing at all.
        connection.task.add_done_callback(lambda _: self._forget(connection, guest))
        self._schedule()
        return len(self._connections) < self._limits.connections

    async def _serve(self, connection: Connection, guest: socket.socket) -> None:
        try:
            if connection.place is Place.RESOLVER and not self._lookups.silent:
                connection.phase = Phase.OPEN
                await self._lookups.stream(guest)
            else:
                await Serving(connection, guest, self._in_force).run()
        except OSError as cause:
            log.debug("%s: %r", self.identity.sandbox_id, cause)

    def _forget(self, connection: Connection, guest: socket.socket) -> None:
        reset(guest)
        del self._connections[connection.number]
        self._sent += connection.sent
        self._received += connection.received
        if connection.ending is not None and not self._closed:
            self.records.add(
                NetworkLayer.TCP,
                connection.ending,
                name=connection.label,
                address=connection.told_address,
                port=connection.port,
            )
        if self._in_force.rules is not None and not self._closed:
            self._acceptor.resume()

    def _schedule(self) -> None:
        if self._sweeping is None and self._connections:
            self._sweeping = self._loop.call_later(SWEEP, self._sweep)

    def _sweep(self) -> None:
        """End connections that keep us waiting for longer than they may."""
        self._sweeping = None
        now = self._loop.time()
        limits = self._limits
        for connection in list(self._connections.values()):
            gate, carry = connection.gate, connection.carry
            head = gate is not None and gate.waits_for_request
            if connection.overdue("head", head, now, limits.hello_time):
                text = "the head of a request did not come in time"
                self._end(connection, Decision(False, Reason.BAD_PROTOCOL, text=text))
            half = carry is not None and carry.half_closed
            moved = connection.sent + connection.received
            if connection.overdue(
                "half closed", half, now, limits.half_closed_time, progress=moved
            ):
                text = "one side had ended for too long, and the other said nothing"
                self._end(connection, Decision(False, Reason.LIMIT, text=text))
        self._schedule()

    def __len__(self) -> int:
        return len(self._connections)

    def shed(self) -> int:
        """End the newest connections, for the gateway has no descriptors left; returns how many."""
        newest = sorted(self._connections.values(), key=lambda item: -item.number)[:SHED]
        why = Decision(False, Reason.LIMIT, text="the gateway had no room for more connections")
        for connection in newest:
            self._end(connection, why)
        return len(newest)

    # What is told

    def info(self) -> NetworkInfo:
        """Return what is known of it."""
        in_force, live = self._in_force, self._connections.values()
        return NetworkInfo(
            sandbox_id=self.identity.sandbox_id,
            name=self.identity.name,
            attached=True,
            policy=in_force.policy or _WITHDRAWN,
            generation=in_force.generation,
            connections=len(live),
            connections_total=self._total,
            denied_total=self.records.denied,
            lookups_total=self._lookups.count,
            names=0 if in_force.names is None else len(in_force.names),
            sent=self._sent + sum(item.sent for item in live),
            received=self._received + sum(item.received for item in live),
            warnings=[] if in_force.rules is None else in_force.rules.warnings(),
        )

    def connections(self) -> list[Connection]:
        """Return its open connections, oldest first."""
        return list(self._connections.values())

    async def close(self) -> None:
        """End everything of it, connections by RST. Nothing reaches it, or leaves it, after."""
        if self._closed:
            return
        self._closed = True
        self._in_force.withdraw()
        self._acceptor.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in list(self._connections.values()):
            self._end(connection, NO_POLICY)
        await self._gone(list(self._connections.values()))
        await self._lookups.close()
        await self._resolver.close()
        await self._scope.close()
        os.close(self._names)
