"""Two clones share no random number, and would without their identity: the same reads in both.

The service runs in this process, so that a test can take the entropy out of the identity. Reads go
through the agent itself, in the first moment of the clones: a kernel gathers randomness by itself
as time passes, which would hide a fault.
"""

import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.api.runtime import make_private
from hutch.engine.qemu import QemuEngine
from hutch.guest.base import Guest, Identity
from hutch.guest.session import connect_guest
from hutch.images.base import no_report
from hutch.images.disk import base_disk
from hutch.images.kernel import KernelStore
from hutch.images.store import ImageStore
from hutch.models import SandboxSpec
from hutch.service.host import DATABASE, HostService
from hutch.settings import Settings, load_settings
from hutch.state.sqlite import SqliteStore
from tests.harness.stores import SharedStore

ATTEMPTS = 3
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


@contextlib.asynccontextmanager
async def serving(
    store: SharedStore, runtime: Path, connect: Connect
) -> AsyncIterator[HostService]:
    """Serve a home of its own from this process."""
    make_private(runtime)
    home = store.new_home()
    settings: Settings = load_settings({"home": home, "runtime_dir": runtime})
    service = HostService(
        replace(settings, templates=True),
        store=SqliteStore(home / DATABASE),
        engine=QemuEngine(settings),
        images=ImageStore(home, settings),
        kernels=KernelStore(home, settings),
        connect_guest=connect,
        base_disk=base_disk,
    )
    try:
        async with service:
            service.system.stop_sandboxes = True
            yield service
    finally:
        shutil.rmtree(home)


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
