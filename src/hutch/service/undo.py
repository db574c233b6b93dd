"""Putting a sandbox back to a moment of its own: the same sandbox, with memory and disk of then.

All that can fail is done while the old VM still runs: a second one takes up the memory over a layer
of its own, gets its identity, and waits with its programs frozen. Then one write to the records
makes it the sandbox's, and only after that the old one is ended. It must not know which moments
there are.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from hutch.engine.base import Machine
from hutch.errors import HutchError, error
from hutch.models import timestamp
from hutch.service.beside import Beside, Past
from hutch.service.capture import Captures
from hutch.service.lifecycle import FAILED, PAUSED, RUNNING, STOPPED, STOPPING, wrong_state
from hutch.service.lives import Lives
from hutch.service.logfile import put_back_logs
from hutch.service.parts import Parts, host_errors
from hutch.service.records import machine_directory
from hutch.service.registry import Entry
from hutch.service.sandbox import Sandbox
from hutch.state.base import LayerRow, SandboxRow
from hutch.tasks import Scope, settle, settle_in_thread

log = logging.getLogger(__name__)

_FROM: Final = (RUNNING, PAUSED, STOPPED, FAILED)
"""The states in which a sandbox can be put back."""


OpenPast = Callable[[], AbstractAsyncContextManager[Past]]

Undone = Callable[[], Sequence[str]]
"""Returns the ids of the moments that the sandbox will be without; asked while it is held."""


class Undos:
    """Puts the sandboxes of one host back."""

    def __init__(self, parts: Parts, lives: Lives, captures: Captures) -> None:
        self._parts = parts
        self._lives = lives
        self._captures = captures
        self._layers = lives.booter.layers
        self._beside = Beside(parts, lives.booter)
        self._scope = Scope("undos")

    async def put_back(self, entry: Entry, past: OpenPast, undone: Undone) -> None:
        """Put a sandbox back; its own task, which goes to its end whatever becomes of who asked.

        When it fails, or the sandbox is stopped or killed meanwhile, the old VM has run on. Raises
        wrong_state, no_capacity, boot_failed, engine_failed, disk_full, and what `past` raises.
        """
        task = self._scope.start(entry.info.id, _outcome(self._act(entry, past, undone)))
        await asyncio.wait({task})
        if task.cancelled():
            raise error(
                "sandbox_died",
                f"sandbox {entry.info.name} was stopped, or the daemon, while it was put back",
                hint=f"see what has become of it with `hutch inspect {entry.info.name}`",
            )
        if (failure := task.result()) is not None:
            raise failure

    async def close(self) -> None:
        """Undo what is under way."""
        await self._scope.close()

    async def _act(self, entry: Entry, past: OpenPast, undone: Undone) -> None:
        async with self._captures.hold(entry):
            if entry.sandbox is not None and entry.sandbox.ending:
                await entry.rest()
                entry.check_present()
            if entry.info.state not in _FROM:
                raise wrong_state(entry.info, "running")
            try:
                with (
                    entry.turn(undoing=True),
                    self._lives.pools.starting(),
                    contextlib.ExitStack() as begun,
                ):
                    begun.enter_context(entry.begin())
                    async with past() as moment:
                        await self._lives.records.catch_up(entry)
                        async with self._layers.over(moment.layer, entry.info.disk) as layer:
                            await self._exchange(entry, moment, layer, undone, begun)
            finally:
                if entry.sandbox is not None and entry.sandbox.ending:
                    self._lives.note_stopping(entry, entry.sandbox)
        self._lives.records.emit("sandbox.undone", entry, checkpoint=moment.snapshot.id)

    # ---- the exchange

    async def _exchange(
        self,
        entry: Entry,
        past: Past,
        layer: LayerRow,
        undone: Undone,
        begun: contextlib.ExitStack,
    ) -> None:
        """Start the new VM, make it the sandbox's, and close `begun`; till then it is undone."""
        entry.row = await self._parts.store.next_generation(entry.info.id)
        machine, guest = await self._beside.begin(entry.row, past, layer)
        before, old = entry.row, entry.sandbox
        try:
            await self._commit(entry, past, layer, undone(), machine)
        except BaseException:
            await settle(self._beside.end(machine, guest))
            raise
        # From here on it is the sandbox; there is no step in between.
        new = self._lives.adopt(entry, machine, found=True)
        new.connection.use(guest)
        begun.close()
        await settle(self._change_over(entry, past, before, old, new))

    async def _commit(
        self, entry: Entry, past: Past, layer: LayerRow, undone: Sequence[str], machine: Machine
    ) -> None:
        """Put on record that VM and disk are the sandbox's: in one step, which decides.

        When this is cancelled it is taken back. What cannot be taken back stands: the records say
        what is so.
        """
        row, now, record = entry.row, time.time(), machine.record
        changes: dict[str, Any] = {
            "pid": record.process.pid,
            "accelerator": record.accelerator.value,
            "error": None,
            "undone_to": past.snapshot.id,
            "undone_at": timestamp(now),
            "undone": list(undone),
        }
        if not row.info.state.has_machine:
            limit = row.info.timeout
            changes |= {
                "started_at": timestamp(now),
                "timeout_at": timestamp(now + limit) if limit else None,
                "ended_at": None,
                "exit": None,
            }
        vm = record.to_json()

        async def take() -> None:
            entry.row = await self._parts.store.put_back(
                row.info.id, _FROM, RUNNING, machine=vm, layer=layer.id, **changes
            )

        try:
            await settle(take())
        except BaseException:
            # A step that was cancelled was taken nevertheless, unless it has failed.
            if entry.row.layer == layer.id:
                former = {field: getattr(row.info, field) for field in changes}
                with contextlib.suppress(asyncio.CancelledError):  # nothing is lost by that
                    await settle(self._take_back(entry, row, vm, former))
            if entry.row.layer != layer.id:
                raise

    async def _take_back(
        self, entry: Entry, row: SandboxRow, vm: Mapping[str, Any], former: Mapping[str, Any]
    ) -> None:
        try:
            entry.row = await self._parts.store.put_back(
                row.info.id,
                (RUNNING, STOPPING),
                row.info.state,
                machine=row.machine,
                layer=row.layer,
                vm=vm,
                **former,
            )
        except HutchError as failure:
            if failure.code in ("wrong_state", "sandbox_not_found"):
                entry.row = row  # somebody else has changed it since
            else:
                log.error("%s stays put back: %s", row.info.name, failure)

    async def _change_over(
        self, entry: Entry, past: Past, before: SandboxRow, old: Sandbox | None, new: Sandbox
    ) -> None:
        """End the old VM, whose end is not the sandbox's, and let the programs of the past go on.

        The new one is ended by its own task if anything is wrong with it.
        """
        try:
            await self._clear_away(entry, past, before, old)
        finally:
            with _noted(entry, "its network stays closed"):
                await self._parts.plugs.open(new.machine.record.directory.name)
            self._lives.supervise(entry, new)  # first: from here on its end is seen
            await new.go_on()

    async def _clear_away(
        self, entry: Entry, past: Past, before: SandboxRow, old: Sandbox | None
    ) -> None:
        info, settings = entry.info, self._parts.settings
        if old is not None:
            old.connection.last = True
            old.connection.end(
                error(
                    "sandbox_restored",
                    f"sandbox {info.name} was put back to {past.snapshot.name}",
                    hint="what ran in it then goes on; what was started since is gone",
                    details={"checkpoint": past.snapshot.id},
                )
            )
            with _noted(entry, "its former VM is not ended"):
                await old.machine.kill()
            with _noted(entry, "its former VM is not let go of"):
                await old.close()  # its logs are closed before they are put back
        if before.machine is not None:
            with _noted(entry, "something is left of its former VM"):
                await self._beside.clear(machine_directory(self._parts.places, before))
        with _noted(entry, "its former disk is left"):
            await self._layers.release(before.layer)
        with _noted(entry, "its logs have a hole from here on"):
            await settle_in_thread(
                put_back_logs,
                past.logs,
                self._parts.places.logs(info.id),
                size=settings.log_size,
                files=settings.log_files,
            )


@contextlib.contextmanager
def _noted(entry: Entry, what: str) -> Iterator[None]:
    """Let what fails in the block be a line in the log: the sandbox goes on without it."""
    try:
        yield
    except (HutchError, OSError) as failure:
        log.warning("%s was put back, but %s: %s", entry.info.name, what, failure)


async def _outcome(work: Coroutine[Any, Any, None]) -> HutchError | None:
    """Return a failure instead of raising it: it is for who waits, not for the log."""
    try:
        with host_errors():
            await work
    except HutchError as failure:
        return failure
    return None
