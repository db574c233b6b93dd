"""Sandboxes that rest without an end: paused, parked, and woken by whoever needs them.

Each act is a task of its own that goes to its end whatever becomes of who asked for it, and holds
the entry's lock meanwhile. While it is under way the entry is *turning*: nobody takes the sandbox
for running. It must not know how a VM is stopped or its memory kept.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator

from hutch.errors import HutchError, error
from hutch.service.lifecycle import PAUSED, RUNNING, wrong_state
from hutch.service.parts import host_errors
from hutch.service.records import Records
from hutch.service.registry import Entry
from hutch.service.sandbox import Sandbox
from hutch.tasks import Scope

log = logging.getLogger(__name__)


class Pauses:
    """Pauses and wakes the sandboxes of one host."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._acts = Scope("pauses")

    # ---- what can be asked for

    async def awake(self, entry: Entry) -> Sandbox:
        """Return the running sandbox, waking it if it is paused or parked.

        There is no step between the return of this and its caller. Raises wrong_state, and what
        `resume` raises.
        """
        while entry.turning or entry.info.state is PAUSED:
            await self.resume(entry)
        return entry.running()

    async def pause(self, entry: Entry) -> None:
        """Stop the CPUs of a running sandbox; one that is paused is left as it is.

        Raises wrong_state, engine_failed, sandbox_died, disk_full.
        """
        await self._act(entry, self._pause)

    async def resume(self, entry: Entry) -> None:
        """Let a paused sandbox go on; one that runs is left as it is.

        Raises wrong_state, engine_failed, sandbox_died, disk_full.
        """
        await self._act(entry, self._resume)

    async def close(self) -> None:
        """Undo what is under way."""
        await self._acts.close()

    # ---- acts

    async def _act(self, entry: Entry, act: Callable[[Entry], Awaitable[None]]) -> None:
        task = self._acts.start(entry.info.id, _outcome(entry, act))
        await asyncio.wait({task})
        if task.cancelled():
            raise error(
                "sandbox_died",
                f"sandbox {entry.info.name} was stopped, or the daemon, while this was under way",
                hint=f"see what has become of it with `hutch inspect {entry.info.name}`",
            )
        if (failure := task.result()) is not None:
            raise failure

    async def _pause(self, entry: Entry) -> None:
        if entry.info.state is PAUSED:
            return
        sandbox = entry.running()
        with _turning(entry):
            await self._records.move(entry, PAUSED)
            try:
                await sandbox.pause()
            except BaseException:
                await self._undo_pause(entry, sandbox)
                raise
        self._records.emit("sandbox.paused", entry)

    async def _undo_pause(self, entry: Entry, sandbox: Sandbox) -> None:
        """Leave a sandbox running whose pause has failed, or whose end has begun meanwhile."""
        with contextlib.suppress(HutchError):  # it may have died, which its end tells
            await sandbox.resume()
        with contextlib.suppress(HutchError):
            await self._records.move(entry, RUNNING)

    async def _resume(self, entry: Entry) -> None:
        if entry.info.state is RUNNING:
            return
        sandbox = entry.sandbox
        if entry.info.state is not PAUSED or sandbox is None or sandbox.ending:
            raise wrong_state(entry.info, "paused")
        with _turning(entry):
            # Still paused on record until it runs: a crash before that leaves a paused sandbox.
            await sandbox.resume()
            await self._records.move(entry, RUNNING)
        self._records.emit("sandbox.resumed", entry)


@contextlib.contextmanager
def _turning(entry: Entry) -> Iterator[None]:
    entry.turning = True
    try:
        yield
    finally:
        entry.turning = False
        entry.notify()


async def _outcome(entry: Entry, act: Callable[[Entry], Awaitable[None]]) -> HutchError | None:
    """Do something to a sandbox under its lock; return the failure, which is its caller's."""
    try:
        with host_errors():
            async with entry.lock:
                entry.check_present()
                await act(entry)
    except HutchError as failure:
        return failure
    return None
