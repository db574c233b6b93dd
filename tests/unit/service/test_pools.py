"""Pools and their claims, with a fake engine: by one at most, drained, never leaking."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from hutch.images.base import no_report
from hutch.models import ExecSpec, SandboxState
from hutch.service import pools as pools_module
from hutch.service.host import HostService
from hutch.service.pool_member import Member, Members
from hutch.settings import GIB, MIB
from tests.unit.service.cutting import settled
from tests.unit.service.pooling import (
    failed,
    layers,
    machines,
    refilled,
    run,
    status,
    warm,
)
from tests.unit.service.world import World, expect, output, spec
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("hasty")


@pytest.fixture
async def service(farm: World) -> AsyncIterator[HostService]:
    async with farm.service() as service:
        yield service


async def test_a_sandbox_takes_over_a_member(farm: World, service: HostService) -> None:
    await warm(service)
    (member,) = machines(farm)
    info = await service.sandboxes.create(spec(name="mine", hostname="mine"), no_report)
    assert (info.id, info.state) == (member, SandboxState.CREATED)
    assert info.template is not None
    info = await service.sandboxes.start("mine")
    assert info.state is SandboxState.RUNNING
    identity = farm.agent(info).identity
    assert (identity["hostname"], identity["generation"]) == ("mine", 1)
    session = await service.execs.start("mine", ExecSpec(["echo", "served"]))
    assert (await output(session))[0] == b"served\n"
    pool = await refilled(service, 1)
    assert pool.claimed == 1
    assert len(machines(farm)) == 2
    booted = [clone.id for clone, _ in farm.engine.cloned]
    assert booted[0] == member
    assert len(booted) == 2


async def test_what_a_claimed_sandbox_leaves_is_nothing(farm: World, service: HostService) -> None:
    await warm(service)
    info = await run(service)
    await service.sandboxes.stop(info.id)
    await service.sandboxes.start(info.id)
    assert (await service.sandboxes.get(info.id)).state is SandboxState.RUNNING
    await service.sandboxes.remove(info.id, force=True)
    await service.pools.drain()
    assert farm.leftovers() == []
    assert layers(farm) == []


async def test_two_at_once_get_two_members(farm: World, service: HostService) -> None:
    await warm(service, 2)
    members = machines(farm)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(service)) for _ in range(3)]
    ids = [task.result().id for task in tasks]
    assert len(set(ids)) == 3
    assert members < set(ids)
    identities = [farm.agents[sandbox_id].identity for sandbox_id in ids]
    assert len({each["machine_id"] for each in identities}) == 3
    assert len({bytes(each["entropy"]) for each in identities}) == 3


async def test_the_next_member_is_not_made_in_the_midst_of_a_claim(
    service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warm(service)
    (pool,) = service.pools._pools.values()
    making = []

    async def look(self: Members, member: Member) -> bool:
        for _ in range(50):  # what is ready is done meanwhile
            await asyncio.sleep(0)
        making.append(pool._making)
        return True

    monkeypatch.setattr(Members, "is_fresh", look)
    await run(service)
    assert making == [False]
    await refilled(service, 1)


@pytest.mark.parametrize(
    "fields",
    [{"cpus": 2}, {"memory": GIB}, {"disk": 100 * MIB}, {"template": False}],
    ids=lambda fields: next(iter(fields)),
)
async def test_what_does_not_fit_is_made_as_ever(
    farm: World, service: HostService, fields: dict[str, Any]
) -> None:
    await warm(service)
    members = machines(farm)
    info = await run(service, **fields)
    assert info.id not in members
    assert (await status(service)).ready == 1


async def test_no_template_at_the_start_gives_the_member_up(
    farm: World, service: HostService
) -> None:
    await warm(service)
    info = await service.sandboxes.create(spec(), no_report)
    info = await service.sandboxes.start(info.id, template=False)
    assert info.template is None
    assert farm.engine.booted[-1].id == info.id


async def test_slots_are_shared_with_sandboxes(farm: World) -> None:
    farm.settings = replace(farm.settings, uid_count=3)
    async with farm.service() as service:
        await warm(service, 2)
        first, second = [await run(service) for _ in range(2)]
        pool = await failed(service)
        assert pool.error is not None
        assert pool.error.code == "no_capacity"
        slots = [entry.row.slot for entry in service._registry]
        assert len(set(slots)) == 2
        assert first.id != second.id


# ---- what users ask for


async def test_what_cannot_be_a_pool(service: HostService) -> None:
    await expect("bad_size", warm(service, 0))
    await expect("bad_size", warm(service, 257))
    await expect("bad_size", warm(service, memory=300 * MIB))
    await expect("pool_not_found", service.pools.drain("busybox"))
    assert (await service.pools.drain()).removed == []
    assert await service.pools.list() == []


async def test_draining(farm: World, service: HostService) -> None:
    info = await warm(service, 2)
    claimed = await service.sandboxes.create(spec(), no_report)
    assert (await service.pools.drain("busybox")).removed == [info.id]
    assert await service.pools.list() == []
    assert machines(farm) == {claimed.id}
    await service.sandboxes.start(claimed.id)
    await service.sandboxes.remove(claimed.id, force=True)
    assert farm.leftovers() == []
    assert layers(farm) == []


async def test_a_claim_that_is_not_used_is_given_up(
    farm: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools_module, "CLAIM_SECONDS", 0.0)
    await warm(service)
    info = await service.sandboxes.create(spec(), no_report)
    await until(lambda: info.id not in machines(farm))
    assert await settled(farm, service) == []  # nobody counts its VM any more
    assert (await service.sandboxes.start(info.id)).state is SandboxState.RUNNING


async def test_a_start_waits_for_a_claim_that_is_being_given_up(
    farm: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warm(service)
    abandon, begun, go = Members.abandon, asyncio.Event(), asyncio.Event()

    async def slow(self: Members, member: Member) -> None:
        begun.set()
        await go.wait()
        await abandon(self, member)

    monkeypatch.setattr(Members, "abandon", slow)
    info = await service.sandboxes.create(spec(), no_report)
    (entry,) = service._registry
    giving_up = asyncio.ensure_future(service.pools.give_up(info.id))
    await begun.wait()
    starting = asyncio.ensure_future(service.sandboxes.start(info.id))
    await until(lambda: entry.info.state is SandboxState.STARTING, what="it starts")
    for _ in range(50):  # what is ready is done
        await asyncio.sleep(0)
    go.set()
    assert (await starting).state is SandboxState.RUNNING
    await giving_up
    (row,) = await service._parts.store.sandboxes()
    assert row.machine is not None
    assert info.id in machines(farm)


async def test_removing_a_claimed_sandbox_ends_its_member(
    farm: World, service: HostService
) -> None:
    await warm(service)
    info = await service.sandboxes.create(spec(), no_report)
    await service.sandboxes.remove(info.id)
    await service.pools.drain()
    assert farm.leftovers() == []
    assert layers(farm) == []


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.003, 0.01])
async def test_a_claim_or_start_that_is_cancelled_at_any_moment(
    farm: World, service: HostService, delay: float
) -> None:
    await warm(service, 2)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(delay):
            await run(service, name="cut")
    pool = await refilled(service, 2)
    assert pool.error is None
    for entry in service._registry:
        await service.sandboxes.remove(entry.info.id, force=True)
    await service.pools.drain()
    assert farm.leftovers() == []
    assert layers(farm) == []


# ---- the daemon's life


async def test_a_pool_outlives_the_daemon_and_its_members_do_not(farm: World) -> None:
    async with farm.service() as service:
        info = await warm(service, 2)
        kept = await run(service)
        unstarted = await service.sandboxes.create(spec(), no_report)
    assert machines(farm) == {kept.id}
    async with farm.service() as service:
        again = await refilled(service, 2)
        assert (again.id, again.claimed) == (info.id, 0)
        assert (await service.sandboxes.get(kept.id)).state is SandboxState.RUNNING
        assert (await service.sandboxes.start(unstarted.id)).state is SandboxState.RUNNING
        await service.sandboxes.stop(kept.id)
        await service.sandboxes.stop(unstarted.id)


@pytest.mark.parametrize("phase", ["filling", "waiting", "claimed"])
async def test_what_a_killed_daemon_leaves_is_swept(farm: World, phase: str) -> None:
    async with farm.service() as service:
        await service.templates.build(spec(idle=True), no_report)
        farm.engine.hang_clone = phase == "filling"
        await service.pools.warm(spec(idle=True), 1, no_report, wait=phase != "filling")
        if phase == "filling":
            await until(lambda: farm.engine.cloned, what="a member is being made")
        claimed = None
        if phase == "claimed":
            claimed = await service.sandboxes.create(spec(), no_report)
            await refilled(service, 1)
        left = machines(farm)
        # The records and the machines are as they are now: nothing that the end of this service
        # does reaches them.
        home = farm.settings.home / "hutch.db"
        service._parts.store._connection.execute("PRAGMA wal_checkpoint")  # type: ignore[attr-defined]
        kept = home.read_bytes()
        with pytest.MonkeyPatch.context() as patch:
            for name in ("abandon", "discard", "_clear"):
                patch.setattr(f"hutch.service.pool_member.Members.{name}", _nothing)
            patch.setattr(service._parts.store, "remove_sandbox", _nothing)
            await service.__aexit__()
    for path in farm.settings.home.glob("hutch.db*"):
        path.unlink()
    home.write_bytes(kept)
    farm.engine.hang_clone = False
    assert machines(farm) >= left
    async with farm.service() as service:
        await refilled(service, 1)
        assert not left & machines(farm)
        rows = [entry.info.id for entry in service._registry]
        assert rows == ([claimed.id] if claimed else [])
        for sandbox_id in rows:
            started = await service.sandboxes.start(sandbox_id)
            assert started.state is SandboxState.RUNNING
            await service.sandboxes.remove(sandbox_id, force=True)
        await service.pools.drain()
        assert farm.leftovers() == []
        assert layers(farm) == []


async def _nothing(*args: object) -> None:
    """Stand in for what a killed daemon does not do any more."""
