"""A guest's resolver with a policy, an upstream and a table of names that a test can move."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from hutch.network.dns.client import Address, Resolver
from hutch.network.dns.guest import GuestLimits, GuestResolver
from hutch.network.dns.message import Code, Edns, Message, Question, Record, Type, decode, encode
from hutch.network.synthetic import NameTable
from hutch.networking import SYNTHETIC_RANGE, Decision, Reason
from tests.unit.network.dns.nameserver import Clock, NameServer

PUBLIC, LAN = IPv4Address("192.0.2.1"), IPv4Address("10.0.0.1")
ZONE = [
    Record("web.test", Type.A, 600, (PUBLIC,)),
    Record("web.test", Type.TXT, 600, (b"v=spf1",)),
    Record("web.test", Type.HTTPS, 600, (b"\0\1\0",)),
    Record("six.test", Type.AAAA, 30, (IPv6Address("2001:db8::1"),)),
    Record("inside.test", Type.A, 600, (LAN,)),
    Record("inside.test", Type.TXT, 600, (b"secret",)),
    Record("mixed.test", Type.A, 600, (LAN,)),
    Record("mixed.test", Type.A, 600, (PUBLIC,)),
    Record("alias.test", Type.CNAME, 600, ("web.test",)),
    Record("denied.test", Type.A, 600, (PUBLIC,)),
    Record("_mongodb._tcp.web.test", Type.SRV, 9, (0, 5, 27017, "shard0.web.test")),
    Record("web.test", Type.MX, 600, (10, "mail.web.test")),
    Record("web.test", Type.NS, 600, ("ns.web.test",)),
    Record("web.test", Type.SOA, 600, ("ns.web.test", "root.web.test", 1, 2, 3, 4, 5)),
    Record("web.test", Type.CAA, 600, (0, b"issue", b"ca.test")),
    Record("web.test", Type.NAPTR, 600, (1, 1, b"s", b"SIP+D2U", b"", "_sip._udp.web.test")),
    Record("a.wide.test", Type.A, 600, (PUBLIC,)),
    Record("a.wide.test", Type.TXT, 600, (b"x" * 200,)),
    Record("1.2.0.192.in-addr.arpa", Type.PTR, 600, ("web.test",)),
    Record("1.0.0.10.in-addr.arpa", Type.PTR, 600, ("inside.test",)),
    *(Record("large.test", Type.TXT, 60, (bytes([one]) * 250,)) for one in range(8)),
    Record("large.test", Type.A, 60, (PUBLIC,)),
]
RANGE = IPv4Network(SYNTHETIC_RANGE)


@dataclass
class Rules:
    """A policy that a test changes: by default all names, and addresses outside 10.0.0.0/8."""

    denied: set[str] = field(default_factory=set)
    internal: set[str] = field(default_factory=lambda: {"within.test"})
    unnamed: set[str] = field(default_factory=set)
    wide: str | None = None
    host: bool = False
    down: bool = False

    def lookup(self, name: str) -> Decision:
        if self.down:
            return Decision(False, Reason.NETWORK_DOWN)
        if name in self.denied:
            return Decision(False, Reason.DENIED_BY_RULE, name, f"{name} is denied")
        if name in self.unnamed:
            return Decision(False, Reason.NOT_ALLOWED)
        if name in self.internal or (name == "host.hutch" and not self.host):
            return Decision(False, Reason.INTERNAL_NAME)
        if self.wide and name.endswith(self.wide.removeprefix("*").partition(":")[0]):
            return Decision(True, Reason.ALLOWED, self.wide)
        return Decision(True, Reason.ALLOWED)

    def permitted(self, name: str | None, addresses: Sequence[Address]) -> Decision:
        if all(str(address).startswith("10.") for address in addresses):
            return Decision(False, Reason.ADDRESS_LAN, text="on the LAN")
        return Decision(True, Reason.ALLOWED)


@dataclass
class Desk:
    """A guest's resolver, and what a test needs around it."""

    server: NameServer
    rules: Rules
    names: NameTable
    clock: Clock
    upstream: Resolver
    records: list[tuple[Decision, str, str | None, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.limit(GuestLimits())

    def limit(self, limits: GuestLimits) -> None:
        self.resolver = GuestResolver(
            self.rules, self.names, self.upstream, self.note, limits, self.clock
        )

    def note(
        self, decision: Decision, *, name: str, address: str | None = None, detail: str = ""
    ) -> None:
        self.records.append((decision, name, address, detail))

    async def send(self, query: Message, tcp: bool = False) -> Message:
        data = await self.resolver.answer(encode(query), tcp)
        assert data is not None
        reply = decode(data)
        assert (reply.response, reply.identity) == (True, query.identity)
        assert (reply.recursion_available, reply.authoritative) == (True, False)
        return reply

    async def ask(self, name: str, kind: int = Type.A, edns: Edns | None = None) -> Message:
        reply = await self.send(Message(4711, Question(name, kind), edns=edns))
        assert reply.question == Question(name, kind)
        assert (reply.edns is None) == (edns is None)
        return reply

    async def address(self, name: str) -> IPv4Address:
        """Return the only address of a name that exists."""
        reply = await self.ask(name)
        (answer,) = reply.answers
        assert (reply.code, answer.name, answer.type) == (Code.NOERROR, name, Type.A)
        assert isinstance(answer.data[0], IPv4Address)
        return answer.data[0]

    def reasons(self) -> list[Reason]:
        return [decision.reason for decision, _, _, _ in self.records]


def is_nothing(reply: Message) -> bool:
    """Whether a reply says that there is nothing of a type, and for how long that holds."""
    return (reply.code, len(reply.answers), [one.type for one in reply.authority]) == (
        Code.NOERROR,
        0,
        [Type.SOA],
    )


def is_absent(reply: Message) -> bool:
    """Whether a reply says that a name does not exist."""
    return (reply.code, len(reply.answers), [one.type for one in reply.authority]) == (
        Code.NXDOMAIN,
        0,
        [Type.SOA],
    )
