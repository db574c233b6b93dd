"""The records of pools and of their members, up to the claim."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.models import SandboxSpec
from hutch.state.base import LayerRow, PoolRow
from hutch.state.sqlite import SqliteStore
from tests.unit.state.test_sqlite import info

POOL = PoolRow("po_1", "busybox", 1, 512, 2, "2026-01-01T00:00:00.000Z")
MACHINE = {"pid": 7}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "hutch.db")
    await store.open()
    yield store
    await store.close()


async def test_pools_are_kept_resized_and_forgotten(store: SqliteStore) -> None:
    other = replace(POOL, id="po_2", memory=1024)
    await store.put_pool(POOL)
    await store.put_pool(other)
    await store.put_pool(replace(POOL, size=5))
    assert await store.pools() == [replace(POOL, size=5), other]
    await store.remove_pool("po_1")
    await store.remove_pool("po_1")
    assert await store.pools() == [other]


async def test_a_member_is_no_sandbox_and_has_a_slot_of_its_own(store: SqliteStore) -> None:
    await store.add_sandbox(SandboxSpec("busybox"), info("sb_one", "one"), slots=3)
    row = await store.add_member(info("sb_m", "sb_m"), "po_1", slots=3)
    assert (row.slot, row.pool) == (1, "po_1")
    assert [each.info.name for each in await store.sandboxes()] == ["one"]
    assert [each.info.id for each in await store.members()] == ["sb_m"]
    assert (
        await store.add_sandbox(SandboxSpec("busybox"), info("sb_two", "two"), slots=3)
    ).slot == 2
    with pytest.raises(HutchError) as caught:
        await store.add_member(info("sb_n", "sb_n"), "po_1", slots=3)
    assert caught.value.code == "no_capacity"


async def test_a_claim_makes_it_the_sandbox(store: SqliteStore) -> None:
    made = await store.add_member(info("sb_m", "sb_m"), "po_1", slots=3)
    layer = LayerRow("ly_1", None, "template", "2026-01-01T00:00:00.000Z")
    await store.put_layer("sb_m", layer, template="template")
    await store.add_sandbox(SandboxSpec("busybox"), info("sb_earlier", "earlier"), slots=3)
    wanted = info("sb_m", "mine")
    spec = SandboxSpec("busybox", command=["true"])
    row = await store.claim_member(spec, wanted, MACHINE)
    assert row.info == replace(wanted, template="template")
    assert (row.spec, row.slot, row.layer, row.pool) == (spec, made.slot, "ly_1", None)
    assert row.machine == MACHINE
    assert await store.members() == []
    assert [each.info.name for each in await store.sandboxes()] == ["earlier", "mine"]


async def test_nothing_is_claimed_twice(store: SqliteStore) -> None:
    await store.add_member(info("sb_m", "sb_m"), "po_1", slots=3)
    await store.claim_member(SandboxSpec("busybox"), info("sb_m", "mine"), MACHINE)
    with pytest.raises(HutchError) as caught:
        await store.claim_member(SandboxSpec("busybox"), info("sb_m", "other"), MACHINE)
    assert caught.value.code == "sandbox_not_found"


async def test_a_claim_by_a_name_that_is_taken_changes_nothing(store: SqliteStore) -> None:
    await store.add_member(info("sb_m", "sb_m"), "po_1", slots=3)
    await store.add_sandbox(SandboxSpec("busybox"), info("sb_mine", "mine"), slots=3)
    with pytest.raises(HutchError) as caught:
        await store.claim_member(SandboxSpec("busybox"), info("sb_m", "mine"), MACHINE)
    assert caught.value.code == "name_taken"
    assert [each.info.id for each in await store.members()] == ["sb_m"]
