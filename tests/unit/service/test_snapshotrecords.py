"""What is on record of snapshots: ready last, and gone with all that there is of them."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from hutch.errors import error
from hutch.images.base import no_report
from hutch.models import SandboxInfo
from hutch.service.host import HostService
from hutch.service.snapshotrecords import SnapshotRecords
from hutch.state.sqlite import SqliteStore
from tests.unit.service.world import World, expect, spec
from tests.unit.snapshots import snapshot


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


async def source(service: HostService) -> SandboxInfo:
    return await service.sandboxes.create(spec(name="web"), no_report)


def records(service: HostService) -> SnapshotRecords:
    return service.snapshots._records


async def test_one_is_ready_when_it_is_finished(world: World, service: HostService) -> None:
    tested, info = records(service), await source(service)
    one = snapshot("sn_1", "one")
    await tested.put(one, None, info)
    assert tested.shelf.of(None) == []
    assert info.image_id in service._registry.used_images()
    await expect("name_taken", tested.put(snapshot("sn_2", "one"), None, info))
    await tested.finish(replace(one, memory_bytes=3))
    assert tested.shelf.find("one").info.memory_bytes == 3


async def test_what_was_not_finished_is_undone_at_the_next_start(world: World) -> None:
    directory = world.settings.home / "snapshots" / "sn_1"
    async with world.service() as service:
        await records(service).put(snapshot("sn_1", "one"), None, await source(service))
        directory.mkdir(parents=True)
        (directory.parent / "sn_2").mkdir()
    async with world.service() as service:
        assert not service.snapshots.shelf
        assert list(directory.parent.iterdir()) == []
        assert await service._parts.store.snapshots() == []


async def test_a_full_disk_cannot_keep_one(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested, directory = records(service), world.settings.home / "snapshots" / "sn_1"
    row = await tested.put(snapshot("sn_1", "one"), None, await source(service))
    directory.mkdir(parents=True)
    really = SqliteStore.remove_snapshot

    async def needs_room(store: Any, snapshot_id: str) -> None:
        if directory.exists():
            raise error("disk_full", "told to")
        await really(store, snapshot_id)

    monkeypatch.setattr(SqliteStore, "remove_snapshot", needs_room)
    await tested.forget(row)
    assert not tested.shelf
    assert not directory.exists()
