"""Digests of disks: each file is read once, and one that was changed is found out."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hutch.images.base import no_report
from hutch.service import diskdigests
from hutch.service.diskdigests import DiskDigests
from hutch.service.host import HostService
from tests.unit.service.world import World, expect, spec


@pytest.fixture
async def service(farm: World) -> AsyncIterator[HostService]:
    async with farm.service() as service:
        yield service


@pytest.fixture
async def top(service: HostService) -> str:
    """The uppermost layer of a disk with two, over a template's."""
    info = await service.sandboxes.create(spec(idle=True), no_report)
    await service.sandboxes.start(info.id)
    for name in ("one", "two"):
        await service.snapshots.create(info.id, name=name)
    layer = service.snapshots.shelf.find("two").layer
    assert layer is not None
    return layer


def digests(service: HostService) -> DiskDigests:
    return DiskDigests(service.snapshots._layers)


def behind(service: HostService, top: str) -> list[Path]:
    return [service.snapshots._layers.path(top), *service.snapshots._layers.behind(top)]


async def test_all_files_of_a_disk_have_one(service: HostService, top: str) -> None:
    files = behind(service, top)
    found = await digests(service).of(top)
    assert len(found) == len(files) == 3
    assert [path.name for path in files[:2]] == list(found)[:2]
    assert list(found)[2] == f"{files[2].parent.name}/disk.qcow2"
    assert len(set(found.values())) > 1


async def test_each_is_read_once(
    service: HostService, top: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    real = diskdigests.digest_of

    def counted(path: Path) -> str:
        read.append(path)
        return real(path)

    monkeypatch.setattr(diskdigests, "digest_of", counted)
    disks = digests(service)
    first = await disks.of(top)
    assert await disks.of(top) == first
    assert read == behind(service, top)


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_one_that_was_changed_is_found_out(
    service: HostService, top: str, number: int
) -> None:
    disks = digests(service)
    then = await disks.of(top)
    await disks.check("then", top, then)
    path = behind(service, top)[number]
    path.write_bytes(path.read_bytes() + b"more")
    failure = await expect("snapshot_damaged", disks.check("then", top, then))
    assert path.name in failure.message
    # Layers that were joined since have another name.
    await disks.check("then", top, {"ly_0123456789ab.qcow2": "sha256:other"})


async def test_one_that_is_gone(service: HostService, top: str) -> None:
    disks = digests(service)
    then = await disks.of(top)
    behind(service, top)[1].unlink()
    await expect("snapshot_damaged", disks.check("then", top, then))
