"""What all sandboxes of this host take of it, and what is left: one look for a whole list."""

from hutch.reports import HostUsage, SandboxUsage
from hutch.service.machine import Booter
from hutch.service.parts import Parts
from hutch.service.registry import Entry, Registry
from hutch.service.stats import disk_of
from hutch.tasks import in_thread


async def host_usage(parts: Parts, registry: Registry, booter: Booter) -> HostUsage:
    """Return what the host has and what each sandbox takes, whatever its state."""
    room = parts.capacity.room()
    return HostUsage(
        memory_total=room.host.total,
        memory_available=room.host.available,
        memory_reserve=room.reserve,
        memory_pending=room.pending,
        memory_promised=room.promised,
        memory_promise_limit=room.promise_limit,
        template_memory=booter.templates.memory_use(),
        disk_free=room.disk_free,
        disk_reserve=room.disk_reserve,
        sandboxes=[await _usage(parts, booter, entry) for entry in registry],
    )


async def _usage(parts: Parts, booter: Booter, entry: Entry) -> SandboxUsage:
    disk = await disk_of(parts, booter.layers, entry)
    memory = await in_thread(entry.memory_use)
    info = entry.info
    return SandboxUsage(info.id, info.name, info.state, memory, disk.own)
