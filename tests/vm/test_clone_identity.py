"""Two clones share no random number, and would without their identity: the same reads in both.

The service runs in this process, so that a test can take the entropy out of the identity. Reads go
through the agent itself, in the first moment of the clones: a kernel gathers randomness by itself
as time passes, which would hide a fault.
"""

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hutch.guest.base import Guest, Identity
from hutch.guest.session import connect_guest
from hutch.images.base import no_report
from hutch.models import SandboxSpec
from hutch.service.host import HostService
from tests.harness.service import serving
from tests.harness.stores import SharedStore

ATTEMPTS = 12
"""Pairs of clones of which one must come out alike: a slow pair may have gathered randomness."""
UUID = "/proc/sys/kernel/random/uuid"
READS = 3

Connect = Callable[..., Awaitable[Guest]]


async def connect_without_entropy(path: Path, *, timeout: float) -> Guest:
    """Connect to an agent that is given an identity without entropy, and believed all the same."""
    guest: Any = await connect_guest(path, timeout=timeout)

    async def identify(identity: Identity) -> bool:
        request = {"nonce": identity.nonce, "realtime_ns": time.time_ns()}
        await guest._link.call("identity", "the guest", request, dict, seconds=10.0)
        return True

    guest.identify = identify
    return guest  # type: ignore[no-any-return]


async def randomness(service: HostService) -> list[bytes]:
    """Start a clone, and return what it reads of its kernel's random numbers; remove it."""
    info = await service.sandboxes.create(SandboxSpec("busybox", idle=True), no_report)
    try:
        info = await service.sandboxes.start(info.id)
        assert info.template is not None
        files = await service.files.of(info.id)
        return [b"".join([part async for part in files.read(UUID)]) for _ in range(READS)]
    finally:
        await service.sandboxes.remove(info.id, force=True)


async def test_clones_differ(shared_store: SharedStore, short_tmp: Path) -> None:
    async with serving(shared_store, short_tmp / "r", connect_guest) as service:
        one, two = [await randomness(service) for _ in range(2)]
    assert [len(part) for part in one] == [len(part) for part in two]
    assert all(one)
    assert not set(one) & set(two)


async def test_without_entropy_they_are_alike(shared_store: SharedStore, short_tmp: Path) -> None:
    async with serving(shared_store, short_tmp / "r", connect_without_entropy) as service:
        pairs = []
        for _ in range(ATTEMPTS):
            pairs.append([await randomness(service) for _ in range(2)])
            if pairs[-1][0] == pairs[-1][1]:
                return
    pytest.fail(f"no two clones were alike, so the test above proves nothing: {pairs}")
