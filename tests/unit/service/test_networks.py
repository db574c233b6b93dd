"""Sandboxes and their networks: the policy is there before the first instruction, and stays."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hutch.engine.base import ExitKind, Frozen, MachineExit, MachineSpec
from hutch.errors import HutchError, error
from hutch.images.base import no_report
from hutch.models import SandboxInfo, SandboxState
from hutch.network.base import Ability
from hutch.networking import Connection, NetworkChange, NetworkMode, NetworkPolicy
from hutch.service.host import HostService
from hutch.tasks import Scope
from tests.unit.service.cutting import cuts, settled
from tests.unit.service.pooling import ready, warm
from tests.unit.service.world import World, expect, spec
from tests.waiting import until

DENY = NetworkPolicy(NetworkMode.DENY, allow=["a.example.com"])
NONE = NetworkPolicy(NetworkMode.NONE)
PUBLIC = NetworkPolicy()
CLOSING = NetworkChange(mode=NetworkMode.DENY)


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


@pytest.fixture
async def cloned(farm: World) -> AsyncIterator[HostService]:
    async with farm.service() as service:
        yield service


async def run(service: HostService, **fields: Any) -> SandboxInfo:
    info = await service.sandboxes.create(spec(idle=True, **fields), no_report)
    return await service.sandboxes.start(info.id)


# ---- every start


Started = list[tuple[str, NetworkPolicy | None]]


def watch(world: World, monkeypatch: pytest.MonkeyPatch) -> Started:
    """Check each start of a VM: it has a TAP, which was made before. Returns with what policy."""
    seen: Started = []
    boot, clone = world.engine.boot, world.engine.clone

    def note(machine: MachineSpec) -> None:
        assert machine.tap is not None
        assert machine.tap >= 0, "it is that of a layout"
        assert machine.id == machine.directory.name
        seen.append((machine.id, world.network.policies[machine.id]))

    async def watched_boot(machine: MachineSpec) -> Any:
        note(machine)
        return await boot(machine)

    async def watched_clone(machine: MachineSpec, frozen: Frozen) -> Any:
        note(machine)
        return await clone(machine, frozen)

    monkeypatch.setattr(world.engine, "boot", watched_boot)
    monkeypatch.setattr(world.engine, "clone", watched_clone)
    return seen


async def test_no_machine_starts_unattached(
    farm: World, monkeypatch: pytest.MonkeyPatch, hasty: None
) -> None:
    watched = watch(farm, monkeypatch)
    async with farm.service() as service:
        first = await run(service, name="one", network=DENY)
        builds = [each for each in watched if each[0].startswith("tb_")]
        assert [policy for _, policy in builds] == [None]
        assert (first.id, DENY) in watched  # it began as a clone of that
        assert first.template is not None
        cold = await service.sandboxes.create(
            spec(idle=True, name="cold", template=False, network=DENY), no_report
        )
        await service.sandboxes.start("cold")
        await service.sandboxes.park("one")
        await service.sandboxes.resume("one")
        assert watched.count((first.id, DENY)) == 2
        forked = await service.forks.fork("one", ["kid"])
        snapshot = await service.snapshots.create("one", name="moment")
        restored = await service.snapshots.restore("moment", "again")
        disk = await service.snapshots.restore("moment", "disk", disk_only=True)
        checkpoint = await service.checkpoints.create("one", message="")
        await service.checkpoints.undo("one", 1)
        with contextlib.suppress(HutchError):  # the fake guest has no /proc
            await service.diffs.diff("one")
        await warm(service)
        await service.sandboxes.stop("cold")
        await service.sandboxes.start("cold")
        started = dict(watched)
        assert started[cold.id] == DENY
        # What goes on from a memory is closed until the names are there that it knows.
        assert started[forked.children[0].id] is None
        assert started[restored.id] is None
        assert started[disk.id] == DENY
        members = {each.id for each in ready(service)}
        assert {started[each] for each in members} == {None}
        running = {entry.info.id for entry in service._registry if entry.sandbox is not None}
        assert (snapshot.checkpoint, checkpoint.checkpoint) == (False, True)
        in_force = dict(farm.network.policies)
        for member in members:
            assert in_force.pop(member) is None
        assert list(in_force.values()) == [DENY] * len(running)
        for process in farm.engine.running():
            assert process.record.directory.name in farm.network.attached


# ---- what is in force


async def test_the_default_and_none(world: World, service: HostService) -> None:
    web = await run(service, name="web")
    assert (web.network, world.network.policies[web.id]) == (PUBLIC, PUBLIC)
    assert world.agent(web).identity["network"] is True
    off = await run(service, name="off", network=NONE)
    assert (off.network, world.network.policies[off.id]) == (NONE, NONE)
    assert world.agent(off).identity["network"] is False


async def test_a_policy_that_cannot_be_is_refused_before_an_image_is_pulled(
    world: World, service: HostService
) -> None:
    bad = NetworkPolicy(allow=["*.*"])
    await expect("bad_policy", service.sandboxes.create(spec(network=bad), no_report))
    assert world.images.asked == []
    assert world.leftovers() == []


async def test_a_host_without_networks(world: World) -> None:
    world.network.ability = Ability(taps=False, why="no tap")
    async with world.service() as service:
        web = await run(service, name="web")
        assert web.network.mode is NetworkMode.NONE
        asked = service.sandboxes.create(spec(network=DENY), no_report)
        failure = await expect("network_missing", asked)
        assert "no tap" in failure.message
        assert world.engine.booted[-1].tap is None
        await expect("network_missing", service.networks.update("web", CLOSING))
        shown = await service.networks.show("web")
        assert (shown.attached, shown.policy) == (False, web.network)
    assert world.network.told == []


async def test_gone_with_the_machine(world: World, service: HostService) -> None:
    for end in ("stop", "kill", "park", "remove"):
        info = await run(service, name="web")
        assert info.id in world.network.attached
        if end == "remove":
            await service.sandboxes.remove("web", force=True)
        else:
            await getattr(service.sandboxes, end)("web")
        await until(lambda: not world.network.attached)
        if end != "remove":
            await service.sandboxes.remove("web", force=True)
    assert world.leftovers() == []


async def test_gone_when_a_machine_dies(world: World, service: HostService) -> None:
    info = await run(service, name="web")
    world.end_machine(info.id, MachineExit(ExitKind.CRASHED))
    await service.sandboxes.wait("web")
    await until(lambda: not world.network.attached)


# ---- what fails


async def test_an_attachment_that_fails(world: World, service: HostService) -> None:
    await service.sandboxes.create(spec(name="web", idle=True), no_report)
    world.network.failing["attach"] = 1
    await expect("network_failed", service.sandboxes.start("web"))
    assert world.engine.booted == []
    info = await service.sandboxes.get("web")
    assert info.state is SandboxState.FAILED
    assert info.error is not None
    assert info.error.code == "network_failed"
    assert await settled(world, service) == []
    await service.sandboxes.start("web")
    assert world.network.policies[info.id] == PUBLIC


async def test_an_engine_that_fails_after_it(world: World, service: HostService) -> None:
    await service.sandboxes.create(spec(name="web", idle=True), no_report)
    world.engine.fail_boot = error("engine_failed", "told to")
    await expect("engine_failed", service.sandboxes.start("web"))
    assert (world.network.attached, await settled(world, service)) == ({}, [])


async def test_a_start_that_is_cut_off(world: World, service: HostService) -> None:
    await service.sandboxes.create(spec(name="web", idle=True), no_report)
    world.engine.hang_boot = True
    async with Scope("test") as scope:
        task = scope.start("start", service.sandboxes.start("web"))
        await until(lambda: world.network.attached)
        await service.sandboxes.kill("web")
        with pytest.raises(HutchError, match="was stopped"):
            await task
    assert (world.network.attached, await settled(world, service)) == ({}, [])


async def test_a_detachment_that_fails_keeps_nobody_up(world: World, service: HostService) -> None:
    await run(service, name="web")
    world.network.failing["detach"] = 1
    assert (await service.sandboxes.stop("web")).state is SandboxState.STOPPED
    await service.sandboxes.start("web")
    assert list(world.network.policies.values()) == [PUBLIC]


async def test_a_network_that_cannot_be_adopted(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.service() as service:
        await run(service, name="web")
    world.network.failing["adopt"] = 1
    async with world.service() as service:
        assert "are not in order" in caplog.text
        assert (await service.sandboxes.get("web")).state is SandboxState.RUNNING


# ---- changes


async def test_a_change_is_on_record_and_in_force(world: World, service: HostService) -> None:
    info = await run(service, name="web")
    world.network.open_connections[info.id] = [
        Connection(1, "open", "a.example.com", "1.2.3.4", 443, "now", 5, 6)
    ]
    assert len(await service.networks.connections("web")) == 1
    change = NetworkChange(mode=NetworkMode.DENY, allow=["b.example.com"])
    done = await service.networks.update("web", change)
    policy = NetworkPolicy(NetworkMode.DENY, ["b.example.com"])
    assert (done.ended, done.network.policy, done.network.attached) == (1, policy, True)
    assert world.network.policies[info.id] == policy
    assert (await service.sandboxes.get("web")).network == policy
    rows = await service._parts.store.sandboxes()
    assert rows[0].info.network == policy
    kinds = [each.kind for each in service._parts.events.kept(None)]
    assert kinds[-1] == "network.changed"
    shown = await service.networks.show("web")
    assert (shown.name, shown.sandbox_id, shown.policy) == ("web", info.id, policy)


async def test_on_record_before_it_is_in_force(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(service, name="web")
    seen: list[NetworkPolicy] = []
    update = world.network.update

    async def look(sandbox_id: str, policy: NetworkPolicy | None) -> int:
        seen.extend(row.info.network for row in await service._parts.store.sandboxes())
        return await update(sandbox_id, policy)

    monkeypatch.setattr(world.network, "update", look)
    await service.networks.update("web", CLOSING)
    assert seen == [NetworkPolicy(NetworkMode.DENY)]


async def test_one_that_does_not_run(world: World, service: HostService) -> None:
    info = await service.sandboxes.create(spec(idle=True, name="web"), no_report)
    done = await service.networks.update("web", CLOSING)
    assert (done.ended, done.network.attached) == (0, False)
    assert await service.networks.connections("web") == []
    assert world.network.told == [("adopt", "")]  # of the daemon's start
    await service.sandboxes.start("web")
    assert world.network.policies[info.id].mode is NetworkMode.DENY  # type: ignore[union-attr]


async def test_it_outlives_restart_pause_and_park(world: World, service: HostService) -> None:
    info = await run(service, name="web")
    await service.networks.update("web", CLOSING)
    denied = NetworkPolicy(NetworkMode.DENY)
    await service.sandboxes.restart("web")
    assert world.network.policies[info.id] == denied
    await service.sandboxes.pause("web")
    await service.networks.update("web", NetworkChange(mode=NetworkMode.OPEN))
    assert world.network.policies[info.id] == NetworkPolicy(NetworkMode.OPEN)
    await service.sandboxes.resume("web")
    await service.sandboxes.park("web")
    await service.networks.update("web", CLOSING)
    await service.sandboxes.resume("web")
    assert world.network.policies[info.id] == denied


async def test_a_change_that_cannot_be_put_in_force_closes(
    world: World, service: HostService
) -> None:
    info = await run(service, name="web")
    world.network.failing["update"] = 1
    failure = await expect("network_failed", service.networks.update("web", CLOSING))
    assert "nothing gets through" in failure.message
    assert world.network.policies[info.id] is None
    assert (await service.sandboxes.get("web")).network.mode is NetworkMode.DENY
    await service.networks.update("web", NetworkChange())
    assert world.network.policies[info.id] == NetworkPolicy(NetworkMode.DENY)


async def test_a_change_that_cannot_be_changes_nothing(world: World, service: HostService) -> None:
    info = await run(service, name="web")
    for change in (NetworkChange(allow=["1.2.3.4/99"]), NetworkChange(remove=["x"])):
        await expect("bad_policy", service.networks.update("web", change))
    assert world.network.policies[info.id] == PUBLIC
    assert (await service.sandboxes.get("web")).network == PUBLIC


async def test_changes_at_once_are_all_made(world: World, service: HostService) -> None:
    info = await run(service, name="web")
    async with asyncio.TaskGroup() as group:
        for number in range(8):
            change = NetworkChange(allow=[f"n{number}.example.com"])
            group.create_task(service.networks.update("web", change))
    policy = (await service.sandboxes.get("web")).network
    assert sorted(policy.allow) == [f"n{number}.example.com" for number in range(8)]
    assert world.network.policies[info.id] == policy


async def test_a_change_while_it_starts_is_in_force(world: World, service: HostService) -> None:
    info = await service.sandboxes.create(spec(idle=True, name="web"), no_report)
    async with asyncio.TaskGroup() as group:
        group.create_task(service.sandboxes.start("web"))
        await until(lambda: world.network.attached)
        await service.networks.update("web", CLOSING)
    assert world.network.policies[info.id] == NetworkPolicy(NetworkMode.DENY)
    assert (await service.sandboxes.get("web")).network.mode is NetworkMode.DENY


async def test_a_change_that_is_cut_off(world: World, service: HostService) -> None:
    info = await run(service, name="web")
    modes = (NetworkMode.DENY, NetworkMode.OPEN)
    turn = 0

    async def change() -> None:
        nonlocal turn
        turn += 1
        await service.networks.update("web", NetworkChange(mode=modes[turn % 2]))

    async for moment in cuts(change):
        assert await settled(world, service) == [], moment
        on_record = (await service._parts.store.sandboxes())[0].info.network
        in_memory = (await service.sandboxes.get("web")).network
        assert on_record == in_memory == world.network.policies[info.id], moment


async def test_the_guest_is_told_whether_there_is_a_network(
    world: World, service: HostService
) -> None:
    info = await run(service, name="web")
    await service.networks.update("web", NetworkChange(mode=NetworkMode.NONE))
    assert world.agent(info).identity["network"] is False
    await service.networks.update("web", NetworkChange(mode=NetworkMode.PUBLIC))
    assert world.agent(info).identity["network"] is True
    await service.sandboxes.pause("web")
    await service.networks.update("web", NetworkChange(mode=NetworkMode.NONE))
    assert world.agent(info).identity["network"] is True
    await service.sandboxes.resume("web")
    await until(lambda: world.agent(info).identity["network"] is False)


async def test_a_warning_while_its_policy_is_not_in_force(
    world: World, service: HostService
) -> None:
    await run(service, name="web")
    closed = "its policy is not in force, nothing gets through"
    assert closed not in (await service.networks.show("web")).warnings
    world.network.failing["update"] = 1
    await expect("network_failed", service.networks.update("web", CLOSING))
    assert closed in (await service.networks.show("web")).warnings
    done = await service.networks.update("web", NetworkChange())
    assert closed not in done.network.warnings


async def test_a_removed_one_cannot_be_changed(service: HostService) -> None:
    await run(service, name="web")
    await service.sandboxes.remove("web", force=True)
    for ask in (service.networks.update("web", CLOSING), service.networks.show("web")):
        await expect("sandbox_not_found", ask)


async def test_a_network_that_does_not_open(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise OSError(28, "No space left on device")

    world.network.ability = Ability(taps=False, why="it has not been looked for yet")
    monkeypatch.setattr(world.network, "open", fail)
    async with world.service() as service:
        assert "No space left" in caplog.text
        assert (await run(service, name="web")).network.mode is NetworkMode.NONE
