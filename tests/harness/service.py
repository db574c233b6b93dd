"""A host's service in the test's own process, with real VMs: for what the command cannot show."""

import contextlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from hutch.api.runtime import make_private
from hutch.engine.qemu import QemuEngine
from hutch.guest.base import Guest
from hutch.guest.session import connect_guest
from hutch.images.disk import base_disk
from hutch.images.kernel import KernelStore
from hutch.images.store import ImageStore
from hutch.service.host import DATABASE, HostService, host_network
from hutch.settings import Settings, load_settings
from hutch.state.sqlite import SqliteStore
from tests.harness.stores import SharedStore

Connect = Callable[..., Awaitable[Guest]]


@contextlib.asynccontextmanager
async def serving(
    store: SharedStore, runtime: Path, connect: Connect = connect_guest
) -> AsyncIterator[HostService]:
    """Serve a home of its own; `connect` makes the connections to the guests."""
    make_private(runtime)
    home = store.new_home(templates=True)
    settings: Settings = load_settings({"home": home, "runtime_dir": runtime})
    service = HostService(
        settings,
        store=SqliteStore(home / DATABASE),
        engine=QemuEngine(settings),
        images=ImageStore(home, settings),
        kernels=KernelStore(home, settings),
        connect_guest=connect,
        base_disk=base_disk,
        network=host_network(settings),
    )
    try:
        async with service:
            service.system.stop_sandboxes = True
            yield service
    finally:
        shutil.rmtree(home, ignore_errors=True)
