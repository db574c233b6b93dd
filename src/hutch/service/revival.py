"""New sandboxes that begin where another one was: children of a fork, and what is restored.

Each is on record, with its disk, before it is started, and gone without a trace if it does not come
up. From then on it is like a sandbox that was found after a restart of the daemon: its programs are
in it, and their logs go on. It must not know where the moment comes from.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from hutch.engine.base import Frozen, MachineType
from hutch.errors import HutchError, error
from hutch.guest.base import Guest
from hutch.models import SandboxInfo, SandboxState, timestamp
from hutch.networking import PublishedPort
from hutch.service.boot import Late, Stalled
from hutch.service.lifecycle import RUNNING, STARTING, rest_state
from hutch.service.lives import Lives
from hutch.service.logfile import copy_logs
from hutch.service.machine import identify_clone
from hutch.service.names import ID_PREFIX, new_id
from hutch.service.parts import Parts, host_errors
from hutch.service.records import BootRecord
from hutch.service.registry import Entry, Registry
from hutch.service.spec import default_hostname
from hutch.state.base import LayerRow, SandboxRow
from hutch.tasks import Scope, settle, settle_in_thread

log = logging.getLogger(__name__)

T = TypeVar("T")
Begin = Callable[[Entry], Awaitable[None]]

AT_FAULT: Final = "template"
"""The detail of an engine's error that says that a memory will never load."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a new sandbox begins.

    `source` is the sandbox that it goes on from, as it was; `id` is that of the snapshot or the
    sandbox which it is made from. `layer` is what its disk is put over, `logs` the directory with
    its programs' logs (None: they are not taken over).

    Where a memory is there before it is certain that all of its moment is, `settled` waits for
    that, and raises why it is not; `logs` need not be there before, and no program goes on.

    What does not lie on disk as that has `fill_disk`, which writes the disk into a layer that is
    over none (`layer` is None then), and `put_logs`, which writes the logs into a directory.

    `ports` are those that it would publish: another one is found for each that is 0 or taken.
    """

    source: SandboxRow
    id: str
    layer: str | None
    logs: Path | None = None
    settled: Callable[[], Awaitable[None]] | None = None
    fill_disk: Callable[[Path], Awaitable[None]] | None = None
    put_logs: Callable[[Path], None] | None = None
    ports: Sequence[PublishedPort] = ()


class Revivals:
    """Makes the new sandboxes of one host that begin where others were."""

    def __init__(self, parts: Parts, registry: Registry, lives: Lives) -> None:
        self._parts = parts
        self._registry = registry
        self._lives = lives
        self._scope = Scope("revivals")

    async def go_on(self, name: str, origin: Origin, frozen: Frozen, board: MachineType) -> Entry:
        """Make a sandbox that runs on from a memory, which is of a machine of that board.

        It may be one that the engine expects. Raises engine_failed (with `template` when the memory
        will never load), boot_failed, name_taken, no_capacity, disk_full; nothing is left then, nor
        when this is cancelled.
        """
        begin = functools.partial(self._go_on, frozen, board, origin)
        return await self._owned(name, origin, begin)

    async def boot(self, name: str, origin: Origin) -> Entry:
        """Make a sandbox that boots from a disk. Raises what a start raises; nothing is left."""
        return await self._owned(name, origin, self._boot)

    async def close(self) -> None:
        """Undo what is under way."""
        await self._scope.close()

    # ---- a life of its own

    async def _owned(self, name: str, origin: Origin, begin: Begin) -> Entry:
        """Make a sandbox in a task of our own, which is undone when its caller goes away."""
        task = self._scope.start(name, _outcome(self._make(name, origin, begin)))
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            while not task.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({task})
            if not task.cancelled() and isinstance(made := task.result(), Entry):
                # It came up before it could be cancelled, and nobody wants it any more.
                await settle(self._give_up(made))
            raise
        if task.cancelled():
            raise error("sandbox_died", f"{name} was stopped, or the daemon, while it was made")
        result = task.result()
        if isinstance(result, HutchError):
            raise result
        return result

    async def _give_up(self, entry: Entry) -> None:
        try:
            await self._lives.remove(entry, force=True)
        except HutchError as failure:
            if not entry.removed:  # by somebody else
                log.error("%s was not made, and stays: %s", entry.info.name, failure)

    async def _make(self, name: str, origin: Origin, begin: Begin) -> Entry:
        sandbox_id = new_id(ID_PREFIX)
        try:
            with self._lives.ports.reserving(name) as reserved:
                self._lives.ports.take_where_free(reserved, origin.ports)
                new = _described(origin, sandbox_id, name, reserved.ports)
                entry = await self._put_on_record(new, origin)
                self._lives.ports.keep(reserved, entry)
            await begin(entry)
        except BaseException:
            await settle(self._undo(sandbox_id))
            raise
        return entry

    async def _put_on_record(self, new: SandboxRow, origin: Origin) -> Entry:
        layer = self._lives.booter.layers.plan(parent=origin.layer)
        entry = await settle(self._add(new, layer))
        async with entry.lock:  # who removes it now waits until there is all that is to be removed
            entry.check_present()
            await self._make_files(entry.info, layer, origin)
        self._lives.records.emit("sandbox.created", entry, image=new.info.image)
        return entry

    async def _make_files(self, info: SandboxInfo, layer: LayerRow, origin: Origin) -> None:
        parts = self._parts
        with host_errors():
            base = await parts.base_disk(parts.settings.home, info.disk)
            path = await self._lives.booter.layers.make(layer, info.disk, base)
            if origin.fill_disk is not None:
                await origin.fill_disk(path)
            directory = parts.places.sandbox(info.id)
            await settle_in_thread(directory.mkdir, mode=0o700, parents=True, exist_ok=True)
            if origin.put_logs is not None:
                await settle_in_thread(origin.put_logs, parts.places.logs(info.id))

    async def _add(self, new: SandboxRow, layer: LayerRow) -> Entry:
        row = await self._parts.store.add_sandbox(
            new.spec,
            new.info,
            slots=self._parts.settings.uid_count,
            layer=layer,
            generation=new.generation,
        )
        self._lives.booter.layers.know(layer)
        return self._registry.add(row)

    async def _undo(self, sandbox_id: str) -> None:
        for entry in self._registry:
            if entry.info.id == sandbox_id:
                # By force: somebody else may have found and started it before we came to that.
                await self._give_up(entry)

    # ---- beginning

    async def _boot(self, entry: Entry) -> None:
        await self._lives.start(entry, None, attach=False, template=False)

    async def _go_on(
        self, frozen: Frozen, board: MachineType, origin: Origin, entry: Entry
    ) -> None:
        async with entry.lock:
            entry.check_present()
            # Whoever stops, kills or removes it meanwhile cancels this.
            entry.boot = asyncio.current_task()
            try:
                await self._take_up(frozen, board, origin, entry)
            except BaseException:
                if entry.info.state is STARTING:
                    await settle(self._lives.records.settle(entry, rest_state(entry.info)))
                raise
            finally:
                entry.boot = None
                entry.notify()

    async def _take_up(
        self, frozen: Frozen, board: MachineType, origin: Origin, entry: Entry
    ) -> None:
        parts, records = self._parts, self._lives.records
        began = time.monotonic()
        await records.move(entry, STARTING, error=None)
        entry.row = await parts.store.next_generation(entry.info.id)
        recipe = await self._lives.booter.recipe(entry.info)
        own = self._lives.booter.machine_spec(entry.row, recipe, str(entry.row.layer))
        own = dataclasses.replace(own, machine=board)
        record = BootRecord(parts.store, entry, closed=True)
        try:
            machine, guest = await self._lives.booter.take_up(
                entry.row,
                record,
                own,
                frozen,
                functools.partial(self._begin, entry, origin),
            )
        except (Stalled, Late) as cause:
            raise error(
                "boot_failed",
                f"sandbox {entry.info.name} did not go on: {str(cause) or 'no time was left'}",
                hint="see `hutch doctor`",
            ) from cause
        sandbox = self._lives.adopt(entry, machine)
        try:
            sandbox.connection.use(guest)
            now, timeout = time.time(), entry.info.timeout
            await records.move(
                entry,
                RUNNING,
                started_at=timestamp(now),
                timeout_at=timestamp(now + timeout) if timeout else None,
                pid=machine.record.process.pid,
                engine=parts.engine.name,
                accelerator=recipe.verdict.accelerator.value,
                machine=machine.record.machine.value,
                kernel=recipe.kernel.name,
                boot_seconds=round(time.monotonic() - began, 4),
            )
        except BaseException:
            await settle(self._lives.put_down(entry, sandbox))
            raise
        self._lives.supervise(entry, sandbox)
        records.emit("sandbox.started", entry, boot_seconds=entry.info.boot_seconds)

    async def _begin(self, entry: Entry, origin: Origin, guest: Guest) -> None:
        """Make a clone the sandbox that it is, and only then let its programs go on."""
        await identify_clone(entry.info, entry.row.generation, guest)
        if origin.settled is not None:
            await origin.settled()
        if origin.logs is not None:
            target = self._parts.places.logs(entry.info.id)
            await settle_in_thread(copy_logs, origin.logs, target)
        # The names of that moment are there only now, with the logs.
        await self._parts.plugs.open(entry.info.id)
        await guest.thaw()


def _described(
    origin: Origin, sandbox_id: str, name: str, ports: Sequence[PublishedPort]
) -> SandboxRow:
    """Return a new sandbox like its source, with what must be its own.

    It has no client that its main process could wait for, and is none until it has come up.
    """
    spec = dataclasses.replace(
        origin.source.spec, name=name, hostname=None, detached=True, provisional=True
    )
    info = dataclasses.replace(
        origin.source.info,
        id=sandbox_id,
        name=name,
        state=SandboxState.CREATED,
        hostname=default_hostname(name),
        created_at=timestamp(),
        started_at=None,
        ended_at=None,
        timeout_at=None,
        exit=None,
        error=None,
        pid=None,
        boot_seconds=None,
        origin=origin.id,
        undone_to=None,
        undone_at=None,
        undone=[],
        ports=list(ports),
    )
    return SandboxRow(spec, info, 0, generation=origin.source.generation)


async def _outcome(work: Coroutine[Any, Any, T]) -> T | HutchError:
    """Return a failure instead of raising it: it is for who waits, not for the log."""
    try:
        with host_errors():
            return await work
    except HutchError as failure:
        return failure
