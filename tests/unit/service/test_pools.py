"""Pools, with a fake engine: filled, claimed by one at most, replaced, drained, never leaking."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.engine.base import ExitKind, MachineExit
from hutch.errors import error
from hutch.images.base import no_report
from hutch.models import ExecSpec, PoolInfo, SandboxInfo, SandboxState
from hutch.service import pool as module
from hutch.service import pools as pools_module
from hutch.service.host import HostService
from hutch.service.values import SandboxFilter
from hutch.settings import GIB, MIB
from tests.unit.service.world import IMAGE_ID, World, expect, output, spec
from tests.waiting import until

ALL = SandboxFilter(all=True)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the moments in which pools stand back, and retry soon."""
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.02)


@pytest.fixture
async def service(farm: World) -> AsyncIterator[HostService]:
    async with farm.service() as service:
        yield service


async def warm(service: HostService, size: int = 1, **fields: Any) -> PoolInfo:
    return await service.pools.warm(spec(idle=True, **fields), size, no_report, wait=True)


async def run(service: HostService, **fields: Any) -> SandboxInfo:
    info = await service.sandboxes.create(spec(**fields), no_report)
    return await service.sandboxes.start(info.id)


async def status(service: HostService) -> PoolInfo:
    (info,) = await service.pools.list()
    return info


def kinds(service: HostService, prefix: str = "pool.") -> list[str]:
    kept = service._parts.events.kept(None)
    return [event.kind for event in kept if event.kind.startswith(prefix)]


def machines(world: World) -> set[str]:
    """Return the ids of the VMs that run."""
    return {process.record.directory.name for process in world.engine.running()}


async def refilled(service: HostService, size: int) -> PoolInfo:
    async def full() -> PoolInfo | None:
        info = await status(service)
        return info if (info.ready, info.filling) == (size, 0) else None

    return await until(full, what=f"{size} members are ready")


def layers(world: World) -> list[Path]:
    return sorted((world.settings.home / "layers").glob("*"))


# ---- filling and claiming


async def test_members_are_warm_paused_and_nobodys(farm: World, service: HostService) -> None:
    info = await warm(service, 2)
    assert (info.image, info.image_id, info.size, info.ready) == ("busybox", IMAGE_ID, 2, 2)
    assert info.memory_bytes > 0
    assert info.error is None
    members = farm.engine.running()
    assert len(members) == 2
    assert all(process.paused for process in members)
    agents = [farm.agents[process.record.directory.name] for process in members]
    assert {agent.identity["hostname"][:5] for agent in agents} == {"pool-"}
    assert agents[0].identity["machine_id"] != agents[1].identity["machine_id"]
    assert [agent.sessions for agent in agents] == [{}, {}]
    assert len({process.record.uid for process in members}) in (1, 2)  # 1: not as root
    assert await service.sandboxes.list(ALL) == []
    assert kinds(service) == ["pool.filled"]


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
    assert farm.engine.booted[-1].id == info.id  # a later start boots from the disk that it has
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
        pool = await until(lambda: failed(service), what="there are no slots left")
        assert pool.error is not None
        assert pool.error.code == "no_capacity"
        slots = [entry.row.slot for entry in service._registry]
        assert len(set(slots)) == 2
        assert first.id != second.id


async def failed(service: HostService) -> PoolInfo | None:
    info = await status(service)
    return info if info.error else None


# ---- members that are of no use


async def test_a_member_that_dies_is_replaced(farm: World, service: HostService) -> None:
    await warm(service)
    (member,) = machines(farm)
    farm.end_machine(member, MachineExit(ExitKind.CRASHED, "killed"))
    await until(lambda: machines(farm) - {member}, what="there is another one")
    await refilled(service, 1)
    assert member not in machines(farm)
    assert not (farm.settings.home / "sandboxes" / member).exists()
    assert len(layers(farm)) == 1


async def test_a_member_whose_agent_hangs_up_is_replaced(farm: World, service: HostService) -> None:
    await warm(service)
    (member,) = machines(farm)
    farm.agents[member].disconnect()
    await until(lambda: member not in machines(farm), what="it is ended")
    await refilled(service, 1)


