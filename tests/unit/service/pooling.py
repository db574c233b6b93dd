"""What the tests of pools share: a service whose pools lose no time, and looks at them."""

from pathlib import Path
from typing import Any

from hutch.images.base import no_report
from hutch.models import PoolInfo, SandboxInfo
from hutch.service.host import HostService
from hutch.service.pool_member import Member
from tests.unit.service.world import World, spec
from tests.waiting import until


async def warm(service: HostService, size: int = 1, **fields: Any) -> PoolInfo:
    return await service.pools.warm(spec(idle=True, **fields), size, no_report, wait=True)


async def run(service: HostService, **fields: Any) -> SandboxInfo:
    info = await service.sandboxes.create(spec(**fields), no_report)
    return await service.sandboxes.start(info.id)


async def status(service: HostService) -> PoolInfo:
    (info,) = await service.pools.list()
    return info


def kinds(service: HostService, prefix: str = "pool.") -> list[str]:
    kept = service._parts.events.kept(None)
    return [event.kind for event in kept if event.kind.startswith(prefix)]


def machines(world: World) -> set[str]:
    """Return the ids of the VMs that run."""
    return {process.record.directory.name for process in world.engine.running()}


def ready(service: HostService) -> list[Member]:
    """Return the members of the one pool that can be claimed."""
    (pool,) = service.pools._pools.values()
    return list(pool._ready)


async def refilled(service: HostService, size: int) -> PoolInfo:
    """Return the one pool once it has as many members as it shall have."""

    def full() -> bool:
        (pool,) = service.pools._pools.values()
        return len(pool._ready) == size and not pool._making

    await until(full, what=f"{size} members are ready")
    return await status(service)


def layers(world: World) -> list[Path]:
    return sorted((world.settings.home / "layers").glob("*"))


async def failed(service: HostService) -> PoolInfo:
    """Return the one pool once it could not be filled."""
    (pool,) = service.pools._pools.values()
    await until(lambda: pool._failure, what="it is not filled")
    return await status(service)
