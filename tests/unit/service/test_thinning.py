"""Disks whose moments are many: their layers are joined before there are too many."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hutch.errors import error
from hutch.images.base import no_report
from hutch.service import capture, layers, thinning
from hutch.service.host import HostService
from tests.unit.service.world import World, expect, spec
from tests.waiting import until

MANY = 6


@pytest.fixture
async def service(world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HostService]:
    """A host on which `web` runs, whose disks can have few layers."""
    for module in (thinning, capture):
        monkeypatch.setattr(module, "LAYERS_MAX", MANY)
    monkeypatch.setattr(layers, "CROWDED", 4)
    monkeypatch.setattr(layers, "flatten", _join)
    async with world.service() as service:
        info = await service.sandboxes.create(spec(name="web"), no_report)
        await service.sandboxes.start(info.id)
        yield service


async def _join(
    files: list[Path], template: object, base: Path, to: Path, behind: list[Path]
) -> None:
    to.write_bytes(b"joined")


async def _refuse(*args: object) -> None:
    raise error("disk_full", "told to")


def depth(service: HostService) -> int:
    layer = service._registry.find("web").row.layer
    assert layer is not None
    return len(service._lives.booter.layers.chain(layer))


async def test_forks_do_not_add_up(service: HostService) -> None:
    for _ in range(3 * MANY):
        (child,) = (await service.forks.fork("web")).children
        await service.sandboxes.remove(child.id, force=True)
        assert depth(service) <= MANY


async def test_snapshots_that_are_kept_do_not_add_up(service: HostService) -> None:
    taken = [await service.snapshots.create("web") for _ in range(3 * MANY)]
    assert depth(service) <= MANY
    for each in (taken[0], taken[-1]):
        assert (await service.snapshots.restore(each.id, f"of-{each.name}")).state == "running"


async def test_where_they_cannot_be_joined_there_is_no_room(
    service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(layers, "flatten", _refuse)
        for _ in range(MANY - 1):
            await service.snapshots.create("web")
        await expect("no_capacity", service.snapshots.create("web"))
        await expect("no_capacity", service.forks.fork("web"))
        await until(lambda: not service._thinning.at_work)
    await service.snapshots.create("web")
    assert depth(service) <= MANY


async def test_nothing_is_joined_for_few(
    service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "flatten", _refuse)
    await service.forks.fork("web")
    assert not service._thinning.at_work
    assert depth(service) == 2