async def test_one_that_does_not_answer_is_thrown_away(
    farm: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hutch.service.pool_member.ANSWER_SECONDS", 0.1)
    await warm(service)
    (member,) = machines(farm)
    farm.agents[member].silent = True
    info = await run(service)
    assert info.id == member  # with another VM, a clone as ever
    assert info.state is SandboxState.RUNNING
    assert farm.agent(info).identity["generation"] == 1
    await service.sandboxes.remove(info.id, force=True)
    await service.pools.drain()
    assert farm.leftovers() == []
    assert layers(farm) == []


async def test_one_that_renews_no_randomness_is_not_served(
    farm: World, service: HostService
) -> None:
    await warm(service)
    (member,) = machines(farm)
    farm.agents[member].deny_entropy = True
    info = await run(service)
    assert info.id == member
    assert [clone.id for clone, _ in farm.engine.cloned].count(member) == 2


async def test_one_that_died_after_its_claim(farm: World, service: HostService) -> None:
    await warm(service)
    info = await service.sandboxes.create(spec(), no_report)
    farm.end_machine(info.id, MachineExit(ExitKind.CRASHED, "killed"))
    await until(lambda: info.id not in machines(farm))
    info = await service.sandboxes.start(info.id)
    assert info.state is SandboxState.RUNNING


async def test_those_of_an_old_template_are_not_handed_out(
    farm: World, service: HostService
) -> None:
    await warm(service)
    members = machines(farm)
    (template,) = await service.templates.list()
    await service.templates.remove(template.id)
    info = await run(service)
    assert info.id not in members
    await refilled(service, 1)
    assert not members & machines(farm)
    farm.engine.program = "fake 2"
    members = machines(farm) - {info.id}
    assert (await run(service)).id not in members
    await until(lambda: not members & machines(farm))
    assert len(farm.templates()) <= 2


# ---- failing to fill


async def test_a_pool_that_cannot_be_filled_says_why_and_tries_again(
    farm: World, service: HostService
) -> None:
    await service.templates.build(spec(idle=True), no_report)
    farm.engine.fail_clone = error("engine_failed", "told to")
    await expect("engine_failed", warm(service))
    info = await status(service)
    assert info.error is not None
    assert (info.error.code, info.ready) == ("engine_failed", 0)
    assert farm.leftovers() == []
    farm.engine.fail_clone = None
    info = await refilled(service, 1)
    assert info.error is None
    assert kinds(service)[0] == "pool.failed"
    assert kinds(service)[-1] == "pool.filled"


@pytest.mark.parametrize("knob", ["deaf_clones", "deny_entropy"])
async def test_a_clone_that_is_of_no_use_is_no_member(
    farm: World, service: HostService, knob: str
) -> None:
    await service.templates.build(spec(idle=True), no_report)
    setattr(farm, knob, True)
    await expect("boot_failed", warm(service))
    await service.pools.drain()
    assert farm.leftovers() == []
    assert layers(farm) == []


async def test_an_image_without_programs_has_a_pool(farm: World, service: HostService) -> None:
    await service.templates.build(spec(idle=True), no_report)
    missing = error("command_not_found", "there is none")

    async def none(self: Any, request: Any) -> Any:
        raise missing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hutch.guest.session.GuestSession.start_exec", none)
        assert (await warm(service)).ready == 1


async def test_filling_waits_while_a_sandbox_is_started(farm: World, service: HostService) -> None:
    await service.templates.build(spec(idle=True), no_report)
    with service.pools.starting():
        await service.pools.warm(spec(idle=True), 1, no_report, wait=False)
        # What is ready is looked at after all else that is due now has been done.
        for _ in range(50):
            await asyncio.sleep(0)
        assert farm.engine.cloned == []
    await refilled(service, 1)


async def test_but_not_for_ever(
    farm: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    with service.pools.starting():
        await warm(service)
    assert (await status(service)).ready == 1


# ---- what users ask for


async def test_another_size(farm: World, service: HostService) -> None:
    first = await warm(service, 1)
    second = await warm(service, 3)
    assert (first.id, second.ready) == (second.id, 3)
    await warm(service, 1)
    await refilled(service, 1)
    await until(lambda: len(machines(farm)) == 1)
    await warm(service, 2, memory=GIB)
    assert [info.size for info in await service.pools.list()] == [1, 2]


async def test_progress(service: HostService) -> None:
    told: list[str] = []

    def report(progress: Any) -> None:
        told.append(progress.message)

    await service.pools.warm(spec(idle=True), 2, report, wait=True)
    assert told[0] == "0 of 2 ready"
    assert told[-1] == "2 of 2 ready"


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


async def test_draining_while_it_fills(farm: World, service: HostService) -> None:
    await service.templates.build(spec(idle=True), no_report)
    farm.engine.hang_clone = True
    warming = asyncio.ensure_future(warm(service))
    await until(lambda: farm.engine.cloned, what="a member is being made")
    await service.pools.drain()
    await expect("pool_not_found", warming)
    assert farm.leftovers() == []


async def test_a_claim_that_is_not_used_is_given_up(
    farm: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools_module, "CLAIM_SECONDS", 0.0)
    await warm(service)
    info = await service.sandboxes.create(spec(), no_report)
    await until(lambda: info.id not in machines(farm))
    assert (await service.sandboxes.start(info.id)).state is SandboxState.RUNNING


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
