"""What the API asks about sandboxes: lists, waiting, signals, files."""

from collections.abc import AsyncIterator

import pytest

from hutch.images.base import no_report
from hutch.models import SandboxState
from hutch.service.host import HostService
from hutch.service.values import SandboxFilter
from tests.unit.service.world import IMAGE_ID, World, expect, spec


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


@pytest.mark.parametrize(
    ("which", "names"),
    [
        (SandboxFilter(), ["new", "up"]),
        (SandboxFilter(all=True), ["new", "up", "down"]),
        (SandboxFilter(states=[SandboxState.STOPPED]), ["down"]),
        (SandboxFilter(all=True, labels=["team"]), ["up", "down"]),
        (SandboxFilter(all=True, labels=["team=a"]), ["up"]),
        (SandboxFilter(all=True, labels=["team=a", "none"]), []),
        (SandboxFilter(all=True, name="w"), ["new", "down"]),
        (SandboxFilter(image="busybox"), ["new", "up"]),
        (SandboxFilter(image=IMAGE_ID), ["new", "up"]),
        (SandboxFilter(image="other"), []),
    ],
)
async def test_lists(service: HostService, which: SandboxFilter, names: list[str]) -> None:
    sandboxes = service.sandboxes
    await sandboxes.create(spec(name="new"), no_report)
    await sandboxes.create(spec(name="up", labels={"team": "a"}), no_report)
    await sandboxes.create(spec("true", name="down", labels={"team": "b"}), no_report)
    await sandboxes.start("up")
    await sandboxes.start("down")
    await sandboxes.wait("down", timeout=60)
    assert [info.name for info in await sandboxes.list(which)] == names


async def test_waiting_has_a_limit(service: HostService) -> None:
    info = await service.sandboxes.create(spec(), no_report)
    await service.sandboxes.start(info.id)
    await expect("guest_timeout", service.sandboxes.wait(info.id, timeout=0.05))


async def test_signals_to_the_main_process(service: HostService) -> None:
    info = await service.sandboxes.create(spec(), no_report)
    await expect("wrong_state", service.sandboxes.kill(info.id))
    await service.sandboxes.start(info.id)
    await service.sandboxes.kill(info.id, signal="USR1")
    last = await service.sandboxes.wait(info.id, timeout=60)
    assert last.exit is not None
    assert last.exit.code == 138


async def test_an_idle_sandbox_has_no_main_process(service: HostService) -> None:
    info = await service.sandboxes.create(spec(idle=True), no_report)
    await expect("bad_command", service.sandboxes.start_attached(info.id))
    await service.sandboxes.start(info.id)
    await expect("wrong_state", service.sandboxes.kill(info.id, signal="USR1"))
    await expect("exec_not_found", service.execs.attach(info.id, "main"))


async def test_a_start_that_is_not_needed(service: HostService) -> None:
    info = await service.sandboxes.create(spec(), no_report)
    first = await service.sandboxes.start(info.id)
    assert (await service.sandboxes.start(info.id)).pid == first.pid
    await expect("wrong_state", service.sandboxes.start_attached(info.id))
    await service.sandboxes.stop(info.id)
    assert (await service.sandboxes.stop(info.id)).state is SandboxState.STOPPED


async def test_files_and_tunnels(world: World, service: HostService) -> None:
    info = await service.sandboxes.create(spec(), no_report)
    await expect("wrong_state", service.files.of(info.id))
    await service.sandboxes.start(info.id)
    files = await service.files.of(info.id)
    assert (await files.stat("/etc/hostname")).name == "hostname"
    world.agent(info).services[80] = b"hello"
    tunnel = await service.files.tunnel(info.id, 80)
    assert await tunnel.read() == b"hello"
    await tunnel.close()
    await expect("bad_request", service.files.tunnel(info.id, 0))


async def test_stop_checks_what_it_is_given(service: HostService) -> None:
    info = await service.sandboxes.create(spec(), no_report)
    await expect("bad_request", service.sandboxes.stop(info.id, timeout=-1))
    await expect("bad_request", service.sandboxes.stop(info.id, signal="NOPE"))
    await expect("sandbox_not_found", service.sandboxes.stop("nobody"))
