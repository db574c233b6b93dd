"""How a machine's devices, CPUs and memory are taken of one moment, while it lives on.

Everything that can be done before it stands still is done before: the part of its memory that it
cannot change is copied, files are handed over, the next disk is opened. Whatever fails, it runs on
afterwards if it ran before. Knows one machine's QMP session and its process, not where captures go.
"""

import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
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
from hutch.tasks import both, settle, settle_in_thread

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Captured:
    """What was taken: the state, and the sealed memory, a descriptor that is the taker's now."""

    state: bytes
    memory: int


Still: TypeAlias = contextlib.AbstractAsyncContextManager[object]
"""What is done to the guest around the pause."""
Take: TypeAlias = Callable[[Captured], None]


async def capture(
    qmp: Qmp,
    process: ProcessId,
    next_disk: Path | None,
    take: Take,
    still: Still | None = None,
    memory: int | None = None,
) -> None:
    """Take a machine as it is now, and give it another writable disk at that very moment.

    `memory` is an empty file to copy its memory into. `still` is entered right before the machine
    is stopped and left once it goes on; before it is left, `take` gets what was taken. Raises the
    errors of `still`, engine_failed, sandbox_died: the disk has not been switched then, unless
    `take` was called or it was to go on that failed. A cancellation shows after the machine runs
    on.
    """
    try:
        await _capture(qmp, process, next_disk, take, still or contextlib.nullcontext(), memory)
    except HutchError as cause:
        if cause.code != "sandbox_died" and not process.alive():
            raise error("sandbox_died", f"the VM ended while it was captured: {cause}") from cause
        raise


async def _capture(
    qmp: Qmp,
    process: ProcessId,
    next_disk: Path | None,
    take: Take,
    still: Still,
    memory: int | None,
) -> None:
    with contextlib.ExitStack() as on_error, GuestMemory(process.pid) as source:
        await settle_in_thread(source.find)
        if memory is None:
            memory = create_memory(source.size)
            on_error.callback(os.close, memory)
        elif os.fstat(memory).st_size != source.size:
            raise error("engine_failed", f"the VM has {source.size} bytes of memory")
        target = memory

        async def finish(file: StateFile) -> None:
            await settle_in_thread(source.close)
            await seal(target)
            taken = Captured(file.read(), target)
            on_error.pop_all()
            take(taken)

        # From here on QEMU has things open of which it must not be left with any.
        await settle(_take(qmp, source, target, next_disk, still, finish))


async def _take(
    qmp: Qmp,
    source: GuestMemory,
    memory: int,
    next_disk: Path | None,
    still: Still,
    finish: Callable[[StateFile], Awaitable[None]],
) -> None:
    """Copy what can be while QEMU is made ready, and do what has to be done at once.

    `finish` is what can be done as soon as the machine goes on again.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def make_ready() -> tuple[StateFile, disks.NextDisk | None]:
            disk = None
            if next_disk is not None:
                disk = await stack.enter_async_context(disks.opened(qmp, next_disk))
            return await stack.enter_async_context(StateFile.of(qmp)), disk

        _, (file, disk) = await both(
            settle_in_thread(source.begin_copy, memory), settle(make_ready())
        )
        async with still:
            await _take_at_once(qmp, file, source, disk)
            await finish(file)


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
