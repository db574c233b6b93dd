"""The records of snapshots: half made and ready ones, and their names."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.state.base import LayerRow
from hutch.state.sqlite import SqliteStore
from tests.unit.snapshots import snapshot


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "hutch.db")
    await store.open()
    yield store
    await store.close()


async def test_a_snapshot_is_half_made_until_it_is_ready(store: SqliteStore) -> None:
    first = snapshot("sn_1", "before")
    await store.add_snapshot(first, "ly_1")
    await store.add_snapshot(snapshot("sn_2", "after"), None)
    assert [row.ready for row in await store.snapshots()] == [False, False]
    done = await store.finish_snapshot(replace(first, disk_bytes=7))
    assert (done.info.disk_bytes, done.ready, done.layer) == (7, True, "ly_1")
    assert [row.ready for row in await store.snapshots()] == [True, False]
    assert (await store.snapshots())[0] == done


async def test_a_layer_of_its_own_is_on_record_with_it(store: SqliteStore) -> None:
    layer = LayerRow("ly_9", None, None, "2026-01-01T00:00:00Z")
    await store.add_snapshot(snapshot("sn_1", "before"), layer.id, new=layer)
    assert await store.layers() == [layer]
    with pytest.raises(HutchError):
        await store.add_snapshot(snapshot("sn_2", "before"), "ly_8", new=replace(layer, id="ly_8"))
    assert await store.layers() == [layer]


async def test_names_of_snapshots_are_unique_and_freed(store: SqliteStore) -> None:
    await store.add_snapshot(snapshot("sn_1", "before"), None)
    with pytest.raises(HutchError) as caught:
        await store.add_snapshot(snapshot("sn_2", "before"), None)
    assert caught.value.code == "name_taken"
    await store.remove_snapshot("sn_1")
    await store.remove_snapshot("sn_1")
    await store.add_snapshot(snapshot("sn_2", "before"), None)


async def test_what_is_gone_cannot_be_finished(store: SqliteStore) -> None:
    with pytest.raises(HutchError) as caught:
        await store.finish_snapshot(snapshot("sn_1", "before"))
    assert caught.value.code == "snapshot_not_found"


async def test_a_layer_that_no_sandbox_has_yet(store: SqliteStore) -> None:
    layer = LayerRow("ly_9", None, None, "2026-01-01T00:00:00Z")
    await store.add_layer(layer)
    assert await store.layers() == [layer]
    await store.remove_layer("ly_9")
    assert await store.layers() == []


async def test_one_layer_in_place_of_several(store: SqliteStore) -> None:
    low = LayerRow("ly_1", None, "tp_1", "2026-01-01T00:00:00Z")
    above = LayerRow("ly_2", "ly_1", None, "2026-01-01T00:00:00Z")
    for each in (low, above):
        await store.add_layer(each)
    joined = replace(low, id="ly_3")
    await store.join_layers(joined, "ly_2")
    assert list(await store.layers()) == [low, replace(above, parent="ly_3"), joined]
