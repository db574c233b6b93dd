"""The client of the host's resolvers, against real servers on loopback."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.network.dns import client
from hutch.network.dns.cache import CacheLimits
from hutch.network.dns.client import (
    Answer,
    Limits,
    Resolver,
    host_domains,
    host_servers,
)
from hutch.network.dns.message import Code, Message, Question, Record, Type, encode, told
from tests.unit.network.dns.nameserver import Clock, NameServer, Reply, serving

FOUR, SIX = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
ZONE = [
    Record("both.test", Type.A, 60, (FOUR,)),
    Record("both.test", Type.AAAA, 50, (SIX,)),
    Record("four.test", Type.A, 60, (FOUR,)),
    Record("alias.test", Type.CNAME, 40, ("middle.test",)),
    Record("middle.test", Type.CNAME, 45, ("Four.test",)),
    Record("mail.test", Type.MX, 60, (10, "MX.test")),
    Record("round.test", Type.CNAME, 60, ("about.test",)),
    Record("about.test", Type.CNAME, 60, ("round.test",)),
    *(Record("large.test", Type.TXT, 60, (bytes([one]) * 250,)) for one in range(20)),
]
# Long enough for any machine: only tests of silence wait for a limit, with limits of their own.
PATIENT = Limits(attempt=20, total=40, other_family=20)
SILENT = Limits(attempt=0.1, total=0.5, rounds=2)


@pytest.fixture
async def server() -> AsyncIterator[NameServer]:
    async with serving(NameServer(ZONE)) as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def resolver(server: NameServer, clock: Clock) -> AsyncIterator[Resolver]:
    made = Resolver([server.place], PATIENT, clock)
    yield made
    await made.close()


@pytest.fixture
def refusing() -> Iterator[tuple[str, int]]:
    """A server that refuses: a port that is ours, and hears nobody but itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(sock.getsockname())
        yield sock.getsockname()


async def test_addresses_of_both_families(resolver: Resolver) -> None:
    assert await resolver.addresses("both.test") == Answer((FOUR, SIX), 50, Code.NOERROR)


async def test_cnames_are_followed_and_their_ttl_counts(resolver: Resolver) -> None:
    assert await resolver.addresses("alias.test") == Answer((FOUR,), 40, Code.NOERROR)
    said = await resolver.query("alias.test", Type.A)
    assert [one.name for one in said.answers] == ["alias.test", "middle.test", "four.test"]


async def test_cnames_that_come_one_by_one(server: NameServer, resolver: Resolver) -> None:
    def one_link(query: Message, tcp: bool) -> Reply:
        said = server.answer(query)
        return replace(said, answers=said.answers[:1], authority=())

    server.hook = one_link
    assert (await resolver.addresses("alias.test")).addresses == (FOUR,)
    assert ("four.test", Type.A) in server.names()


async def test_cnames_in_a_circle_and_without_end(server: NameServer, resolver: Resolver) -> None:
    answer = await resolver.addresses("round.test")
    assert (answer.code, answer.text) == (Code.SERVFAIL, "its CNAMEs do not come to an end")

    def further(query: Message, tcp: bool) -> Reply:
        assert query.question is not None
        name = query.question.name
        link = Record(name, Type.CNAME, 60, (f"x{name}",))
        return replace(query, response=True, answers=(link,), edns=None)

    server.hook = further
    before = len(server.asked)
    assert (await resolver.query("far.test", Type.A)).code == Code.SERVFAIL
    assert len(server.asked) - before == 8


async def test_names_that_do_not_exist_or_have_no_address(resolver: Resolver) -> None:
    assert await resolver.addresses("no.test") == Answer((), 20, Code.NXDOMAIN)
    assert await resolver.addresses("mail.test") == Answer((), 20, Code.NOERROR)


async def test_other_types_without_the_case_that_was_sent(resolver: Resolver) -> None:
    said = await resolver.query("mail.test", Type.MX)
    assert said.answers == (Record("mail.test", Type.MX, 60, (10, "mx.test")),)


async def test_only_records_of_the_name_are_believed(
    server: NameServer, resolver: Resolver
) -> None:
    def more(query: Message, tcp: bool) -> Reply:
        evil = Record("both.test", Type.A, 60, (IPv4Address("203.0.113.66"),))
        said = server.answer(query)
        return replace(said, answers=(evil, *said.answers), additional=(evil,))

    server.hook = more
    assert (await resolver.addresses("four.test")).addresses == (FOUR,)
    server.hook = None
    assert (await resolver.addresses("both.test")).addresses == (FOUR, SIX)


