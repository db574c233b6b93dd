"""The checks of a host: each failure names its fix."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hutch import process
from hutch.content import KernelInfo
from hutch.errors import error
from hutch.network.base import Ability
from hutch.reports import Check
from hutch.service import doctor
from hutch.service.hostmemory import HostMemory
from hutch.settings import GIB, Settings
from tests.unit.service.world import World


@pytest.fixture
async def check(world: World) -> Any:
    async def check(settings: Settings = world.settings) -> Mapping[str, Check]:
        found = await doctor.check_host(
            settings, world.engine, world.kernels, world.network.ability
        )
        return {check.name: check for check in found}

    return check


async def test_every_failure_has_a_fix(
    check: Any, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Path:
        raise error("agent_missing", "no agent", hint="make setup")

    monkeypatch.setattr(process, "which", lambda program: None)
    monkeypatch.setattr(doctor, "agent_binary", missing)
    monkeypatch.setattr(doctor, "_BUSYBOX", ())
    found = await check()
    for name in ("qemu", "disks", "root images", "guest agent"):
        assert found[name].status == "fail", name
    for name in ("image busybox", "image builds", "image debian", "kernel"):
        assert found[name].status == "warn", name
    assert all(check.fix for check in found.values() if check.status == "fail")
    assert len(found) == len(await check())


async def test_an_old_qemu(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(argv: list[str], **_: Any) -> process.Finished:
        return process.Finished(argv, 0, b"QEMU emulator version 6.2.0\nCopyright", b"")

    monkeypatch.setattr(process, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(process, "run", run)
    assert (await check())["qemu"].status == "fail"


async def test_the_kernel_in_use(check: Any, world: World) -> None:
    async def kernels() -> list[KernelInfo]:
        return [KernelInfo("tiny", "6.1", "host", 1, [], active=True)]

    world.kernels.list = kernels
    found = await check()
    assert found["kernel"] == Check("kernel", "ok", "tiny (host)")
    assert found["accelerator"].status == "warn"
    assert "tcg: a fake runs on anything" in found["accelerator"].message


async def test_an_accelerator_that_cannot_be_had(
    check: Any, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def probe(*args: object, **kwargs: object) -> None:
        raise error("engine_failed", "kvm does not work", hint="use tcg")

    monkeypatch.setattr(world.engine, "probe", probe)
    found = (await check())["accelerator"]
    assert (found.status, found.fix) == ("fail", "use tcg")


async def test_places(check: Any, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    long = dataclasses.replace(world.settings, runtime_dir=Path("/tmp") / ("x" * 80))
    assert (await check(long))["runtime directory"].status == "fail"
    world.settings.runtime_dir.rmdir()
    world.settings.runtime_dir.write_text("")
    assert (await check())["runtime directory"].status == "fail"
    monkeypatch.setattr(doctor, "file_system_room", lambda path: 1)
    assert (await check())["disk space"].status == "fail"


def test_without_a_daemon(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "QemuEngine", lambda settings: world.engine)
    monkeypatch.setattr(doctor, "HostNetwork", lambda options: world.network)
    names = [check.name for check in doctor.run_checks(world.settings)]
    assert names[:2] == ["python", "qemu"]
    assert "network" in names
    assert world.network.stopped
    assert not (world.settings.home / "hutch.db").exists()


async def test_memory(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here = HostMemory(8 * GIB, 4 * GIB)
    monkeypatch.setattr(doctor, "host_memory", lambda: here)
    found = (await check())["memory"]
    assert found.status == "ok"
    assert "4.0 GiB of 8.0 GiB are available" in found.message
    here = HostMemory(GIB, 100 << 20, "/sys/fs/cgroup/small")
    found = (await check())["memory"]
    assert found.status == "fail"
    assert "/sys/fs/cgroup/small" in found.message
    assert found.fix


async def test_networks(check: Any, world: World) -> None:
    assert (await check())["network"].status == "ok"
    world.network.ability = Ability(taps=True)
    assert "before their peers have" in (await check())["network"].message
    world.network.ability = Ability(taps=False, why="no tap", hint="load it")
    found = (await check())["network"]
    assert (found.status, found.fix) == ("warn", "load it")
    assert "no tap" in found.message


@pytest.mark.parametrize(
    ("route", "warned"), [("000012C6", True), ("000013C6", True), ("000014C6", False)]
)
async def test_a_host_with_our_addresses(
    check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, route: str, warned: bool
) -> None:
    table = tmp_path / "route"
    head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n"
    lines = "eth0\t00000000\t01000A0A\t0003\t0\t0\t0\t00000000\n"
    lines += f"tun0\t{route}\t00000000\t0001\t0\t0\t0\t0000FEFF\n"
    table.write_text(head + lines)
    monkeypatch.setattr(doctor, "_ROUTES", table)
    assert ("network addresses" in await check()) is warned
    monkeypatch.setattr(doctor, "_ROUTES", tmp_path / "none")
    assert "network addresses" not in await check()
