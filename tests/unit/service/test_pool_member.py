"""Members of pools: warm, paused, nobody's; handed over well, or thrown away."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from hutch.engine.base import ExitKind, MachineExit
from hutch.errors import error
from hutch.images.base import no_report
from hutch.models import SandboxState
from hutch.service.host import HostService
from hutch.service.values import SandboxFilter
from tests.unit.service.pooling import (
    kinds,
    layers,
    machines,
    ready,
    refilled,
    run,
    warm,
)
from tests.unit.service.world import IMAGE_ID, World, expect, spec
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("hasty")

ALL = SandboxFilter(all=True)


@pytest.fixture
async def service(farm: World) -> AsyncIterator[HostService]:
    async with farm.service() as service:
        yield service


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


async def test_an_image_without_programs_has_a_pool(farm: World, service: HostService) -> None:
    await service.templates.build(spec(idle=True), no_report)
    missing = error("command_not_found", "there is none")

    async def none(self: Any, request: Any) -> Any:
        raise missing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hutch.guest.session.GuestSession.start_exec", none)
        assert (await warm(service)).ready == 1


@pytest.mark.usefixtures("hurried")
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
    (template,) = {entry.template.id for entry in ready(service)}
    await service._lives.templates.drop(template, "the space for templates is used up")
    info = await run(service)
    assert info.id not in members
    await refilled(service, 1)
    assert not members & machines(farm)
    farm.engine.program = "fake 2"
    members = machines(farm) - {info.id}
    assert (await run(service)).id not in members
    await until(lambda: not members & machines(farm))


async def test_a_template_that_is_removed_takes_its_members_along(
    farm: World, service: HostService
) -> None:
    await warm(service)
    members = machines(farm)
    (template,) = {entry.template.id for entry in ready(service)}
    await service.templates.remove(template)
    assert not members & machines(farm)
    await refilled(service, 1)
    assert template not in {path.name for path in farm.templates()}