async def test_answers_are_kept_for_their_ttl(
    server: NameServer, resolver: Resolver, clock: Clock
) -> None:
    await resolver.addresses("both.test")
    clock.now += 49
    assert await resolver.addresses("both.test") == Answer((FOUR, SIX), 1, Code.NOERROR)
    assert len(server.asked) == 2
    clock.now += 1
    assert (await resolver.addresses("both.test")).ttl == 10, "that of the A record"
    assert server.names()[2:] == [("both.test", Type.AAAA)]


async def test_absence_is_kept_as_long_as_the_zone_says(
    server: NameServer, resolver: Resolver, clock: Clock
) -> None:
    await resolver.query("no.test", Type.A)
    clock.now += 19
    assert (await resolver.query("no.test", Type.A)).code == Code.NXDOMAIN
    assert len(server.asked) == 1
    clock.now += 1
    await resolver.query("no.test", Type.A)
    assert len(server.asked) == 2


async def test_what_nobody_says_how_long_it_holds_is_not_kept(
    server: NameServer, resolver: Resolver
) -> None:
    server.hook = lambda query, tcp: replace(query, response=True, code=Code.NXDOMAIN, edns=None)
    await resolver.query("no.test", Type.A)
    await resolver.query("no.test", Type.A)
    assert len(server.asked) == 2


async def test_only_so_much_is_kept(server: NameServer, clock: Clock) -> None:
    resolver = Resolver([server.place], replace(PATIENT, cache=CacheLimits(answers=2)), clock)
    for name in ("a.test", "b.test", "c.test", "b.test", "a.test"):
        await resolver.query(name, Type.A)
    assert [name for name, _ in server.names()] == ["a.test", "b.test", "c.test", "a.test"]


async def test_the_same_question_is_asked_once_at_a_time(
    server: NameServer, resolver: Resolver
) -> None:
    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(resolver.addresses("both.test")) for _ in range(20)]
    assert {task.result() for task in asking} == {Answer((FOUR, SIX), 50, Code.NOERROR)}
    assert sorted(server.names()) == [("both.test", Type.A), ("both.test", Type.AAAA)]


async def test_one_who_gives_up_takes_nothing_from_the_others(server: NameServer) -> None:
    held: list[Message] = []

    def hold(query: Message, tcp: bool) -> Reply:
        held.append(query)
        return None

    server.hook = hold
    resolver = Resolver([server.place], PATIENT)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(resolver.query("four.test", Type.A))
        second = group.create_task(resolver.query("four.test", Type.A))
        await server.arrived.wait()
        first.cancel()
        server.send(encode(server.answer(held[0])), server.asked[0][2])
    assert second.result().answers[0].data == (FOUR,)
    await resolver.close()


async def test_each_question_has_a_port_an_id_and_a_spelling_of_its_own(
    server: NameServer, resolver: Resolver
) -> None:
    name = "a-name-that-is-long-enough-for-random-case.test"
    for number in range(20):
        await resolver.query(f"{number}.{name}", Type.A)
    ports = {address[1] for _, _, address in server.asked}
    ids = {query.identity for query, _, _ in server.asked}
    spellings = {
        query.question.name.split(".")[1] for query, _, _ in server.asked if query.question
    }
    assert min(len(ports), len(ids), len(spellings)) > 10


async def test_forged_answers_are_passed_over(server: NameServer, resolver: Resolver) -> None:
    evil = Record("four.test", Type.A, 60, (IPv4Address("203.0.113.66"),))

    def forge(query: Message, tcp: bool) -> Reply:
        assert query.question is not None
        to = server.asked[-1][2]
        right = replace(query, response=True, answers=(evil,), edns=None)
        for wrong in (
            replace(right, identity=query.identity ^ 1),
            replace(right, response=False),
            replace(right, operation=4),
            replace(right, question=Question("five.test", query.question.type)),
            replace(right, question=replace(query.question, type=Type.MX)),
            replace(right, question=None),
        ):
            server.send(encode(wrong), to)
        server.send(b"\xff" * 40, to)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(encode(right), to)  # right, but of another server
        return server.answer(query)

    server.hook = forge
    assert (await resolver.addresses("four.test")).addresses == (FOUR,)


@pytest.mark.parametrize("change", ["case", "cut", "garbled"])
async def test_doubtful_answers_are_had_over_tcp(
    server: NameServer, resolver: Resolver, change: str
) -> None:
    evil = Record("four.test", Type.A, 60, (IPv4Address("203.0.113.66"),))

    def doubtful(query: Message, tcp: bool) -> Reply:
        assert query.question is not None
        if tcp:
            return server.answer(query)
        said = replace(query, response=True, answers=(evil,), edns=None)
        if change == "garbled":
            return encode(said)[:-1]
        if change == "cut":
            return replace(said, truncated=True)
        swapped = query.question.name.swapcase()
        return replace(said, question=replace(query.question, name=swapped))

    server.hook = doubtful
    assert (await resolver.addresses("four.test")).addresses == (FOUR,)


