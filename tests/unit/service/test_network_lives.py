"""Networks over the lives of sandboxes: forks, snapshots, moments, claims, and other daemons."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from hutch.errors import HutchError, error
from hutch.images.base import no_report
from hutch.network.base import Attachment
from hutch.networking import NetworkChange, NetworkMode, NetworkPolicy
from hutch.service.host import HostService
from tests.unit.service.cutting import settled
from tests.unit.service.pooling import ready, refilled, warm
from tests.unit.service.test_networks import CLOSING, DENY, PUBLIC, run
from tests.unit.service.world import World, expect, spec


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


@pytest.fixture
async def cloned(farm: World) -> AsyncIterator[HostService]:
    async with farm.service() as service:
        yield service


def names(world: World, sandbox_id: str) -> str:
    path = world.network.attached[sandbox_id].names
    return path.read_text()


def looked_up(service: HostService, sandbox_id: str, text: str) -> None:
    """Leave in a sandbox's table what the gateway would have written there."""
    service._parts.places.names(sandbox_id).write_text(text)


# ---- other lives


async def test_children_have_the_policy_and_the_names(world: World, service: HostService) -> None:
    source = await run(service, name="web", network=DENY)
    looked_up(service, source.id, "198.18.1.1 a.example.com\n")
    forked = await service.forks.fork("web", count=3)
    for child in forked.children:
        assert child.network == DENY
        assert world.network.policies[child.id] == DENY
        assert names(world, child.id) == "198.18.1.1 a.example.com\n"
    looked_up(service, forked.children[0].id, "another\n")
    assert names(world, source.id) == "198.18.1.1 a.example.com\n"


async def test_what_is_restored_has_those_of_the_snapshot(
    world: World, service: HostService
) -> None:
    source = await run(service, name="web", network=DENY)
    looked_up(service, source.id, "198.18.1.1 a.example.com\n")
    await service.snapshots.create("web", name="moment")
    looked_up(service, source.id, "198.18.1.1 a.example.com\n198.18.1.2 b.example.com\n")
    await service.networks.update("web", NetworkChange(mode=NetworkMode.OPEN))
    restored = await service.snapshots.restore("moment", "again")
    assert (restored.network, world.network.policies[restored.id]) == (DENY, DENY)
    assert names(world, restored.id) == "198.18.1.1 a.example.com\n"


async def test_what_was_imported_opens_nothing_of_this_host(
    world: World, service: HostService
) -> None:
    policy = NetworkPolicy(NetworkMode.OPEN, ["a.example.com", "10.0.0.1"], [], [22], True)
    source = await run(service, name="web", network=policy)
    looked_up(service, source.id, "198.18.1.1 a.example.com\n")
    await service.snapshots.create("web", name="moment")
    file = [piece async for piece in service.snapshots.export("moment")]

    async def pieces() -> AsyncIterator[bytes]:
        for piece in file:
            yield piece

    await service.snapshots.load(pieces(), "imported")
    restored = await service.snapshots.restore("imported", "again")
    narrow = NetworkPolicy(NetworkMode.PUBLIC, ["a.example.com"])
    assert (restored.network, world.network.policies[restored.id]) == (narrow, narrow)
    assert names(world, restored.id) == "198.18.1.1 a.example.com\n"
    ours = await service.snapshots.restore("moment", "ours")
    assert ours.network == policy


async def test_a_policy_that_is_not_put_in_force_fails_the_child(
    world: World, service: HostService
) -> None:
    source = await run(service, name="web", network=DENY)
    world.network.failing["update"] = 1
    await expect("network_failed", service.forks.fork("web", ["kid"]))
    assert list(world.network.attached) == [source.id]
    assert await settled(world, service) == []


async def test_what_is_put_back_keeps_the_policy_of_today(
    world: World, service: HostService
) -> None:
    info = await run(service, name="web", network=DENY)
    await service.checkpoints.create("web", message="")
    looked_up(service, info.id, "198.18.1.1 a.example.com\n")
    await service.networks.update("web", NetworkChange(mode=NetworkMode.OPEN))
    world.network.told.clear()
    undone = await service.checkpoints.undo("web", 1)
    policy = NetworkPolicy(NetworkMode.OPEN, DENY.allow)
    assert undone.network == policy
    assert list(world.network.policies.values()) == [policy]
    (vm_id,) = world.network.attached
    assert vm_id != info.id
    assert names(world, vm_id) == "198.18.1.1 a.example.com\n"
    # Only one of the two VMs had a network at any time.
    what = [kind for kind, _ in world.network.told]
    assert what == ["attach", "detach", "update"]
    done = await service.networks.update("web", CLOSING)
    assert done.network.attached
    assert world.network.policies[vm_id] == done.network.policy


