"""One running sandbox: how it ends, and what its guest may report."""

import dataclasses

import pytest

from hutch.engine.base import ExitKind, MachineExit
from hutch.images.base import no_report
from hutch.models import SandboxInfo, StopReason
from hutch.service import sandbox as sandbox_module
from hutch.service.host import HostService
from tests.unit.service.world import World, spec
from tests.waiting import until


async def running(service: HostService, **fields: object) -> SandboxInfo:
    info = await service.sandboxes.create(spec(**fields), no_report)
    return await service.sandboxes.start(info.id)


async def test_the_power_button_when_the_agent_does_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_module, "POWER_OFF_SLACK", 0.1)
    world.obeys_shutdown = False
    async with world.service() as service:
        info = await running(service)
        info = await service.sandboxes.stop(info.id, timeout=0.1)
    assert info.exit is not None
    assert (info.exit.reason, info.exit.code) == (StopReason.STOPPED, 143)


async def test_the_hard_way_when_nothing_helps(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_module, "POWER_OFF_SLACK", 0.1)
    monkeypatch.setattr(sandbox_module, "BUTTON_SECONDS", 0.1)
    world.obeys_shutdown, world.engine.deaf = False, True
    async with world.service() as service:
        info = await running(service)
        info = await service.sandboxes.stop(info.id, timeout=0.1)
    assert info.exit is not None
    assert (info.exit.reason, info.exit.code) == (StopReason.KILLED, 137)


async def test_an_idle_sandbox_has_no_code(world: World) -> None:
    async with world.service() as service:
        info = await running(service, idle=True)
        info = await service.sandboxes.stop(info.id)
    assert info.exit is not None
    assert (info.exit.reason, info.exit.code) == (StopReason.STOPPED, None)


async def test_the_signal_that_is_asked_for(world: World) -> None:
    async with world.service() as service:
        info = await running(service)
        info = await service.sandboxes.stop(info.id, signal="INT")
    assert info.exit is not None
    assert info.exit.code == 130


async def test_it_can_be_stopped_whatever_signal_is_on_record(world: World) -> None:
    async with world.service() as service:
        entry = service._registry.find((await running(service)).id)
        info = dataclasses.replace(entry.info, stop_signal="SIGNONE")
        entry.row = dataclasses.replace(entry.row, info=info)
        stopped = await service.sandboxes.stop(info.id)
    assert stopped.exit is not None
    assert (stopped.exit.reason, stopped.exit.code) == (StopReason.STOPPED, 143)


async def test_the_engines_last_words(world: World) -> None:
    async with world.service() as service:
        info = await running(service)
        world.end_machine(info.id, MachineExit(ExitKind.CRASHED, "killed by SIGSEGV"))
        info = await service.sandboxes.wait(info.id, timeout=60)
    assert info.exit is not None
    assert info.exit.message == "killed by SIGSEGV"


async def test_reports_of_oom_are_few(world: World) -> None:
    async with world.service() as service:
        info = await running(service)
        for _ in range(100):
            world.agent(info).emit("oom", exec_id="main", process="x" * 10_000, count=1)

        async def reports() -> list[str]:
            return [
                event.fields["process"]
                async for event in service.system.events()
                if event.kind == "sandbox.oom"
            ]

        await until(reports)
        await service.sandboxes.stop(info.id)
        assert await reports() == ["x" * 256]


async def test_an_init_is_told_from_other_programs(world: World) -> None:
    async with world.service() as service:
        info = await running(service)
        assert world.agent(info).sessions["main"].request["init"] is False


async def test_the_clock_is_kept_in_step(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "CLOCK_SECONDS", 0.01)
    async with world.service() as service:
        agent = world.agent(await running(service))
        agent.clock_error_ns = -3_000_000_000
        await until(lambda: agent.clock_error_ns == 0)


async def test_the_images_working_directory_is_made(world: World) -> None:
    async with world.service() as service:
        info = await running(service, workdir="/not/there")
        files = await service.files.of(info.id)
        assert (await files.stat("/not/there")).type == "dir"