async def test_large_answers_are_had_over_tcp(server: NameServer, resolver: Resolver) -> None:
    said = await resolver.query("large.test", Type.TXT)
    assert len(said.answers) == 20
    assert [tcp for _, tcp, _ in server.asked] == [False, True]


async def test_servers_that_know_no_extensions(server: NameServer, resolver: Resolver) -> None:
    def old(query: Message, tcp: bool) -> Reply:
        if query.edns is None:
            return server.answer(query)
        return Message(query.identity, None, response=True, code=Code.FORMERR)

    server.hook = old
    assert (await resolver.addresses("four.test")).addresses == (FOUR,)


@pytest.mark.parametrize("code", [Code.SERVFAIL, Code.REFUSED, Code.NOTIMP, 9])
async def test_another_server_is_asked_and_remembered(
    server: NameServer, resolver: Resolver, code: int
) -> None:
    failing = NameServer(hook=lambda query, tcp: replace(query, response=True, code=code))
    async with serving(failing):
        both = Resolver([failing.place, server.place], PATIENT)
        assert (await both.query("four.test", Type.A)).answers[0].data == (FOUR,)
        asked = len(failing.asked)
        assert (await both.query("both.test", Type.A)).answers[0].data == (FOUR,)
        assert len(failing.asked) == asked
        alone = Resolver([failing.place], PATIENT)
        answer = await alone.addresses("four.test")
    said = Code(code).name if code != 9 else "9"
    assert answer == Answer((), 0, Code.SERVFAIL, f"answered {said}")


async def test_a_server_that_is_not_there_is_passed_by(
    server: NameServer, refusing: tuple[str, int]
) -> None:
    resolver = Resolver([refusing, server.place], PATIENT)
    assert (await resolver.addresses("four.test")).addresses == (FOUR,)


async def test_silence_is_a_failure(server: NameServer) -> None:
    server.hook = lambda query, tcp: None
    resolver = Resolver([server.place], SILENT)
    answer = await resolver.addresses("four.test")
    assert answer == Answer((), 0, Code.SERVFAIL, "no resolver of the host answered")
    assert len(server.asked) >= 2
    assert told(await Resolver([], SILENT).query("four.test", Type.A)) == answer.text


async def test_one_family_does_not_wait_long_for_the_other(server: NameServer) -> None:
    def no_six(query: Message, tcp: bool) -> Reply:
        assert query.question is not None
        return None if query.question.type == Type.AAAA else server.answer(query)

    server.hook = no_six
    resolver = Resolver([server.place], replace(PATIENT, other_family=0.01))
    assert await resolver.addresses("both.test") == Answer((FOUR,), 60, Code.NOERROR)
    await resolver.close()


async def test_closed_while_it_asks(server: NameServer) -> None:
    server.hook = lambda query, tcp: None
    resolver = Resolver([server.place], PATIENT)
    async with asyncio.TaskGroup() as group:
        one = group.create_task(resolver.addresses("four.test"))
        other = group.create_task(resolver.query("four.test", Type.MX))
        await server.arrived.wait()
        await resolver.close()
    assert (one.result().code, other.result().code) == (Code.SERVFAIL, Code.SERVFAIL)
    assert (await resolver.addresses("four.test")).code == Code.SERVFAIL


async def test_only_so_many_questions_at_once(server: NameServer) -> None:
    server.hook = lambda query, tcp: None
    resolver = Resolver([server.place], replace(PATIENT, asked=1))
    async with asyncio.TaskGroup() as group:
        first = group.create_task(resolver.query("four.test", Type.A))
        await server.arrived.wait()
        assert told(await resolver.query("both.test", Type.A)) == "too many questions at once"
        await resolver.close()
    assert first.done()


@pytest.mark.parametrize("name", ["a" * 64, "a..b", ".".join(["a" * 60] * 5)])
async def test_what_is_no_name_is_a_failure(
    server: NameServer, resolver: Resolver, name: str
) -> None:
    assert (await resolver.addresses(name)).code == Code.SERVFAIL
    assert server.asked == []


async def test_servers_may_change(server: NameServer, refusing: tuple[str, int]) -> None:
    servers = [refusing]
    resolver = Resolver(lambda: servers, PATIENT)
    assert (await resolver.query("four.test", Type.A)).code == Code.SERVFAIL
    servers[:] = [server.place]
    assert (await resolver.query("four.test", Type.A)).code == Code.NOERROR


