"""One moment of a living sandbox: its memory and its disk, taken in one pause.

Whatever fails, and whoever asked goes away, the sandbox is left as it was: neither paused nor
frozen by this. What is made of the moment is the caller's; it must not know of snapshots or forks.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from hutch.engine.base import Frozen, Machine, MachineType
from hutch.errors import HutchError, error
from hutch.models import CpuInfo
from hutch.service.capacity import copy_need
from hutch.service.flatten import LAYERS_MAX
from hutch.service.layers import Layers
from hutch.service.lifecycle import PARKED, PAUSED, RUNNING, wrong_state
from hutch.service.lives import Lives
from hutch.service.logfile import copy_logs
from hutch.service.parts import Parts, host_errors
from hutch.service.registry import Entry
from hutch.service.sandbox import Sandbox
from hutch.service.thinning import Thinning
from hutch.state.base import LayerRow, SandboxRow
from hutch.tasks import both, in_thread, settle, settle_in_thread

log = logging.getLogger(__name__)

TakeLogs = Path | Callable[[Path], None]
"""Where logs are copied to, or what takes them from the directory that they are in."""


@dataclass(frozen=True, slots=True)
class Point:
    """What was taken of a machine: its memory, and the uppermost layer of its disk.

    `row` is its sandbox as it was then; `seconds` is how long its programs stood still.
    """

    row: SandboxRow
    machine: Machine
    frozen: Frozen
    layer: str
    seconds: float


class Captures:
    """Holds sandboxes of one host for their capture."""

    def __init__(self, parts: Parts, lives: Lives) -> None:
        self._parts = parts
        self._lives = lives
        self.thinning = Thinning(parts, lives.booter.layers)

    @contextlib.asynccontextmanager
    async def hold(self, entry: Entry) -> AsyncIterator["Source"]:
        """Hold a sandbox as it is, for the length of the block; a parked one is woken first.

        Nobody starts, pauses, parks or removes it meanwhile. Raises sandbox_not_found, and what
        waking it raises.
        """
        while True:
            if entry.info.state is PARKED:
                await self._lives.awake(entry)
            async with entry.lock:
                entry.check_present()
                if entry.info.state is PARKED:
                    continue
                yield Source(self._parts, self._lives.booter.layers, entry)
                return


class Source:
    """A sandbox that is held: see `Captures.hold`."""

    def __init__(self, parts: Parts, layers: Layers, entry: Entry) -> None:
        self._parts = parts
        self._layers = layers
        self._entry = entry

    @property
    def row(self) -> SandboxRow:
        """The sandbox as it is."""
        return self._entry.row

    @property
    def layer(self) -> str:
        """The uppermost layer of its disk. Raises wrong_state when there is nothing on it yet."""
        info, layer = self._entry.info, self._entry.row.layer
        if layer is None or (info.started_at is None and info.origin is None):
            raise wrong_state(info, "running")
        return layer

    @property
    def alive(self) -> bool:
        """Whether it has a VM whose memory can be captured."""
        return self._entry.sandbox is not None and self._entry.info.state in (RUNNING, PAUSED)

    @property
    def board(self) -> MachineType:
        """The board of the VM that it has: see `alive`."""
        assert self._entry.sandbox is not None
        return self._entry.sandbox.machine.record.machine

    async def cpu(self) -> CpuInfo | None:
        """Return the CPU that its VM has (None: it has no VM). Raises sandbox_died."""
        sandbox = self._entry.sandbox
        return None if sandbox is None else await sandbox.machine.cpu()

    async def capture(
        self, directory: Path, *, logs: TakeLogs | None, freeze: bool = True, sync: bool = False
    ) -> Point:
        """Take memory and disk; the sandbox goes on with a new layer over its disk.

        Its programs are frozen meanwhile, and their logs of that moment go to `logs`. Only what
        is never to be taken up may be captured without `freeze`: in a clone they would run before
        it has an identity. With `sync` the disk is of use without the memory. That is held by the
        engine for `directory`, and the caller's to drop. Carried out to its end also when this is
        cancelled.

        Raises wrong_state, no_capacity, guest_timeout, disk_full, engine_failed, sandbox_died.
        """
        return await settle(self._capture(directory, logs, freeze=freeze, sync=sync))

    async def _capture(
        self, directory: Path, logs: TakeLogs | None, *, freeze: bool, sync: bool
    ) -> Point:
        entry, sandbox = self._entry, self._entry.sandbox
        if sandbox is None or not self.alive or sandbox.ending:
            raise wrong_state(entry.info, "running")
        before, row = self.layer, entry.row
        seconds = 0.0

        @contextlib.asynccontextmanager
        async def still() -> AsyncIterator[None]:
            nonlocal seconds
            async with _still(sandbox, freeze=freeze, sync=sync):
                began = time.monotonic()
                disk.used = True  # before that it is nothing but opened
                yield
                if logs is not None:
                    await self._copy_logs(logs)
            seconds = time.monotonic() - began

        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self._layers.pinned(before))
            use, disk = await both(
                in_thread(sandbox.machine.memory),
                stack.enter_async_context(self._next_layer()),
            )
            size, subject = use.private + use.frozen, f"a copy of sandbox {row.info.name}"
            need = copy_need(row.info.id, subject, size)
            async with self._parts.capacity.admit(need), _answering(entry, sandbox):
                frozen = await self._parts.engine.capture(
                    sandbox.machine, directory, next_disk=disk.path, still=still()
                )
        return Point(row, sandbox.machine, frozen, before, round(seconds, 4))

    async def _copy_logs(self, target: TakeLogs) -> None:
        # Before the programs go on: what they write from now on is not in the moment.
        with host_errors():
            source = self._parts.places.logs(self._entry.info.id)
            if isinstance(target, Path):
                await settle_in_thread(copy_logs, source, target)
            else:
                await settle_in_thread(target, source)

    async def switch(self) -> str:
        """Give a sandbox without a VM a new layer; returns the one below it, not written again.

        Raises wrong_state, disk_full, engine_failed.
        """
        before = self.layer
        if self._entry.sandbox is not None or self._entry.info.state.has_machine:
            raise wrong_state(self._entry.info, "stopped")
        await settle(self._switch())
        return before

    async def _switch(self) -> None:
        async with self._next_layer() as disk:
            disk.used = True

    @contextlib.asynccontextmanager
    async def _next_layer(self) -> AsyncIterator["_Disk"]:
        """Make a new layer over the disk and put it on record; undone if it was not used.

        Once the engine knows of it nobody can tell whether it is written to. It stays then: over
        the layer below, a disk with an empty one and a disk without it say the same.
        """
        before = self.layer
        if len(self._layers.chain(before)) >= LAYERS_MAX:
            name = self._entry.info.name
            raise error(
                "no_capacity",
                f"the disk of sandbox {name} has {LAYERS_MAX} layers, one for each moment taken",
                hint=f"join them with `hutch restart {name}`",
            )
        layer = self._layers.plan(parent=before)
        disk = _Disk(self._layers.path(layer.id))
        try:
            try:
                await self._put(layer)
            except HutchError:
                # Nothing of it is on record, so that there is nothing to take back there.
                disk.used = True
                await self._layers.release(layer.id)
                raise
            yield disk
        finally:
            if not disk.used:
                await self._take_back(layer.id, before)

    async def _put(self, layer: LayerRow) -> None:
        parts, info = self._parts, self._entry.info
        with host_errors():
            base = await parts.base_disk(parts.settings.home, info.disk)
            # The file first: on record as the uppermost one, a start of the sandbox needs it.
            await self._layers.make(layer, info.disk, base)
        self._entry.row = await parts.store.put_layer(info.id, layer, template=info.template)

    async def _take_back(self, layer_id: str, before: str) -> None:
        entry = self._entry
        try:
            entry.row = await self._parts.store.set_layer(entry.info.id, before)
        except HutchError as failure:
            log.warning("the layer %s stays over %s: %s", layer_id, before, failure)
            entry.row = dataclasses.replace(entry.row, layer=layer_id)
            return
        await self._layers.release(layer_id)


@dataclass(slots=True)
class _Disk:
    """A layer's file, and whether the engine may have been told of it."""

    path: Path
    used: bool = False


