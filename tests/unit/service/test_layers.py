"""The layers of disks: what is kept and removed, what a disk takes, how many are joined."""

import shutil
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.errors import error
from hutch.images.base import no_report
from hutch.models import SandboxInfo, SnapshotInfo
from hutch.process import which
from hutch.service import layers as layers_module
from hutch.service.flatten import DEEPEST, LAYERS_MAX
from hutch.service.host import DATABASE, HostService
from hutch.service.layers import CROWDED
from hutch.settings import Settings
from tests.unit.service.world import World, expect, spec
from tests.waiting import until


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


async def run(service: HostService, **fields: Any) -> SandboxInfo:
    info = await service.sandboxes.create(spec(idle=True, **fields), no_report)
    return await service.sandboxes.start(info.id)


def layers_of(service: HostService, ref: str) -> list[str]:
    top = service._registry.find(ref).row.layer
    assert top is not None
    return [row.id for row in service._lives.booter.layers.chain(top)]


async def grow(service: HostService, ref: str, count: int) -> None:
    for _ in range(count):
        snapshot = await service.snapshots.create(ref, disk_only=True)
        await service.snapshots.remove(snapshot.id)


async def test_one_goes_with_its_last_user(world: World, service: HostService) -> None:
    await run(service, name="web")
    await service.forks.fork("web", ["child"])
    (_, bottom), (_, same) = layers_of(service, "web"), layers_of(service, "child")
    assert bottom == same
    await service.sandboxes.remove("web", force=True)
    assert {path.stem for path in world.layers()} == set(layers_of(service, "child"))
    await service.sandboxes.remove("child", force=True)
    assert world.layers() == []
    assert list(await service._parts.store.layers()) == []


async def test_what_a_disk_takes(world: World, service: HostService) -> None:
    await run(service, name="web")
    layers, entry = service._lives.booter.layers, service._registry.find("web")
    own, shared = await layers.sizes(entry.row.layer)
    assert own > 0
    assert shared == 0
    await service.forks.fork("web", ["child"])
    own, shared = await layers.sizes(entry.row.layer)
    assert own > 0
    assert shared > 0
    await service.sandboxes.remove("child", force=True)
    assert (await layers.sizes(entry.row.layer)).shared == 0
    assert await layers.sizes(None) == (0, 0)


async def test_a_template_stays_while_a_snapshot_is_based_on_it(farm: World) -> None:
    async with farm.service() as service:
        info = await run(service, name="web")
        assert info.template is not None
        await service.snapshots.create("web", name="then")
        await service.sandboxes.remove("web", force=True)
        await service.templates.remove(info.template)
    disk = farm.settings.home / "templates" / info.template / "disk.qcow2"
    assert disk.exists()
    async with farm.service() as service:
        assert disk.exists()
        assert (await service.snapshots.restore("then", "new")).template == info.template
        await service.sandboxes.remove("new", force=True)
        await service.snapshots.remove("then")
    assert not disk.exists()


async def test_what_belongs_to_nothing_is_swept_at_the_start(world: World) -> None:
    async with world.service() as service:
        await run(service, name="web")
        layers = service._lives.booter.layers
        await service._parts.store.put_layer(
            service._registry.find("web").info.id, layers.plan(), template=None
        )
        before = layers_of(service, "web")
    stray = world.settings.home / "layers" / "ly_stray.qcow2"
    stray.touch()
    async with world.service() as service:
        assert not stray.exists()
        rows = [row.id for row in await service._parts.store.layers()]
        assert len(rows) == 1
        assert before[0] not in rows


async def test_the_disk_of_an_older_home_moves_to_its_place(world: World) -> None:
    async with world.service() as service:
        info = await run(service, name="web")
        await service.sandboxes.stop("web")
    (disk,) = world.layers()
    old = world.settings.home / "sandboxes" / info.id / "disk.qcow2"
    disk.rename(old)
    content = old.read_bytes()
    with sqlite3.connect(world.settings.home / DATABASE) as db:
        assert db.execute("SELECT layer FROM sandboxes").fetchone()[0] == disk.stem
    async with world.service() as service:
        assert disk.read_bytes() == content
        assert not old.exists()
        await service.sandboxes.start("web")


