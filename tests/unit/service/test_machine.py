"""Booting one machine: what it is given, and which boards are tried."""

import pytest

from hutch.images.base import no_report
from hutch.service import machine, recipe
from hutch.settings import MIB
from tests.unit.service.world import World, expect, spec


async def test_what_a_machine_is_given(world: World) -> None:
    async with world.service() as service:
        info = await service.sandboxes.create(
            spec(cpus=2, memory=128 * MIB, disk=64 * MIB, hostname="host"), no_report
        )
        info = await service.sandboxes.start(info.id)
    (asked,) = world.engine.booted
    assert (asked.cpus, asked.memory, asked.tsc_khz) == (2, 128 * MIB, 1_000_000)
    root, disk = asked.drives
    assert (root.serial, root.read_only, root.format) == (recipe.ROOT_SERIAL, True, "raw")
    assert (disk.serial, disk.read_only, disk.format) == (recipe.DISK_SERIAL, False, "qcow2")
    assert disk.backing == world.settings.home / f"base-{64 * MIB}"
    assert asked.directory == world.settings.runtime_dir / info.id
    assert len(str(asked.directory)) < 60
    identity = world.agent(info).identity
    assert identity["hostname"] == "host"
    assert len(identity["entropy"]) >= 32
    assert (info.accelerator, info.kernel) == ("tcg", "tiny")
    assert info.boot_seconds is not None


async def test_uids_are_apart(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "geteuid", lambda: 0)
    async with world.service() as service:
        for _ in range(2):
            info = await service.sandboxes.create(spec(), no_report)
            await service.sandboxes.start(info.id)
    base = world.settings.uid_base
    assert [asked.uid for asked in world.engine.booted] == [base, base + 1]


async def test_an_image_that_is_gone(world: World) -> None:
    async with world.service() as service:
        info = await service.sandboxes.create(spec(), no_report)
        world.images.path.unlink()
        failure = await expect("image_not_found", service.sandboxes.start(info.id))
        assert "hutch image pull busybox" in str(failure)


async def test_a_disk_that_is_gone_is_not_replaced_by_an_empty_one(world: World) -> None:
    async with world.service() as service:
        info = await service.sandboxes.create(spec(), no_report)
        await service.sandboxes.start(info.id)
        await service.sandboxes.stop(info.id)
        world.layers()[0].unlink()
        failure = await expect("engine_failed", service.sandboxes.start(info.id))
        assert "disk" in failure.message