@contextlib.asynccontextmanager
async def _answering(entry: Entry, sandbox: Sandbox) -> AsyncIterator[None]:
    """Let a paused sandbox go on for the length of the block: its agent is to answer."""
    if entry.info.state is not PAUSED:
        yield
        return
    try:
        await sandbox.resume()
        yield
    finally:
        with contextlib.suppress(HutchError):  # its end has begun, or its VM is gone
            await sandbox.pause()


@contextlib.asynccontextmanager
async def _still(sandbox: Sandbox, *, freeze: bool, sync: bool) -> AsyncIterator[None]:
    """Freeze a sandbox's programs for the length of the block; its clock is put right then."""
    try:
        guest = await sandbox.connection.get()
        if sync:
            await guest.sync()  # before they are frozen, because it may take a while
        if freeze:
            await _freeze(sandbox)
        if sync:
            await guest.sync()
        yield
    finally:
        await _let_go(sandbox)


async def _freeze(sandbox: Sandbox) -> None:
    try:
        await sandbox.freeze()
    except HutchError as cause:
        if cause.code != "guest_timeout":
            raise
        raise error(
            "guest_timeout",
            f"the programs could not be stopped for a moment: {cause.message}",
            hint="try again when the sandbox is less busy",
        ) from cause


async def _let_go(sandbox: Sandbox) -> None:
    """Thaw a sandbox and put its clock right, on its next connection if this one fails."""
    try:
        await sandbox.thaw()
        await (await sandbox.connection.get()).keep_clock()
    except HutchError as failure:
        log.warning("the agent of a sandbox does not answer after its capture: %s", failure)
        if (guest := sandbox.connection.current) is not None:
            await guest.close()
