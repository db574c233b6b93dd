"""How a machine's devices, CPUs and memory are taken of one moment, while it lives on.

Everything that can be done before it stands still is done before: the part of its memory that it
cannot change is copied, files are handed over, the next disk is opened. Whatever fails, it runs on
afterwards if it ran before. Knows one machine's QMP session and its process, not where captures go.
"""

import contextlib
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from hutch.engine import disks
from hutch.engine.guest_memory import GuestMemory
from hutch.engine.memories import create_memory, seal
from hutch.engine.migration import StateFile
from hutch.engine.qmp import Qmp
from hutch.errors import HutchError, error
from hutch.process import ProcessId
from hutch.tasks import in_thread, settle, settle_in_thread

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Captured:
    """What was taken: the state, and the sealed memory, a descriptor that is the taker's."""

    state: bytes
    memory: int


Still: TypeAlias = contextlib.AbstractAsyncContextManager[object]
"""What is done to the guest around the pause."""


async def capture(
    qmp: Qmp,
    process: ProcessId,
    next_disk: Path | None,
    still: Still | None = None,
    memory: int | None = None,
) -> Captured:
    """Take a machine as it is now, and give it another writable disk at that very moment.

    `memory` is an empty file to copy its memory into. `still` is entered right before the machine
    is stopped and left once it goes on. Raises its errors, engine_failed, sandbox_died: the disk
    has not been switched then, unless it was to go on that failed. A cancellation shows after the
    machine runs on.
    """
    try:
        return await _capture(qmp, process, next_disk, still or contextlib.nullcontext(), memory)
    except HutchError as cause:
        if cause.code != "sandbox_died" and not process.alive():
            raise error("sandbox_died", f"the VM ended while it was captured: {cause}") from cause
        raise


async def _capture(
    qmp: Qmp, process: ProcessId, next_disk: Path | None, still: Still, memory: int | None
) -> Captured:
    with contextlib.ExitStack() as on_error:
        with GuestMemory(process.pid) as source:
            await settle_in_thread(source.find)
            if memory is None:
                memory = create_memory(source.size)
                on_error.callback(os.close, memory)
            elif os.fstat(memory).st_size != source.size:
                raise error("engine_failed", f"the VM has {source.size} bytes of memory")
            await settle_in_thread(source.begin_copy, memory)
            # From here on QEMU has things open of which it must not be left with any.
            state = await settle(_take(qmp, source, next_disk, still))
        await seal(memory)
        on_error.pop_all()
    return Captured(state, memory)


async def _take(qmp: Qmp, source: GuestMemory, next_disk: Path | None, still: Still) -> bytes:
    """Have QEMU ready, do what has to be done at once, and return the state."""
    async with contextlib.AsyncExitStack() as stack:
        disk = None
        if next_disk is not None:
            disk = await stack.enter_async_context(disks.opened(qmp, next_disk))
        file = await stack.enter_async_context(StateFile.of(qmp))
        async with still:
            await _take_at_once(qmp, file, source, disk)
        return await in_thread(file.read)


async def _take_at_once(
    qmp: Qmp, file: StateFile, source: GuestMemory, disk: disks.NextDisk | None
) -> None:
    ran = await qmp.ask("query-status", "running", bool)
    began = time.monotonic()
    try:
        await qmp.execute("stop")
        await file.save()
        copied = await settle_in_thread(source.finish_copy)
        if disk is not None:
            # Last, so that a machine whose capture failed has kept its disk.
            await disk.switch()
    finally:
        if ran:
            await qmp.execute("cont")
    log.debug(
        "QEMU (pid %d) stood still for %.1f ms, in which %d bytes were copied",
        source.pid,
        (time.monotonic() - began) * 1000,
        copied,
    )
