"""How much guests may ask, and how much is kept of what they asked."""

import asyncio
import tempfile
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hutch.errors import HutchError
from hutch.network.dns import guest, quota
from hutch.network.dns.client import Resolver
from hutch.network.dns.guest import Denied, GuestLimits, GuestResolver
from hutch.network.dns.message import (
    Code,
    Edns,
    Message,
    Question,
    Type,
    decode,
    encode,
)
from hutch.network.synthetic import NameTable
from hutch.networking import Reason
from tests.unit.network.dns.desk import Desk, Rules, is_absent, is_nothing
from tests.unit.network.dns.nameserver import Clock, Reply


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


async def test_names_that_were_denied_are_new_when_they_are_allowed(desk: Desk) -> None:
    desk.limit(GuestLimits(new_names=2))
    names = [f"{number}.wide.test" for number in range(4)]
    desk.rules.denied |= set(names)
    for name in names:
        await desk.address(name)
    assert desk.server.asked == []
    desk.rules.denied.clear()
    desk.rules.wide = "*.wide.test"
    codes = [(await desk.ask(name)).code for name in names]
    assert codes == [Code.NXDOMAIN] * 2 + [Code.SERVFAIL] * 2
    assert {name for name, _ in desk.server.names()} == set(names[:2])


async def test_a_rule_that_names_a_name_limits_nothing(desk: Desk) -> None:
    desk.rules.wide = "web.test:443"
    desk.limit(GuestLimits(new_names=0, label_bytes=0, answer_bytes=0))
    await desk.address("web.test")
    assert (await desk.ask("web.test", Type.TXT)).answers
    assert (await desk.ask("_mongodb._tcp.web.test", Type.SRV)).code == Code.SERVFAIL


async def test_known_names_below_a_wildcard_are_not_asked_for_again_and_again(desk: Desk) -> None:
    def undated(query: Message, tcp: bool) -> Reply:
        said = desk.server.answer(query)
        return replace(said, answers=tuple(replace(one, ttl=0) for one in said.answers))

    desk.server.hook = undated
    desk.rules.wide = "*.wide.test"
    for _ in range(5):
        await desk.address("a.wide.test")
        assert (await desk.ask("a.wide.test", Type.TXT)).answers
        assert (await desk.upstream.addresses("a.wide.test")).addresses, "of a connection"
    assert len(desk.server.asked) == 3
    desk.limit(GuestLimits(questions=4))
    for number, kind in enumerate((Type.A, Type.TXT, Type.MX, Type.SRV)):
        desk.clock.now += 30 if number == 0 else 0
        await desk.ask("a.wide.test", kind)
    assert len(desk.server.asked) == 7
    assert (await desk.ask("a.wide.test", Type.SRV)).code == Code.SERVFAIL


async def test_a_connection_to_a_name_below_a_wildcard_is_limited_too(desk: Desk) -> None:
    desk.rules.wide = "*.wide.test"
    desk.limit(GuestLimits(new_names=1))
    names = [f"{number}.wide.test" for number in range(3)]
    codes = [(await desk.upstream.addresses(name)).code for name in names]
    assert codes == [Code.NXDOMAIN, Code.SERVFAIL, Code.SERVFAIL]
    assert {name for name, _ in desk.server.names()} == {names[0]}


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


async def test_what_is_remembered_of_a_guest_is_bounded(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest, "_REMEMBERED", 8)
    monkeypatch.setattr(quota, "REMEMBERED", 8)
    desk.rules.wide = "*.wide.test"
    for number in range(20):
        await desk.ask(f"n{number}.wide.test")
    assert len(desk.resolver._quota) == len(desk.resolver._recorded) == 8


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
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