def test_the_host_s_configuration(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    assert host_servers(path) == [("127.0.0.1", 53)]
    assert host_domains(path) == []
    path.write_text(
        "# nameserver 192.0.2.9\n; search no.test\n\nnameserver\nnameserver example.test\n"
        "domain old.test\nsearch Corp.Example. lab.example\nnameserver 192.0.2.1\n"
        "nameserver fe80::1%eth0 # comment\noptions ndots:5\n"
        "nameserver 2001:db8::1\nnameserver 192.0.2.4\n"
    )
    assert [server for server, _ in host_servers(path)] == [
        "192.0.2.1",
        "fe80::1%eth0",
        "2001:db8::1",
    ]
    assert host_domains(path) == ["corp.example", "lab.example"]


@dataclass
class Guard:
    """Lets everything be known but some names, and so much be asked."""

    closed: set[str] = field(default_factory=set)
    questions: int = 100
    least: float = 0.0

    def may_ask(self, name: str) -> float | None:
        self.questions -= 1
        return self.least if self.questions >= 0 else None

    def may_follow(self, name: str) -> bool:
        return name not in self.closed


async def test_what_a_cname_leads_to_is_judged(server: NameServer, resolver: Resolver) -> None:
    resolver.guard = guard = Guard({"four.test"})
    answer = await resolver.addresses("alias.test")
    assert (answer.addresses, answer.code) == ((), Code.NXDOMAIN)
    assert answer.text == "alias.test leads to four.test, which is closed"
    said = await resolver.query("alias.test", Type.A)
    assert (said.code, said.answers, said.authority) == (Code.NXDOMAIN, (), ())
    asked = len(server.asked)
    guard.closed.clear()
    assert (await resolver.addresses("alias.test")).addresses == (FOUR,)
    guard.closed.add("middle.test")
    assert (await resolver.addresses("alias.test")).code == Code.NXDOMAIN, "known, judged again"
    assert len(server.asked) == asked


async def test_what_may_not_be_known_is_not_asked_for(
    server: NameServer, resolver: Resolver
) -> None:
    def one_link(query: Message, tcp: bool) -> Reply:
        said = server.answer(query)
        return replace(said, answers=said.answers[:1], authority=())

    server.hook = one_link
    resolver.guard = Guard({"four.test"})
    assert (await resolver.query("alias.test", Type.A)).code == Code.NXDOMAIN
    assert [name for name, _ in server.names()] == ["alias.test", "middle.test"]


async def test_what_cannot_be_read_is_not_asked_for_again(
    server: NameServer, resolver: Resolver
) -> None:
    strings = Record("four.test", Type.TXT, 60, (b"",) * 5000)
    server.hook = lambda query, tcp: replace(query, response=True, answers=(strings,), edns=None)
    assert (await resolver.query("four.test", Type.TXT)).code == Code.SERVFAIL
    assert [tcp for _, tcp, _ in server.asked] == [False, True]


async def test_a_configuration_that_cannot_be_read_opens_nothing(tmp_path: Path) -> None:
    for read in (host_domains, host_servers):
        with pytest.raises(HutchError) as caught:
            read(tmp_path)  # a directory
        assert caught.value.code == "network_failed"
    resolver = Resolver(lambda: host_servers(tmp_path), PATIENT)
    answer = await resolver.addresses("four.test")
    assert answer.code == Code.SERVFAIL
    assert "cannot be read" in answer.text


async def test_the_last_descriptors_are_not_for_questions(
    server: NameServer, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_SPARE", 1 << 30)
    assert (await resolver.addresses("four.test")).code == Code.SERVFAIL
    assert server.asked == []
    monkeypatch.setattr(client, "_SPARE", 0)
    assert (await resolver.addresses("four.test")).code == Code.NOERROR


async def test_questions_are_metered_but_not_what_is_known(
    server: NameServer, resolver: Resolver
) -> None:
    resolver.guard = Guard(questions=2)
    for _ in range(3):
        assert (await resolver.addresses("both.test")).addresses == (FOUR, SIX)
    answer = await resolver.addresses("four.test")
    assert answer.code == Code.SERVFAIL
    assert answer.text == "too many questions in a minute about what no rule names"
    assert len(server.asked) == 2


async def test_what_a_guard_says_is_remembered_without_a_ttl(
    server: NameServer, resolver: Resolver, clock: Clock
) -> None:
    server.hook = lambda query, tcp: replace(query, response=True, edns=None)
    resolver.guard = Guard(least=30)
    for _ in range(2):
        assert (await resolver.addresses("four.test")).code == Code.NOERROR
    assert len(server.asked) == 2
    clock.now += 30
    await resolver.addresses("four.test")
    assert len(server.asked) == 4
