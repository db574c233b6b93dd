"""Claims whose start follows at once: the member becomes the sandbox while it is put on record."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hutch.errors import error
from hutch.guest.base import Identity
from hutch.guest.session import GuestSession
from hutch.images.base import no_report
from hutch.models import PullPolicy, SandboxInfo, SandboxState
from hutch.service.host import HostService
from hutch.service.pool_member import Member, Members
from hutch.service.values import SandboxFilter
from tests.unit.service.dying import dying
from tests.unit.service.pooling import layers, machines, ready, refilled, run, warm
from tests.unit.service.world import World, expect, spec

pytestmark = pytest.mark.usefixtures("hasty")

ALL = SandboxFilter(all=True)


@pytest.fixture
async def service(farm: World) -> AsyncIterator[HostService]:
    async with farm.service() as service:
        yield service


async def claim(service: HostService, **fields: Any) -> SandboxInfo:
    """Make and start a sandbox as `run` does."""
    return await run(service, provisional=True, **fields)


async def nothing_is_left(farm: World, service: HostService) -> None:
    for info in await service.sandboxes.list(ALL):
        await service.sandboxes.remove(info.id, force=True)
    await service.pools.drain()
    assert farm.leftovers() == []
    assert layers(farm) == []


async def test_it_has_its_identity_before_it_is_on_record(
    farm: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warm(service)
    (member,) = ready(service)
    steps: list[str] = []
    identify, claim_member = GuestSession.identify, service._parts.store.claim_member
    identified = asyncio.Event()

    async def note_identity(self: GuestSession, identity: Identity) -> bool:
        steps.append(f"{identity.hostname} {identity.generation}")
        done = await identify(self, identity)
        identified.set()
        return done

    async def note_claim(*args: Any) -> Any:
        await identified.wait()
        steps.append("claimed")
        return await claim_member(*args)

    monkeypatch.setattr(GuestSession, "identify", note_identity)
    monkeypatch.setattr(service._parts.store, "claim_member", note_claim)
    info = await claim(service, name="mine")
    assert (info.id, info.state) == (member.id, SandboxState.RUNNING)
    assert steps[:2] == ["mine 1", "claimed"]
    assert not any(each.startswith("mine") for each in steps[2:])
    assert info.boot_seconds is not None
    await refilled(service, 1)
    await nothing_is_left(farm, service)


async def test_one_that_is_not_run_stands_still_until_its_start(
    farm: World, service: HostService
) -> None:
    await warm(service)
    info = await service.sandboxes.create(spec(), no_report)
    (process,) = [it for it in farm.engine.running() if it.record.directory.name == info.id]
    assert process.paused
    assert farm.agent(info).identity["hostname"].startswith("pool-")
    await nothing_is_left(farm, service)


@pytest.mark.parametrize("knob", ["silent", "deny_entropy"])
async def test_a_member_that_is_of_no_use_is_thrown_away(
    farm: World, service: HostService, monkeypatch: pytest.MonkeyPatch, knob: str
) -> None:
    monkeypatch.setattr("hutch.service.pool_member.ANSWER_SECONDS", 0.1)
    await warm(service)
    (member,) = machines(farm)
    setattr(farm.agents[member], knob, True)
    info = await claim(service)
    assert (info.id, info.state) == (member, SandboxState.RUNNING)
    assert farm.agent(info).identity["generation"] == 1
    assert [clone.id for clone, _ in farm.engine.cloned].count(member) == 2
    await nothing_is_left(farm, service)


async def test_a_claim_that_cannot_be_recorded_leaves_nothing(
    farm: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warm(service)
    (member,) = machines(farm)

    async def fail(*args: Any) -> Any:
        raise error("disk_full", "told to")

    with monkeypatch.context() as patch:
        patch.setattr(service._parts.store, "claim_member", fail)
        await expect("disk_full", claim(service))
    assert member not in machines(farm)
    assert await service.sandboxes.list(ALL) == []
    await refilled(service, 1)
    await nothing_is_left(farm, service)


async def test_a_request_that_fails_leaves_nothing_of_what_it_was_offered(
    farm: World, service: HostService
) -> None:
    await warm(service)
    (member,) = machines(farm)
    farm.kernels.fail = error("kernel_missing", "told to")
    await expect("kernel_missing", claim(service))
    farm.kernels.fail = None
    assert member not in machines(farm)
    await refilled(service, 1)
    await nothing_is_left(farm, service)


async def test_what_is_offered_and_does_not_suit_is_gone(
    farm: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warm(service)
    (member,) = machines(farm)
    with monkeypatch.context() as patch:
        patch.setattr(Member, "suits", lambda *args: False)
        info = await claim(service)
    assert (info.id != member, info.state) == (True, SandboxState.RUNNING)
    assert member not in machines(farm)
    await nothing_is_left(farm, service)


async def test_another_identity_than_was_expected_is_given_again(
    farm: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warm(service)
    (member,) = machines(farm)
    with monkeypatch.context() as patch:
        patch.setattr("hutch.service.pools.default_hostname", lambda name: "another")
        info = await claim(service, name="mine")
    assert info.id == member
    assert farm.agent(info).identity["hostname"] == "mine"
    assert [clone.id for clone, _ in farm.engine.cloned].count(member) == 1
    await nothing_is_left(farm, service)


@pytest.mark.parametrize("fields", [{"template": False}, {"pull": PullPolicy.ALWAYS}, {"cpus": 2}])
async def test_nothing_is_offered_to_what_will_hardly_take_it(
    farm: World, service: HostService, fields: dict[str, Any]
) -> None:
    await warm(service)
    (member,) = machines(farm)
    request = spec(provisional=True, **fields)
    async with service.pools.offer(request, "mine") as offer:
        assert offer.member is None
    assert member in machines(farm)
    await nothing_is_left(farm, service)


async def test_a_stale_member_is_not_handed_out(
    farm: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warm(service)
    (member,) = machines(farm)

    async def stale(*args: Any) -> bool:
        return False

    with monkeypatch.context() as patch:
        patch.setattr(Members, "is_fresh", stale)
        info = await claim(service)
    assert info.id != member
    assert member not in machines(farm)
    await nothing_is_left(farm, service)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55])
async def test_one_that_is_cancelled_at_any_moment(
    farm: World, service: HostService, steps: int
) -> None:
    await warm(service, 2)
    claiming = asyncio.ensure_future(claim(service, name="cut"))
    for _ in range(steps):
        await asyncio.sleep(0)
    claiming.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await claiming
    pool = await refilled(service, 2)
    assert pool.error is None
    await nothing_is_left(farm, service)


@pytest.mark.parametrize("at", range(5))
async def test_a_daemon_that_dies_at_any_step(farm: World, at: int) -> None:
    """After each write to the records nothing more happens: the next daemon finds the rest."""
    service = farm.service()
    await service.__aenter__()
    await warm(service)
    async with dying(service, at, lambda: claim(service, name="mine")) as finished:
        async with farm.service() as after:
            await refilled(after, 1)
            found = await after.sandboxes.list(ALL)
            assert [info.state for info in found] == [SandboxState.RUNNING] * len(found)
            assert len(found) == 1 or not finished
            for info in found:
                assert farm.agent(info).identity["hostname"] == "mine"
            assert len(machines(farm)) == 1 + len(found)
            await nothing_is_left(farm, after)
    await service.pools.close()