async def test_a_disk_that_is_full_takes_back_the_next_layer(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(service, name="web")
    before = layers_of(service, "web")

    def fail(path: Path, *args: object) -> None:
        path.touch()
        raise error("disk_full", "told to")

    with monkeypatch.context() as patch:
        patch.setattr(world.engine, "create_disk", fail)
        await expect("disk_full", service.snapshots.create("web"))
        await expect("disk_full", service.forks.fork("web"))
    assert layers_of(service, "web") == before
    assert len(world.layers()) == 1
    await service.snapshots.create("web")


async def test_a_running_disk_has_a_limited_number(
    service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*args: object) -> None:
        raise error("disk_full", "told to")

    monkeypatch.setattr(layers_module, "flatten", fail)
    await run(service, name="web")
    await grow(service, "web", LAYERS_MAX - 1)
    failure = await expect("no_capacity", service.snapshots.create("web"))
    assert "hutch restart web" in str(failure)


@pytest.mark.skipif(which("qemu-img") is None, reason="qemu-img is not installed")
async def test_many_are_joined_at_the_next_start(world: World, service: HostService) -> None:
    await run(service, name="web")
    await grow(service, "web", DEEPEST)
    await service.snapshots.create("web", name="kept")
    assert len(layers_of(service, "web")) == DEEPEST + 2
    await service.sandboxes.stop("web")
    await service.sandboxes.start("web")
    assert len(layers_of(service, "web")) == 1
    assert world.engine.booted[-1].drives[1].layers == ()
    assert len(world.layers()) == 1 + DEEPEST + 1  # what the snapshot has stays
    assert (await service.snapshots.restore("kept", "new")).origin is not None
    await service.sandboxes.remove("new", force=True)
    await service.snapshots.remove("kept")
    assert len(world.layers()) == 1


async def test_those_that_cannot_be_joined_stay(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(service, name="web")
    await grow(service, "web", DEEPEST)
    before = layers_of(service, "web")
    await service.sandboxes.stop("web")

    async def fail(*args: object) -> None:
        raise error("disk_full", "told to")

    monkeypatch.setattr(layers_module, "flatten", fail)
    await service.sandboxes.start("web")
    assert layers_of(service, "web") == before
    shutil.rmtree(world.settings.home / "layers")
    await service.sandboxes.stop("web")
    await expect("engine_failed", service.sandboxes.start("web"))


async def checkpoint(service: HostService) -> SnapshotInfo:
    """Take a checkpoint, and wait until what is joined for that is joined."""
    taken = await service.checkpoints.create("web")
    await until(lambda: not service._thinning.at_work)
    return taken


@pytest.mark.skipif(which("qemu-img") is None, reason="qemu-img is not installed")
async def test_those_that_checkpoints_leave_are_joined_while_it_runs(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(service, name="web")
    await grow(service, "web", CROWDED - 4)
    before = layers_of(service, "web")
    monkeypatch.setattr(layers_module, "RETIRED_SECONDS", 0.0)
    taken = [await checkpoint(service) for _ in range(6)]
    after = layers_of(service, "web")
    assert len(after) < CROWDED
    assert not set(before[1:]) & set(after)
    assert after[-1] not in before
    # What was joined went with the next release; each checkpoint is as good as before.
    await service.snapshots.restore(taken[0].id, "new")
    await service.sandboxes.remove("new", force=True)
    assert len(world.layers()) == len(after)
    assert (await service.checkpoints.undo("web", 6)).undone_to == taken[0].id
    async with world.service() as later:
        assert layers_of(later, "web") == layers_of(service, "web")


@pytest.mark.skipif(which("qemu-img") is None, reason="qemu-img is not installed")
async def test_those_that_are_not_joined(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(service, name="web")
    await grow(service, "web", CROWDED - 1)
    before = layers_of(service, "web")

    async def fail(*args: object) -> None:
        raise error("disk_full", "told to")

    with monkeypatch.context() as patch:
        patch.setattr(layers_module, "flatten", fail)
        await checkpoint(service)
    assert layers_of(service, "web")[1:] == before
    with service._lives.booter.layers.pinned(before[0]):
        await checkpoint(service)
    assert layers_of(service, "web")[2:] == before
    await checkpoint(service)
    assert len(layers_of(service, "web")) == 5


@pytest.mark.skipif(which("qemu-img") is None, reason="qemu-img is not installed")
async def test_those_that_others_need_are_joined_in_a_copy(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many checkpoints are kept, a disk has not too many layers."""
    monkeypatch.setattr(layers_module, "CROWDED", 6)
    monkeypatch.setattr(layers_module, "RETIRED_SECONDS", -1.0)
    keep = 16
    async with World(replace(settings, checkpoint_keep=keep)) as world:
        async with world.service() as service:
            await run(service, name="web")
            taken = []
            for _ in range(keep + 4):
                taken.append(await checkpoint(service))
                assert len(layers_of(service, "web")) <= 7
            assert len(await service.checkpoints.list("web")) == keep
            chain = service._lives.booter.layers.chain
            for each in taken[-keep:]:
                assert len(chain(str(service.snapshots.shelf[each.id].layer))) <= 7
            await service.checkpoints.undo("web", keep)
            await service.snapshots.restore(taken[-1].id, "new")
            await service.sandboxes.remove("new", force=True)
        async with world.service() as service:
            await service.checkpoints.undo("web", to=taken[-1].id)
            await service.sandboxes.remove("web", force=True)
            assert world.leftovers() == []
