import asyncio
from collections.abc import Awaitable, Callable

import pytest

from hutch.network.addresses import AddressKind
from hutch.network.gateway.connection import Phase, Place
from hutch.network.gateway.inforce import InForce
from hutch.network.gateway.judge import Refused, Unreached, confirm, identify, reach
from hutch.network.policy import Rules
from hutch.networking import NetworkMode, NetworkPolicy, Reason
from tests.unit.network.gateway.world import World, echo

Worlds = Callable[..., Awaitable[World]]

DENY = NetworkPolicy(mode=NetworkMode.DENY)


def change(in_force: InForce, policy: NetworkPolicy) -> None:
    assert in_force.names is not None
    in_force.put(policy, Rules.of(policy), in_force.names)


async def test_destinations_stand_for_places(worlds: Worlds) -> None:
    world = await worlds(NetworkPolicy())
    in_force = world.sandbox._in_force
    known = world.address("a.example")
    found = {
        destination: identify(1, destination, in_force)
        for destination in [
            (known, 80),
            (known, 53),
            ("198.18.0.3", 80),
            ("198.18.0.1", 80),
            ("198.19.255.254", 80),
            ("8.8.8.8", 53),
            ("8.8.8.8", 80),
        ]
    }
    assert [item.place for item in found.values()] == [
        Place.NAME,
        Place.RESOLVER,
        Place.HOST,
        Place.NOTHING,
        Place.NOTHING,
        Place.RESOLVER,
        Place.RAW,
    ]
    assert found[known, 80].name == "a.example"
    with pytest.raises(ValueError, match="octets"):
        identify(1, ("::1", 80), in_force)


async def test_nothing_is_resolved_for_what_is_denied(worlds: Worlds) -> None:
    world = await worlds(NetworkPolicy(deny=["a.example"]))
    in_force = world.sandbox._in_force
    with pytest.raises(Refused) as caught:
        await reach(identify(1, (world.address("a.example"), 80), in_force), in_force)
    assert caught.value.decision.reason is Reason.DENIED_BY_RULE
    assert not world.names.asked.is_set()


async def test_a_connection_is_made_before_anybody_is_answered(worlds: Worlds) -> None:
    world = await worlds(NetworkPolicy())
    in_force = world.sandbox._in_force
    world.name("a.example")
    await world.serve(7, echo)
    connection = identify(1, (world.address("a.example"), 7), in_force)
    with await reach(connection, in_force) as upstream:
        assert upstream.getpeername() == ("127.0.0.1", world.ports[7])
    assert connection.phase is Phase.CONNECTING
    assert [kind for _, kind in connection.candidates] == [AddressKind.PUBLIC]


async def test_the_policy_is_asked_again_after_the_resolver(worlds: Worlds) -> None:
    world = await worlds(NetworkPolicy())
    in_force = world.sandbox._in_force
    world.name("a.example")
    world.names.hold = asyncio.Event()
    connection = identify(1, (world.address("a.example"), 7), in_force)
    async with asyncio.TaskGroup() as group:
        reaching = group.create_task(_refusal(connection, in_force))
        await world.names.asked.wait()
        change(in_force, DENY)
        world.names.hold.set()
    assert reaching.result() is Reason.NOT_ALLOWED
    assert world.dialled == []


async def _refusal(connection: object, in_force: InForce) -> Reason:
    with pytest.raises(Refused) as caught:
        await reach(connection, in_force)  # type: ignore[arg-type]
    return caught.value.decision.reason


async def test_half_open_connections_are_bounded(worlds: Worlds) -> None:
    world = await worlds(NetworkPolicy())
    in_force = world.sandbox._in_force
    in_force.half_open = asyncio.Semaphore(0)
    world.name("a.example")
    connection = identify(1, (world.address("a.example"), 7), in_force)
    async with asyncio.TaskGroup() as group:
        reaching = group.create_task(_refusal(connection, in_force))
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.dialled == []
        change(in_force, DENY)
        in_force.half_open.release()
    assert reaching.result() is Reason.NOT_ALLOWED


async def test_a_name_without_addresses_is_not_to_be_had(worlds: Worlds) -> None:
    world = await worlds(NetworkPolicy())
    in_force = world.sandbox._in_force
    for name, reason in [
        ("nowhere.example", Reason.NAME_NOT_FOUND),
        ("broken.example", Reason.RESOLVE_FAILED),
    ]:
        with pytest.raises(Unreached) as caught:
            await reach(identify(1, (world.address(name), 7), in_force), in_force)
        assert caught.value.decision.reason is reason
        assert caught.value.decision.allowed


async def test_confirming_costs_nothing_while_nothing_changes(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await worlds(NetworkPolicy())
    in_force = world.sandbox._in_force
    connection = identify(1, (world.address("a.example"), 7), in_force)
    asked: list[object] = []
    monkeypatch.setattr(connection, "verdict", asked.append)
    assert confirm(connection, in_force) is in_force.rules
    assert asked == []
    in_force.withdraw()
    with pytest.raises(Refused):
        confirm(connection, in_force)
