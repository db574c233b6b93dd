"""Steps are compared with the record; what has come about is kept though the disk is full."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from hutch.errors import error
from hutch.images.base import no_report
from hutch.models import SandboxState
from hutch.service.host import HostService
from hutch.service.registry import Entry
from hutch.state.sqlite import SqliteStore
from tests.unit.service.world import World, expect, spec

RUNNING, PARKED, STOPPED = SandboxState.RUNNING, SandboxState.PARKED, SandboxState.STOPPED


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


@pytest.fixture
async def entry(service: HostService) -> Entry:
    info = await service.sandboxes.create(spec(timeout=100), no_report)
    await service.sandboxes.start(info.id)
    return service._registry.find(info.id)


async def recorded(service: HostService, entry: Entry) -> Any:
    rows = await service._parts.store.sandboxes()
    return next(row.info for row in rows if row.info.id == entry.info.id)


async def test_a_step_that_the_table_forbids(service: HostService, entry: Entry) -> None:
    await expect("wrong_state", service._lives.records.move(entry, SandboxState.STARTING))
    assert (await recorded(service, entry)).state is RUNNING


@pytest.mark.parametrize("state", [PARKED, STOPPED])
async def test_what_cannot_be_recorded_is_caught_up_with(
    service: HostService, entry: Entry, state: SandboxState, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, limit = service._lives.records, entry.info.timeout_at
    assert limit is not None

    async def fail(store: Any, *args: Any, **fields: Any) -> Any:
        raise error("disk_full", "told to")

    changes = {} if state is PARKED else {"timeout_at": None}
    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "_change", fail)
        await records.settle(entry, state, **changes)
        assert (entry.info.state, entry.info.pid, entry.unsettled) == (state, None, True)
        await expect("disk_full", records.catch_up(entry))
    assert (await recorded(service, entry)).state is RUNNING
    await records.catch_up(entry)
    found = await recorded(service, entry)
    assert (found.state, found.pid) == (state, None)
    assert found.timeout_at == (limit if state is PARKED else None)
    assert not entry.unsettled


async def test_what_is_told_names_the_sandbox(service: HostService, entry: Entry) -> None:
    service._lives.records.emit("sandbox.tested", entry, how="well")
    *_, last = [event async for event in service.system.events(since=0)]
    assert (last.kind, last.subject, last.name) == (
        "sandbox.tested",
        entry.info.id,
        entry.info.name,
    )
    assert last.fields == {"how": "well"}
