"""One connection of a guest: what is known of it, and what a policy says to that.

Everything that was judged is kept, so that another policy can judge it again at any moment. Owns no
sockets and does nothing by itself.
"""

import asyncio
import logging
from collections.abc import Iterator
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Final

from hutch.models import timestamp
from hutch.network import names
from hutch.network.addresses import Address, AddressKind
from hutch.network.carry import Carry
from hutch.network.http import Gate
from hutch.network.policy import Rules
from hutch.networking import Connection as View
from hutch.networking import Decision, Reason

log = logging.getLogger(__name__)

NO_POLICY: Final = Decision(
    False, Reason.NETWORK_DOWN, text="no policy is in force for the sandbox yet"
)
NOT_JUDGED: Final = Decision(
    False, Reason.NOT_ALLOWED, text="it could not be judged: the gateway's log tells why"
)

HOSTS_LIMIT: Final = 16
"""Different names that the requests of one connection may be for."""


class Place(StrEnum):
    """What a guest's destination stands for."""

    NAME = "name"  # a synthetic address
    RAW = "raw"  # an address that the guest chose by itself
    HOST = "host"  # host.hutch
    RESOLVER = "resolver"  # port 53, wherever
    NOTHING = "nothing"  # an address of the synthetic range that stands for nothing


class Phase(StrEnum):
    """How far a connection has come."""

    RESOLVING = "resolving"
    CONNECTING = "connecting"
    WAITING = "waiting"  # for what the guest says first
    OPEN = "open"
    REFUSING = "refusing"  # it is being told why


class Connection:
    """A connection from its arrival on. `port` and `address` are those that the guest asked for."""

    def __init__(
        self, number: int, address: IPv4Address, port: int, place: Place, name: str | None = None
    ) -> None:
        self.number = number
        self.address = address
        self.port = port
        self.place = place
        self.name = name
        self.phase = Phase.RESOLVING
        self.opened = timestamp()
        self.generation = 0
        self.candidates: tuple[tuple[Address, AddressKind], ...] = ()
        """Addresses that are being tried, then the one that it is connected to."""
        self.raw = False
        """Whether what it says on 443 or 80 was not looked at, as a rule allows."""
        self.hello = False
        self.server_name: str | None = None
        self.hosts: set[str] = set()
        self.rule: str | None = None
        self.connected = False
        """Whether there is an upstream, which may still be answering when the guest is refused."""
        self.carry: Carry | None = None
        self.gate: Gate | None = None
        self.task: asyncio.Task[None] | None = None
        self.ending: Decision | None = None
        """Why it is ended before its time."""
        self.waited: dict[str, tuple[float, int]] = {}
        """Since when it keeps us waiting for what, on the loop's clock, and how far it was then."""

    @property
    def label(self) -> str | None:
        """The name to tell people."""
        return "host.hutch" if self.place is Place.HOST else self.name

    @property
    def told_address(self) -> str | None:
        """The address to tell people; None while there is but a synthetic one."""
        if self.candidates:
            return str(self.candidates[0][0])
        return None if self.place is Place.NAME else str(self.address)

    @property
    def sent(self) -> int:
        """The guest's bytes so far."""
        return 0 if self.carry is None else self.carry.sent

    @property
    def received(self) -> int:
        """The bytes for the guest so far."""
        return 0 if self.carry is None else self.carry.received

    def add_host(self, host: str) -> bool:
        """Remember what a request was for; False when those are too many."""
        normal = normal_host(host)
        if normal not in self.hosts and len(self.hosts) >= HOSTS_LIMIT:
            return False
        self.hosts.add(normal)
        return True

    def verdict(self, rules: Rules | None) -> Decision:
        """Judge all that is known of it. What cannot be judged is denied."""
        if rules is None:
            return NO_POLICY
        decision = Decision(True, Reason.ALLOWED)
        try:
            for decision in self._judgements(rules):
                if not decision.allowed:
                    break
        except Exception:  # closed, whatever it is
            log.exception("a connection cannot be judged")
            return NOT_JUDGED
        return decision

    def _judgements(self, rules: Rules) -> Iterator[Decision]:
        yield rules.network()
        if self.place is Place.RESOLVER:
            return  # each of its questions is judged
        if self.place is Place.NOTHING:
            yield unknown(self.address)
            return
        if self.place is Place.HOST:
            yield rules.host_port(self.port)
            return
        yield rules.connect(self.name, self.port)
        for address, kind in self.candidates:
            yield rules.address(address, kind, self.port, self.name)
        if self.hello:
            yield rules.server_name(self.name, self.server_name, self.port)
        for host in self.hosts:
            yield rules.host(self.name, host, self.port)
        if self.raw and not rules.is_raw(self.name, self.port, self._chosen):
            text = f"what port {self.port} carries is looked at now"
            yield Decision(False, Reason.POLICY_CHANGED, text=text)

    @property
    def _chosen(self) -> Address | None:
        return self.address if self.place is Place.RAW else None

    def may_be_raw(self, rules: Rules) -> bool:
        """Tell whether a rule allows anything on its port, TLS and HTTP or not."""
        return rules.is_raw(self.name, self.port, self._chosen)

    def overdue(
        self, what: str, waiting: bool, now: float, limit: float, *, progress: int = 0
    ) -> bool:
        """Tell whether we have been waiting for something for longer than `limit` seconds, in which
        `progress` stayed as it was.
        """
        if not waiting:
            self.waited.pop(what, None)
            return False
        since, seen = self.waited.setdefault(what, (now, progress))
        if seen != progress:
            self.waited[what] = (now, progress)
            return False
        return now - since > limit

    def view(self) -> View:
        """Return what is told of it."""
        return View(
            id=self.number,
            state=self.phase.value,
            name=self.label,
            address=self.told_address or str(self.address),
            port=self.port,
            opened_at=self.opened,
            sent=self.sent,
            received=self.received,
            rule=self.rule,
            server_name=self.server_name,
        )


def unknown(address: IPv4Address) -> Decision:
    """Return what an address is told that stands for no name."""
    return Decision(
        False,
        Reason.ADDRESS_UNKNOWN,
        text=f"{address} stands for no name in this sandbox",
        hint="look the name up again",
    )


def normal_host(host: str) -> str:
    """Return a Host in one spelling, for comparing it with others."""
    try:
        return names.normal(host)
    except ValueError:
        return host