async def test_a_claim(farm: World, cloned: HostService, hasty: None) -> None:
    await warm(cloned)
    (member,) = ready(cloned)
    assert farm.network.policies == {member.id: None}
    info = await run(cloned, name="web", network=DENY)
    assert info.id == member.id
    assert farm.network.policies[info.id] == DENY
    assert farm.agent(info).identity["network"] is True
    await refilled(cloned, 1)
    await cloned.networks.update("web", NetworkChange(mode=NetworkMode.NONE))
    assert farm.network.policies[info.id] == NetworkPolicy(NetworkMode.NONE, DENY.allow)


async def test_a_claim_of_which_the_policy_fails(
    farm: World, cloned: HostService, hasty: None
) -> None:
    await warm(cloned)
    farm.network.failing["update"] = 1
    info = await run(cloned, name="web", network=DENY)
    # It has begun as others do.
    assert farm.network.policies[info.id] == DENY
    await refilled(cloned, 1)
    await cloned.pools.drain()
    assert await settled(farm, cloned) == []


async def test_a_claimed_one_is_closed_until_its_start(
    farm: World, cloned: HostService, hasty: None
) -> None:
    await warm(cloned)
    info = await cloned.sandboxes.create(spec(idle=True, name="web", network=DENY), no_report)
    assert farm.network.policies[info.id] is None
    await cloned.networks.update("web", NetworkChange(allow=["b.example.com"]))
    assert farm.network.policies[info.id] is None
    started = await cloned.sandboxes.start("web")
    assert farm.network.policies[info.id] == started.network
    assert started.network.allow == ["a.example.com", "b.example.com"]


# ---- other daemons


async def test_another_daemon_puts_in_force_what_is_on_record(world: World) -> None:
    async with world.service() as service:
        info = await run(service, name="web")
        await run(service, name="gone")
    assert not world.network.stopped
    world.network.policies[info.id] = NetworkPolicy(NetworkMode.OPEN)  # it died before
    stray = Attachment("sb_ffffffffffff", "stray", world.network.attached[info.id].names)
    world.network.attached[stray.sandbox_id] = stray
    async with world.service() as service:
        assert world.network.policies[info.id] == PUBLIC
        assert stray.sandbox_id not in world.network.attached
        assert len(world.network.attached) == 2
        done = await service.networks.update("web", CLOSING)
        assert done.network.attached
        await service.system.request_stop(stop_sandboxes=True)
    assert world.network.stopped
    assert world.network.opened == 0


async def test_a_daemon_that_does_not_start_leaves_the_networks_of_sandboxes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.service() as service:
        info = await run(service, name="web")
    failing = world.service()

    async def fail() -> None:
        raise error("disk_full", "the test says so")

    monkeypatch.setattr(failing.forks, "open", fail)
    with pytest.raises(HutchError, match="the test says so"):
        async with failing:
            pass
    assert not world.network.stopped
    assert world.network.opened == 0
    assert list(world.network.attached) == [info.id]


async def test_the_network_is_opened_beside_the_snapshots(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, reached = world.service(), asyncio.Event()
    snapshots_open, network_open = service.snapshots.open, world.network.open

    async def open_snapshots() -> None:
        reached.set()
        await snapshots_open()

    async def open_network() -> None:
        await reached.wait()  # for ever, if the one were opened after the other
        await network_open()

    monkeypatch.setattr(service.snapshots, "open", open_snapshots)
    monkeypatch.setattr(world.network, "open", open_network)
    async with service:
        assert world.network.opened == 1


async def test_a_daemon_without_sandboxes_ends_the_network(world: World) -> None:
    async with world.service() as service:
        await service.sandboxes.create(spec(idle=True), no_report)
    assert world.network.stopped
