"""What guests are told of names: everything that a policy lets them know, and nothing else."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import dns.message
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hutch.errors import HutchError
from hutch.network.dns.client import Address, Limits, Resolver
from hutch.network.dns.guest import Denied, GuestLimits, GuestResolver
from hutch.network.dns.message import (
    TSIG,
    Code,
    Detail,
    Edns,
    Message,
    Question,
    Record,
    Type,
    decode,
    encode,
    extended_error,
    told,
)
from hutch.network.synthetic import NameTable
from hutch.networking import HOST_ADDRESS, SYNTHETIC_RANGE, Decision, Reason
from tests.unit.network.dns.nameserver import Clock, NameServer, Reply, serving

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
    wide: str | None = None
    host: bool = False
    down: bool = False

    def lookup(self, name: str) -> Decision:
        if self.down:
            return Decision(False, Reason.NETWORK_DOWN)
        if name in self.denied:
            return Decision(False, Reason.DENIED_BY_RULE, name, f"{name} is denied")
        if name in self.internal or (name == "host.hutch" and not self.host):
            return Decision(False, Reason.INTERNAL_NAME)
        if self.wide and name.endswith(self.wide.removeprefix("*").partition(":")[0]):
            return Decision(True, Reason.ALLOWED, self.wide)
        return Decision(True, Reason.ALLOWED)

    def permitted(self, name: str, addresses: Sequence[Address]) -> Decision:
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


@pytest.fixture
def names() -> Iterator[NameTable]:
    with tempfile.TemporaryFile() as file:
        yield NameTable(file.fileno())


@pytest.fixture
async def desk(names: NameTable) -> AsyncIterator[Desk]:
    clock = Clock()
    async with serving(NameServer(ZONE)) as server:
        upstream = Resolver([server.place], Limits(attempt=20, total=40, other_family=20), clock)
        yield Desk(server, Rules(), names, clock, upstream)
        await upstream.close()


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


def test_limits_are_settings() -> None:
    said = {"queries": 5, "denied": "nxdomain", "label_bytes": 0}
    limits = GuestLimits.of(said)
    assert limits == GuestLimits(queries=5.0, denied=Denied.NXDOMAIN, label_bytes=0)
    assert GuestLimits.of({}) == GuestLimits()
    for wrong in (
        {"denied": "refused"},
        {"denied": 1},
        {"queries": -1},
        {"queries": float("nan")},
        {"queries": True},
        {"queries": "5"},
        {"of": 1},
        {"nothing": 1},
    ):
        with pytest.raises(HutchError):
            GuestLimits.of(wrong)


async def test_an_allowed_name_has_an_address_of_the_sandbox(desk: Desk) -> None:
    address = await desk.address("WEB.test")
    assert address in RANGE
    assert desk.names.name_of(address) == "web.test"
    assert await desk.address("web.test") == address
    assert (await desk.ask("web.test")).answers[0].ttl == 60
    decision, name, logged, detail = desk.records[0]
    assert (decision.reason, name, logged, detail) == (
        Reason.ALLOWED,
        "web.test",
        str(address),
        "A",
    )


@pytest.mark.parametrize("name", ["six.test", "alias.test", "mixed.test"])
async def test_one_reachable_address_is_enough(desk: Desk, name: str) -> None:
    address = await desk.address(name)
    assert desk.names.name_of(address) == name


@pytest.mark.parametrize("kind", [Type.AAAA, Type.HTTPS, Type.SVCB, Type.CNAME, 4711])
async def test_other_types_of_a_name_are_empty(desk: Desk, kind: int) -> None:
    assert is_nothing(await desk.ask("web.test", kind))
    assert is_nothing(await desk.ask("alias.test", kind))
    assert is_absent(await desk.ask("no.test", kind))
    assert len(desk.names) == 0


@pytest.mark.parametrize(
    "kind", [Type.TXT, Type.MX, Type.NS, Type.SOA, Type.CAA, Type.NAPTR], ids=lambda kind: kind.name
)
async def test_records_of_allowed_names_are_passed_on(desk: Desk, kind: Type) -> None:
    (answer,) = (await desk.ask("web.test", kind)).answers
    (there,) = [one for one in ZONE if (one.name, one.type) == ("web.test", kind)]
    assert answer == replace(there, ttl=60)
    desk.rules.denied.add("web.test")
    assert is_nothing(await desk.ask("web.test", kind))


async def test_services_are_found(desk: Desk) -> None:
    (answer,) = (await desk.ask("_mongodb._tcp.web.test", Type.SRV)).answers
    assert (answer.ttl, answer.data) == (9, (0, 5, 27017, "shard0.web.test"))


async def test_records_behind_an_alias_are_the_alias_s(desk: Desk) -> None:
    (answer,) = (await desk.ask("alias.test", Type.TXT)).answers
    assert (answer.name, answer.data) == ("alias.test", (b"v=spf1",))


async def test_internal_names_are_byte_for_byte_names_that_do_not_exist(desk: Desk) -> None:
    edns = Edns()
    for kind in (Type.A, Type.AAAA, Type.TXT, Type.HTTPS, Type.ANY, Type.SRV):
        replies = set()
        # The first does not exist, the second has only internal addresses, the third is not asked.
        for name in ("absent.test", "inside.test", "within.test"):
            query = encode(Message(1, Question(name, kind), edns=edns))
            data = await desk.resolver.answer(query, False)
            assert data is not None
            replies.add(data.replace(name[:6].encode(), b"?"))
        assert len(replies) == 1
    assert ("within.test", Type.A) not in desk.server.names()
    assert ("inside.test", Type.TXT) not in desk.server.names(), "nothing is asked about it"
    assert {Reason.NAME_NOT_FOUND, Reason.ADDRESS_LAN, Reason.INTERNAL_NAME} == set(desk.reasons())


async def test_a_denied_name_leads_to_where_it_is_told_why(desk: Desk) -> None:
    desk.rules.denied.add("denied.test")
    reply = await desk.ask("denied.test", edns=Edns())
    assert (reply.answers[0].ttl, told(reply)) == (5, "denied.test is denied")
    assert reply.edns is not None
    assert reply.edns.options == (extended_error(Detail.BLOCKED, "denied.test is denied"),)
    assert desk.names.name_of(await desk.address("denied.test")) == "denied.test"
    for kind in (Type.AAAA, Type.HTTPS, Type.MX, Type.TXT):
        assert is_nothing(await desk.ask("denied.test", kind))
    assert desk.server.asked == [], "nothing leaves"
    assert desk.reasons()[0] is Reason.DENIED_BY_RULE


async def test_a_denied_name_may_not_exist_instead(desk: Desk) -> None:
    desk.rules.denied.add("denied.test")
    desk.limit(GuestLimits(denied=Denied.NXDOMAIN))
    reply = await desk.ask("denied.test", edns=Edns())
    assert is_absent(reply)
    assert told(reply) == "denied.test is denied"
    assert dns.message.from_wire(encode(reply)).options[0].code == 15
    assert len(desk.names) == 0


async def test_denied_names_leave_room_for_others(desk: Desk) -> None:
    desk.limit(GuestLimits(denied_names=1))
    desk.rules.denied |= {"one.test", "two.test"}
    await desk.address("one.test")
    assert is_absent(await desk.ask("two.test"))
    await desk.address("one.test")
    await desk.address("web.test")


async def test_a_full_table_is_a_failure(desk: Desk) -> None:
    with tempfile.TemporaryFile() as file:
        desk.names = NameTable(file.fileno(), limit=1)
        desk.limit(GuestLimits())
        await desk.address("web.test")
        assert (await desk.ask("six.test")).code == Code.SERVFAIL
        assert is_nothing(await desk.ask("six.test", Type.AAAA))
        assert desk.reasons() == [Reason.ALLOWED, Reason.LIMIT, Reason.ALLOWED]


async def test_an_address_that_cannot_be_written_is_not_told(desk: Desk) -> None:
    with tempfile.NamedTemporaryFile() as file:
        NameTable(file.fileno())
        descriptor = os.open(file.name, os.O_RDONLY)
        desk.names = NameTable(descriptor)
        desk.limit(GuestLimits())
        try:
            assert (await desk.ask("web.test")).code == Code.SERVFAIL
        finally:
            os.close(descriptor)


async def test_a_network_that_is_down_has_no_names(desk: Desk) -> None:
    desk.rules.down = True
    assert is_absent(await desk.ask("web.test"))
    assert desk.server.asked == []


async def test_the_host(desk: Desk) -> None:
    assert is_absent(await desk.ask("host.hutch"))
    desk.rules.host = True
    assert str(await desk.address("host.hutch")) == HOST_ADDRESS
    assert is_nothing(await desk.ask("host.hutch", Type.AAAA))
    assert is_absent(await desk.ask("other.hutch"))
    assert desk.server.asked == []
    assert len(desk.names) == 0


async def test_the_guest_itself(desk: Desk) -> None:
    assert str(await desk.address("localhost")) == "127.0.0.1"
    assert str(await desk.address("app.localhost")) == "127.0.0.1"
    assert is_nothing(await desk.ask("localhost", Type.AAAA))
    assert desk.server.asked == []


async def test_addresses_have_names(desk: Desk) -> None:
    address = await desk.address("web.test")
    (answer,) = (await desk.ask(address.reverse_pointer, Type.PTR)).answers
    assert answer.data == ("web.test",)
    assert is_nothing(await desk.ask(address.reverse_pointer, Type.TXT))
    asked = len(desk.server.asked)
    absent = [
        "1.0.18.198.in-addr.arpa",
        "7.7.18.198.in-addr.arpa",
        "3.0.18.198.in-addr.arpa",
        "1.0.0.10.in-addr.arpa",
        "10.in-addr.arpa",
        "in-addr.arpa",
        "300.0.0.10.in-addr.arpa",
        "01.2.0.192.in-addr.arpa",
        "x.ip6.arpa",
        "12." * 32 + "ip6.arpa",
        "home.arpa",
    ]
    for name in absent:
        assert is_absent(await desk.ask(name, Type.PTR)), name
    assert len(desk.server.asked) == asked
    desk.rules.host = True
    (answer,) = (await desk.ask("3.0.18.198.in-addr.arpa", Type.PTR)).answers
    assert answer.data == ("host.hutch",)
    (answer,) = (await desk.ask("1.2.0.192.in-addr.arpa", Type.PTR)).answers
    assert answer.data == ("web.test",)
    assert is_absent(await desk.ask(IPv6Address("2001:db8::1").reverse_pointer, Type.PTR))
    assert desk.server.names()[-1][0].endswith("ip6.arpa")


async def test_any_is_answered_with_little(desk: Desk) -> None:
    (answer,) = (await desk.ask("web.test", Type.ANY)).answers
    assert (answer.type, answer.data) == (Type.HINFO, (b"RFC8482", b""))
    assert is_absent(await desk.ask("inside.test", Type.ANY))


@pytest.mark.parametrize(
    "query",
    [
        Message(7, Question("web.test", Type.AXFR)),
        Message(7, Question("web.test", Type.IXFR)),
        Message(7, Question("web.test", Type.NULL)),
        Message(7, Question("web.test", TSIG)),
        Message(7, Question("version.bind", Type.TXT, 3)),
        Message(7, Question("web.test", Type.A, 255)),
        Message(7, Question("web.test", Type.SOA), operation=5),
        Message(7, Question("web.test", Type.SOA), operation=4),
        Message(7, Question("web.test", Type.A), additional=(Record("k", TSIG, 0, (b"",), 255),)),
    ],
)
async def test_what_is_not_for_guests(desk: Desk, query: Message) -> None:
    assert (await desk.send(query)).code == Code.NOTIMP
    assert desk.server.asked == []


async def test_queries_that_cannot_be_read(desk: Desk) -> None:
    query = encode(Message(7, Question("web.test", Type.A)))
    assert await desk.resolver.answer(b"", False) is None
    assert await desk.resolver.answer(query[:11], False) is None
    answered = query[:2] + b"\x81" + query[3:]
    assert await desk.resolver.answer(answered, False) is None, "two of these would never end"
    for broken in (query[:-1], query[:12], query + b"\0", query + b"\0" * 1300):
        reply = await desk.resolver.answer(broken, False)
        assert reply is not None
        assert (len(reply), reply[:2], reply[3] & 15) == (12, query[:2], Code.FORMERR)
    record = Record("web.test", Type.A, 1, (PUBLIC,))
    for wrong in (
        Message(7, None),
        Message(7, Question("web.test", Type.A), answers=(record,)),
        Message(7, Question("web.test", Type.A), authority=(record,)),
    ):
        assert (await desk.send(wrong)).code == Code.FORMERR


async def test_extensions_of_another_version(desk: Desk) -> None:
    assert (await desk.ask("web.test", edns=Edns(version=1))).code == Code.BADVERS


@pytest.mark.parametrize("name", ["", "a\\032b.test", "-.test", "\\000.test", "1.2.3.4", "a.0x7f"])
async def test_what_is_no_host_s_name_does_not_exist(desk: Desk, name: str) -> None:
    reply = await desk.ask(name)
    assert is_absent(reply) if name else is_nothing(reply)
    assert desk.server.asked == []


async def test_datagrams_have_the_size_that_is_taken(desk: Desk) -> None:
    question = Question("large.test", Type.TXT)
    plain = await desk.send(Message(7, question))
    assert (plain.truncated, plain.answers) == (True, ())
    for size in (0, 512, 4096, 65535):  # never more than ours, whatever is taken
        assert (await desk.send(Message(7, question, edns=Edns(size=size)))).truncated
    whole = await desk.send(Message(7, question), tcp=True)
    assert (whole.truncated, len(whole.answers)) == (False, 8)


async def test_failures_are_failures(desk: Desk) -> None:
    def failing(query: Message, tcp: bool) -> Reply:
        return replace(query, response=True, code=Code.REFUSED)

    desk.server.hook = failing
    for kind in (Type.A, Type.AAAA, Type.TXT, Type.PTR):
        assert (await desk.ask("web.test", kind)).code == Code.SERVFAIL
    assert set(desk.reasons()) == {Reason.RESOLVE_FAILED}


async def test_one_type_may_fail_alone(desk: Desk) -> None:
    def failing(query: Message, tcp: bool) -> Reply:
        assert query.question is not None
        if query.question.type != Type.TXT:
            return desk.server.answer(query)
        return replace(query, response=True, code=Code.SERVFAIL)

    desk.server.hook = failing
    assert (await desk.ask("web.test", Type.TXT)).code == Code.SERVFAIL


@pytest.mark.parametrize("kind", [Type.A, Type.TXT, Type.PTR], ids=lambda kind: kind.name)
async def test_a_policy_that_changes_meanwhile_counts(desk: Desk, kind: Type) -> None:
    name = "1.2.0.192.in-addr.arpa" if kind == Type.PTR else "web.test"

    def change(query: Message, tcp: bool) -> Reply:
        assert query.question is not None
        if query.question.type in (Type.AAAA, Type.TXT, Type.PTR):
            desk.rules.internal.add(name)
        return desk.server.answer(query)

    desk.server.hook = change
    assert is_absent(await desk.ask(name, kind))
    assert desk.reasons() == [Reason.INTERNAL_NAME]


async def test_an_error_of_ours_gets_nobody_further(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> Decision:
        raise RuntimeError(name)

    monkeypatch.setattr(desk.rules, "lookup", broken)
    assert (await desk.ask("web.test")).code == Code.SERVFAIL


async def test_long_labels_below_a_wildcard_are_not_asked_for(desk: Desk) -> None:
    desk.rules.wide = "*.wide.test:8080/tcp"
    for labels, code in (("x" * 60 + "." + "y" * 59, 3), ("x" * 60 + "." + "y" * 60, 2)):
        assert (await desk.ask(f"{labels}.wide.test")).code == code
    assert desk.reasons() == [Reason.NAME_NOT_FOUND, Reason.LIMIT]
    assert len({name for name, _ in desk.server.names()}) == 1


async def test_new_names_below_a_wildcard_are_so_many_a_minute(desk: Desk) -> None:
    desk.rules.wide = "*.wide.test"
    desk.limit(GuestLimits(new_names=3))
    codes = [(await desk.ask(f"{number}.wide.test")).code for number in range(5)]
    assert codes == [Code.NXDOMAIN] * 3 + [Code.SERVFAIL] * 2
    assert (await desk.ask("2.wide.test")).code == Code.NXDOMAIN, "it is not new"
    desk.clock.now += 20
    codes = [(await desk.ask(f"{number}.wide.test")).code for number in (4, 5)]
    assert codes == [Code.NXDOMAIN, Code.SERVFAIL]
    await desk.address("web.test")  # no rule: the mode lets it out anyway


async def test_a_rule_that_names_a_name_limits_nothing(desk: Desk) -> None:
    desk.rules.wide = "web.test:443"
    desk.limit(GuestLimits(new_names=0, label_bytes=0, answer_bytes=0))
    await desk.address("web.test")
    assert (await desk.ask("web.test", Type.TXT)).answers
    assert (await desk.ask("_mongodb._tcp.web.test", Type.SRV)).code == Code.SERVFAIL


async def test_what_names_below_a_wildcard_answer_is_limited(desk: Desk) -> None:
    desk.rules.wide = "*.wide.test"
    desk.limit(GuestLimits(answer_bytes=500))
    codes = [(await desk.ask("a.wide.test", Type.TXT)).code for _ in range(3)]
    assert codes == [Code.NOERROR, Code.NOERROR, Code.SERVFAIL]
    desk.clock.now += 60
    assert (await desk.ask("a.wide.test", Type.TXT)).code == Code.NOERROR


async def test_queries_are_so_many_a_second(desk: Desk) -> None:
    desk.limit(GuestLimits(queries=2))
    query = encode(Message(7, Question("web.test", Type.A)))
    replies = [await desk.resolver.answer(query, False) for _ in range(6)]
    assert [reply is not None for reply in replies] == [True] * 4 + [False] * 2
    assert desk.reasons() == [Reason.ALLOWED, Reason.LIMIT]
    desk.clock.now += 1
    replies = [await desk.resolver.answer(query, False) for _ in range(3)]
    assert [reply is not None for reply in replies] == [True, True, False]


async def test_queries_are_so_many_at_once(desk: Desk) -> None:
    desk.limit(GuestLimits(in_flight=2))
    desk.server.hook = lambda query, tcp: None
    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(desk.ask(name)) for name in ("web.test", "six.test")]
        await desk.server.arrived.wait()
        query = encode(Message(7, Question("mixed.test", Type.A)))
        assert await desk.resolver.answer(query, False) is None
        await desk.upstream.close()
    assert {task.result().code for task in asking} == {Code.SERVFAIL}
    assert (await desk.ask("localhost")).code == Code.NOERROR


async def test_the_same_is_recorded_once_a_second(desk: Desk) -> None:
    for kind in (Type.A, Type.AAAA, Type.HTTPS, Type.A):
        await desk.ask("web.test", kind)
    await desk.ask("web.test", Type.TXT)
    assert [detail for _, _, _, detail in desk.records] == ["A", "TXT"]
    desk.clock.now += 1
    await desk.ask("web.test")
    assert len(desk.records) == 3


async def test_what_is_remembered_of_a_guest_is_bounded(desk: Desk) -> None:
    desk.rules.wide = "*.wide.test"
    desk.limit(GuestLimits(queries=1e6, new_names=1e6))
    desk.server.hook = lambda query, tcp: replace(query, response=True, code=Code.NXDOMAIN)
    for number in range(1100):
        await desk.ask(f"n{number}.wide.test")
    assert len(desk.resolver._known) == len(desk.resolver._recorded) == 1024


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_hostile_queries_are_answered_or_dropped(names: NameTable, data: st.DataObject) -> None:
    """Whatever a guest sends, the answer is a message to it, with nothing but what it may know."""
    kind = data.draw(st.sampled_from(list(Type)) | st.integers(0, 65535))
    name = data.draw(
        st.sampled_from(["web.test", "within.test", "host.hutch", "1.0.0.10.in-addr.arpa"])
    )
    query = bytearray(encode(Message(7, Question(name, kind), edns=Edns())))
    for _ in range(data.draw(st.integers(0, 3))):
        query[data.draw(st.integers(0, len(query) - 1))] = data.draw(st.integers(0, 255))
    resolver = GuestResolver(
        Rules(), names, Resolver([]), lambda *_, **__: None, GuestLimits(), Clock()
    )
    reply = asyncio.run(resolver.answer(bytes(query), data.draw(st.booleans())))
    if reply is not None:
        said = decode(reply)
        assert said.response
        assert said.code != Code.REFUSED
        assert not said.additional
