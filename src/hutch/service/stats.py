"""What a sandbox uses: the guest's own account, checked, beside the host's.

The guest may claim anything; nothing here trusts a number beyond its type and sign.
"""

import contextlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hutch.engine.base import MemoryUse
from hutch.guest.base import Guest
from hutch.models import SandboxState, timestamp
from hutch.reports import ProcessInfo, SandboxStats
from hutch.service.layers import DiskUse, Layers
from hutch.service.parts import Parts
from hutch.service.registry import Entry
from hutch.service.sandbox import Sandbox
from hutch.tasks import in_thread

_COMMAND_MAX = 4096
_NANO = 1e9


def disk_use(path: Path) -> int:
    """Return the bytes that a file, or all below a directory, takes on disk; holes are free."""
    return sum(uses_of(path))


def uses_of(path: Path) -> DiskUse:
    """Return the same, apart from what of it has names elsewhere, too."""
    own = shared = 0
    with contextlib.suppress(OSError):
        if not path.is_dir():
            return DiskUse(os.lstat(path).st_blocks * 512, 0)
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(os.path.join(folder, name))
                own += found.st_blocks * 512 if found.st_nlink < 2 else 0
                shared += found.st_blocks * 512 if found.st_nlink > 1 else 0
    return DiskUse(own, shared)


async def sandbox_stats(parts: Parts, layers: Layers, entry: Entry) -> SandboxStats:
    """Return what a sandbox uses; the percentage is since the last time it was asked.

    One that is paused or parked is not woken: only the host is asked. Raises wrong_state where
    nothing runs and nothing will by itself.
    """
    info, sandbox = entry.info, entry.sandbox
    if info.state not in (SandboxState.PAUSED, SandboxState.PARKED):
        sandbox = entry.running()
    inside: Mapping[str, Any] = {}
    if info.state is SandboxState.RUNNING and sandbox and not sandbox.connection.held:
        inside = _inside(await (await sandbox.connection.get()).stats())
    memory = MemoryUse() if sandbox is None else await in_thread(sandbox.machine.memory)
    disk = await disk_of(parts, layers, entry)
    rootfs = await in_thread(parts.images.rootfs_path, info.image_id)
    shared = 0 if rootfs is None else await in_thread(disk_use, rootfs.path)
    return SandboxStats(
        id=info.id,
        name=info.name,
        state=info.state,
        cpu_percent=_percent(sandbox, inside) if sandbox and inside else 0.0,
        cpus=info.cpus,
        **inside,
        host_memory=memory.total,
        host_memory_private=memory.private,
        host_memory_shared=memory.shared,
        host_memory_template=memory.frozen,
        host_memory_engine=memory.engine,
        host_cpu_seconds=0.0 if sandbox is None else sandbox.machine.cpu_seconds(),
        host_disk=disk.own,
        host_disk_shared=disk.shared + shared,
    )


async def disk_of(parts: Parts, layers: Layers, entry: Entry) -> DiskUse:
    """Return what a sandbox takes on disk: its files, and the layers that it alone uses."""
    files = await in_thread(disk_use, parts.places.sandbox(entry.info.id))
    own, shared = await layers.sizes(entry.row.layer)
    return DiskUse(files + own, shared)


def _inside(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the guest's own account, as fields of SandboxStats."""
    memory, disk, load = _table(body, "memory"), _table(body, "disk"), body.get("load")
    return {
        "cpu_seconds": _seconds(body, "cpu_total_ns"),
        "load": [_real(item) for item in load[:3]] if isinstance(load, Sequence) else [0.0] * 3,
        "memory_total": _number(memory, "total"),
        "memory_used": _number(memory, "used"),
        "memory_cached": _number(memory, "cached"),
        "disk_total": _number(disk, "total"),
        "disk_used": _number(disk, "used"),
        "processes": _number(body, "processes"),
        "uptime_seconds": _seconds(body, "uptime_ns"),
        "oom_kills": _number(body, "oom_kills"),
    }


def _percent(sandbox: Sandbox, inside: Mapping[str, Any]) -> float:
    now, used = time.monotonic(), inside["cpu_seconds"]
    before, since = sandbox.sample or (0.0, now - max(inside["uptime_seconds"], 0.001))
    sandbox.sample = (used, now)
    return round(float(100 * max(0.0, used - before) / max(now - since, 0.001)), 1)


async def processes(guest: Guest) -> Sequence[ProcessInfo]:
    """Return the guest's process table."""
    return [_process(row) for row in await guest.processes()]


def _process(row: Mapping[str, Any]) -> ProcessInfo:
    exec_id = row.get("exec_id")
    return ProcessInfo(
        pid=_number(row, "pid"),
        ppid=_number(row, "ppid"),
        user=_text(row.get("user")) or str(_number(row, "uid")),
        state=_text(row.get("state")),
        cpu_seconds=_seconds(row, "cpu_ns"),
        memory=_number(row, "rss"),
        threads=_number(row, "threads"),
        started_at=timestamp(min(_seconds(row, "started_ns"), 1e11)),
        command=_text(row.get("command")),
        exec_id=None if exec_id is None else _text(exec_id),
    )


def _table(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = body.get(key)
    return found if isinstance(found, Mapping) else {}


def _number(body: Mapping[str, Any], key: str) -> int:
    found = body.get(key)
    return found if isinstance(found, int) and 0 <= found < 1 << 63 else 0


def _seconds(body: Mapping[str, Any], key: str) -> float:
    return _number(body, key) / _NANO


def _real(item: object) -> float:
    return float(item) if isinstance(item, int | float) and math.isfinite(item) else 0.0


def _text(item: object) -> str:
    if isinstance(item, bytes):
        item = item.decode("utf-8", "replace")
    return item[:_COMMAND_MAX] if isinstance(item, str) else ""
