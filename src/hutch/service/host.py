"""One host's service, put together: the implementation of the API's `Operations` for this machine.

`open_host` wires it with the real engine and stores; tests give `HostService` fakes. Entering it
reconciles the records with reality; leaving it lets go of the VMs, or stops them when that was
asked for.
"""

import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Self

from hutch.engine.base import Engine
from hutch.engine.qemu import QemuEngine
from hutch.guest.session import connect_guest
from hutch.images.base import Images, Kernels
from hutch.images.disk import base_disk
from hutch.images.flight import together
from hutch.images.kernel import KernelStore
from hutch.images.store import ImageStore
from hutch.models import timestamp
from hutch.network.base import Network
from hutch.network.host import HostNetwork, Options
from hutch.service.capacity import Capacity
from hutch.service.capture import Captures
from hutch.service.checkpoints import Checkpoints
from hutch.service.connection import ConnectGuest
from hutch.service.content import HostImages, HostKernels, HostTemplates
from hutch.service.diff import Diffs
from hutch.service.events import EventLog
from hutch.service.forks import Forks
from hutch.service.lives import Lives
from hutch.service.networks import HostNetworks
from hutch.service.parts import MakeBaseDisk, Parts, Places
from hutch.service.plugs import Plugs
from hutch.service.reconcile import reconcile
from hutch.service.registry import Registry
from hutch.service.revival import Revivals
from hutch.service.sandboxes import HostExecs, HostFiles, HostSandboxes
from hutch.service.snapshots import Snapshots
from hutch.service.spec import HostSize
from hutch.service.system import HostSystem
from hutch.settings import SETTINGS, Settings, parse_server, resolve_settings
from hutch.state.base import Store
from hutch.state.sqlite import SqliteStore

log = logging.getLogger(__name__)

DATABASE = "hutch.db"

_GATEWAY_USER = 1000


class HostService:
    """Everything that the API offers, for this host; an async context manager."""

    def __init__(
        self,
        settings: Settings,
        origins: Mapping[str, str] | None = None,
        *,
        store: Store,
        engine: Engine,
        images: Images,
        kernels: Kernels,
        connect_guest: ConnectGuest,
        base_disk: MakeBaseDisk,
        network: Network,
        host: HostSize | None = None,
        capacity: Capacity | None = None,
    ) -> None:
        """`origins` says for each setting where its value came from (default: `default`)."""
        registry, events = Registry(), EventLog()
        parts = Parts(
            settings=settings,
            store=store,
            engine=engine,
            images=images,
            kernels=kernels,
            connect_guest=connect_guest,
            base_disk=base_disk,
            events=events,
            host=host or HostSize.of_this_host(),
            places=Places(settings.home, settings.runtime_dir),
            capacity=capacity or Capacity(settings),
            network=network,
            plugs=Plugs(network, registry.policy_of),
        )
        parts.capacity.count(registry.holdings)
        known = origins or {row.key: "default" for row in SETTINGS}
        self._parts = parts
        self._registry = registry
        self._lives = Lives(parts, registry)
        self.networks = HostNetworks(parts, registry, self._lives.pauses.telling)
        self._lives.when_erased(self.networks.logs.forget)
        self.sandboxes = HostSandboxes(parts, registry, self._lives)
        self.files = HostFiles(registry, self._lives)
        self.pools = self._lives.pools
        self.ports = self._lives.ports
        self.images = HostImages(parts, registry, self.pools)
        self.kernels = HostKernels(parts, registry)
        self.templates = HostTemplates(parts, self._lives.booter, self.pools)
        revivals, captures = Revivals(parts, registry, self._lives), Captures(parts, self._lives)
        self.snapshots = Snapshots(parts, registry, self._lives, captures, revivals)
        self.forks = Forks(parts, registry, self._lives, captures, revivals)
        self.checkpoints = Checkpoints(parts, registry, self._lives, captures, self.snapshots)
        self.diffs = Diffs(parts, registry, self._lives, self.snapshots, self.checkpoints)
        self.execs = HostExecs(parts.places, registry, self._lives, self.checkpoints.create)
        self._revivals = revivals
        self._thinning = captures.thinning
        self.system = HostSystem(parts, registry, self._lives.booter, known, timestamp())

    async def __aenter__(self) -> Self:
        await self._parts.store.open()
        try:
            async with together() as group:
                group.create_task(self.networks.open())
                await self.snapshots.open()
                await self.forks.open()
            await reconcile(self._parts, self._registry, self._lives)
            await self.networks.adopt()
            await self.checkpoints.open()
            await self.pools.open()
        except BaseException:
            await self._close(stop_sandboxes=False)
            raise
        log.info("%d sandboxes on record, %d run", len(self._registry), self.system.running)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._close(stop_sandboxes=self.system.stop_sandboxes)

    async def _close(self, *, stop_sandboxes: bool) -> None:
        try:
            await self.checkpoints.close()
            await self._thinning.close()
            await self._revivals.close()
            await self._lives.close(stop_sandboxes=stop_sandboxes)
        finally:
            await self.networks.close()
            self._parts.events.close()
            await self._parts.store.close()


def host_network(settings: Settings) -> HostNetwork:
    """Return the network of this host's sandboxes, not yet opened."""
    # Past the users of sandboxes' VMs, of canaries and of templates' VMs.
    user = settings.uid_base + settings.uid_count + _GATEWAY_USER
    servers = [parse_server(text) for text in settings.dns_servers]
    return HostNetwork(
        Options(
            settings.home,
            settings.runtime_dir,
            user=user,
            servers=servers or None,
            public_routes=settings.network_public_routes,
            dns={"denied": settings.dns_denied},
        )
    )


@contextlib.asynccontextmanager
async def open_host(
    settings: Settings, origins: Mapping[str, str] | None = None
) -> AsyncIterator[HostService]:
    """Serve this host with QEMU, the stores below `settings.home`, and SQLite.

    `settings.runtime_dir` is this home's own. Raises daemon_version, disk_full.
    """
    known = origins or {key: origin for key, (_, origin) in resolve_settings().items()}
    service = HostService(
        settings,
        known,
        store=SqliteStore(settings.home / DATABASE),
        engine=QemuEngine(settings),
        images=ImageStore(settings.home, settings),
        kernels=KernelStore(settings.home, settings),
        connect_guest=connect_guest,
        base_disk=base_disk,
        network=host_network(settings),
    )
    async with service:
        yield service
