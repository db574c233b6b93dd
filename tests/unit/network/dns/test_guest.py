"""What guests are told of names: everything that a policy lets them know, and nothing else."""

import os
import tempfile
from dataclasses import replace
from ipaddress import IPv6Address

import dns.message
import pytest

from hutch.network.dns.guest import Denied, GuestLimits
from hutch.network.dns.message import (
    TSIG,
    Code,
    Detail,
    Edns,
    Message,
    Question,
    Record,
    Type,
    encode,
    extended_error,
    told,
)
from hutch.network.synthetic import NameTable
from hutch.networking import HOST_ADDRESS, Decision, Reason
from tests.unit.network.dns.desk import PUBLIC, RANGE, ZONE, Desk, is_absent, is_nothing
from tests.unit.network.dns.nameserver import Reply


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


async def test_addresses_have_names_where_only_addresses_are_allowed(desk: Desk) -> None:
    name, inside = "1.2.0.192.in-addr.arpa", "1.0.0.10.in-addr.arpa"
    desk.rules.unnamed |= {name, inside}
    (answer,) = (await desk.ask(name, Type.PTR)).answers
    assert answer.data == ("web.test",)
    assert is_absent(await desk.ask(inside, Type.PTR))
    desk.rules.denied.add(name)
    assert is_absent(await desk.ask(name, Type.PTR))
    assert desk.server.names() == [(name, Type.PTR)]


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


@pytest.mark.parametrize(
    "kind", [Type.A, Type.AAAA, Type.TXT, Type.SRV], ids=lambda kind: kind.name
)
async def test_a_cname_leads_to_no_name_that_may_not_be_known(desk: Desk, kind: Type) -> None:
    desk.rules.internal.add("web.test")
    assert is_absent(await desk.ask("alias.test", kind))
    assert desk.reasons() == [Reason.NAME_NOT_FOUND]
    assert desk.records[0][0].text == "alias.test leads to web.test, which is closed"


async def test_a_cname_leads_to_no_name_that_a_rule_denies(desk: Desk) -> None:
    await desk.address("alias.test")
    desk.rules.denied.add("web.test")
    assert is_absent(await desk.ask("alias.test"))


async def test_what_the_mode_alone_denies_is_judged_by_its_addresses(desk: Desk) -> None:
    assert desk.resolver.may_follow("web.test")
    assert desk.resolver.may_follow("1.0/25.2.0.192.in-addr.arpa"), "RFC 2317"
    desk.rules.unnamed.add("web.test")
    await desk.address("alias.test")
    desk.rules.down = True
    assert not desk.resolver.may_follow("web.test")
