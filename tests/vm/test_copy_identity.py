"""Two restores of one snapshot, and two forks, share no random number; without entropy they would.

The same reads in both, through the agent and in the first moment: see test_clone_identity.py.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hutch.guest.session import connect_guest
from hutch.images.base import no_report
from hutch.models import SandboxSpec
from hutch.service.host import HostService
from tests.harness.service import serving
from tests.harness.stores import SharedStore
from tests.vm.test_clone_identity import READS, UUID, connect_without_entropy

ATTEMPTS = 5
"""Pairs of which the first reads of one must be alike: a slow one may have gathered randomness."""

Pair = tuple[list[bytes], list[bytes]]


async def reads(service: HostService, sandbox_id: str) -> list[bytes]:
    files = await service.files.of(sandbox_id)
    return [b"".join([part async for part in files.read(UUID)]) for _ in range(READS)]


async def two_restores(service: HostService, source: str) -> Pair:
    snapshot = await service.snapshots.create(source)
    found: list[list[bytes]] = []
    for _ in range(2):
        info = await service.snapshots.restore(snapshot.id)
        found.append(await reads(service, info.id))
        await service.sandboxes.remove(info.id, force=True)
    return found[0], found[1]


async def two_forks(service: HostService, source: str) -> Pair:
    one, two = (await service.forks.fork(source, count=2)).children
    found = await reads(service, one.id), await reads(service, two.id)
    for info in (one, two):
        await service.sandboxes.remove(info.id, force=True)
    return found


async def begin(service: HostService) -> str:
    info = await service.sandboxes.create(SandboxSpec("busybox", idle=True), no_report)
    return (await service.sandboxes.start(info.id)).id


both = pytest.mark.parametrize("copy", [two_restores, two_forks])
Copy = Callable[[HostService, str], Awaitable[Pair]]


@both
async def test_they_differ(shared_store: SharedStore, short_tmp: Path, copy: Copy) -> None:
    async with serving(shared_store, short_tmp / "r", connect_guest) as service:
        source = await begin(service)
        one, two = await copy(service, source)
        three = await reads(service, source)
    assert all(one)
    assert len({*one, *two, *three}) == 3 * READS


@both
async def test_without_entropy_they_are_alike(
    shared_store: SharedStore, short_tmp: Path, copy: Copy
) -> None:
    async with serving(shared_store, short_tmp / "r", connect_without_entropy) as service:
        pairs = []
        for _ in range(ATTEMPTS):
            one, two = await copy(service, await begin(service))
            pairs.append((one, two))
            if one[0] == two[0]:
                return
    pytest.fail(f"no two copies were alike, so the test above proves nothing: {pairs}")
