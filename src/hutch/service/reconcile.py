"""After a restart: the rows against what is really there, before anyone is served.

Living machines are adopted, half-done steps are finished or undone, and whatever of ours has no row
is removed: directories, sockets, engine processes. A second run changes nothing.
"""

import asyncio
import logging
import shutil
from pathlib import Path

from hutch.engine.base import Machine, MachineRecord
from hutch.errors import HutchError
from hutch.models import ExitStatus, SandboxState, StopReason
from hutch.service.lifecycle import rest_state
from hutch.service.lives import Lives
from hutch.service.names import ID_PREFIX
from hutch.service.parts import Parts
from hutch.service.records import machine_directory
from hutch.service.registry import Entry, Registry
from hutch.service.remains import clear_away
from hutch.tasks import in_thread

log = logging.getLogger(__name__)

_LOST = "its VM ended while the daemon was away"
_NO_MEMORY = "its parked memory is gone"
_UNDONE = "the daemon ended while it was starting"


async def reconcile(parts: Parts, registry: Registry, lives: Lives) -> None:
    """Fill the registry from the store and make both agree with the machine."""
    await lives.pools.forget_members()
    for row in await parts.store.sandboxes():
        registry.add(row)
    for entry in registry:
        await lives.booter.layers.take_over(entry.info.id, entry.row.layer)
    await lives.booter.layers.open()
    await _remove_orphans(parts, registry)
    await lives.templates.open()
    async with asyncio.TaskGroup() as group:
        for entry in registry:
            group.create_task(_mend(parts, lives, entry))


async def _mend(parts: Parts, lives: Lives, entry: Entry) -> None:
    """Bring one sandbox to a state that is true. One that cannot be mended harms no other."""
    try:
        machine = await _find(parts, entry)
        state = entry.info.state
        if state is SandboxState.PARKED or (
            state is SandboxState.STARTING and await lives.parking.is_complete(entry.row)
        ):
            await _leave_parked(lives, entry, machine)
            return
        await lives.parking.clear(entry.row)  # which was not completed, or is of no use any more
        if state is SandboxState.STARTING:
            await _undo_start(lives, entry, machine)
        elif state.has_machine:
            await _take_up(lives, entry, machine)
        else:
            await _see_it_gone(parts, lives, entry, machine)
    except HutchError:
        log.exception("sandbox %s could not be mended", entry.info.name)


async def _find(parts: Parts, entry: Entry) -> Machine | None:
    """Return the machine that a row names, if it lives and answers; a deaf one is ended."""
    if entry.row.machine is None:
        return None
    try:
        record = MachineRecord.from_json(entry.row.machine)
    except (KeyError, ValueError, TypeError):
        log.exception("the machine of %s is not on record in a readable way", entry.info.name)
        return None
    try:
        return await parts.engine.adopt(record)
    except HutchError as failure:
        log.warning("the VM of %s is ended: %s", entry.info.name, failure)
        record.process.kill()
        await record.process.wait()
        return None


async def _undo_start(lives: Lives, entry: Entry, machine: Machine | None) -> None:
    await _end(machine)
    await lives.records.clear_machine(entry)
    await lives.records.settle(entry, rest_state(entry.info))
    log.info("the start of %s is undone: %s", entry.info.name, _UNDONE)
    if entry.info.auto_remove or _abandoned(entry):
        entry.removed = True
        await lives.erase(entry)


async def _take_up(lives: Lives, entry: Entry, machine: Machine | None) -> None:
    if machine is None:
        await lives.finish(entry, ExitStatus(StopReason.ENGINE, None, _LOST))
        return
    sandbox = lives.adopt(entry, machine, found=True)
    try:
        if entry.info.state is SandboxState.PAUSED:
            await sandbox.pause()
        elif await machine.paused():
            log.warning("the VM of %s was left stopped, and goes on", entry.info.name)
            await machine.resume()
    except HutchError as failure:
        # It may have ended just now: whoever supervises it sees.
        log.warning("the VM of %s does not do as it is told: %s", entry.info.name, failure)
    lives.supervise(entry, sandbox)
    if entry.info.state is SandboxState.STOPPING:
        sandbox.end(StopReason.STOPPED, grace=0.0)
    log.info("the VM of %s runs on", entry.info.name)


async def _leave_parked(lives: Lives, entry: Entry, machine: Machine | None) -> None:
    """Leave a sandbox parked.

    What was begun with its memory, and is not the sandbox's on record, wrote to another layer.
    """
    starting = entry.info.state is SandboxState.STARTING
    await _end(machine)
    await lives.records.clear_machine(entry)
    if not await lives.parking.is_complete(entry.row):
        await lives.finish(entry, ExitStatus(StopReason.ENGINE, None, _NO_MEMORY))
        await lives.parking.clear(entry.row)
        return
    if starting:
        await lives.records.settle(entry, SandboxState.PARKED)
    lives.pauses.watch(entry)
    lives.ports.serve(entry)


async def _see_it_gone(parts: Parts, lives: Lives, entry: Entry, machine: Machine | None) -> None:
    """Finish what follows the end of a sandbox: its VM's traces go, and it itself if it is to."""
    if machine is not None or entry.row.machine is not None:
        await _end(machine)
        await lives.records.clear_machine(entry)
    else:
        await clear_away(parts, parts.places.machine(entry.info.id))
    ended = entry.info.auto_remove and entry.info.state is not SandboxState.CREATED
    if ended or _abandoned(entry):
        entry.removed = True
        await lives.erase(entry)


def _abandoned(entry: Entry) -> bool:
    """Tell whether a `run` was cut off before its sandbox ran: who asked for it never got it."""
    return entry.row.spec.provisional and entry.info.started_at is None


async def _end(machine: Machine | None) -> None:
    if machine is not None:
        await machine.kill()


async def _remove_orphans(parts: Parts, registry: Registry) -> None:
    """Remove what belongs to no row: a crash came between two steps."""
    known = {entry.info.id for entry in registry}
    places = parts.places
    for entry in registry:
        directory, usual = machine_directory(places, entry.row), places.machine(entry.info.id)
        known.add(directory.name)
        if directory != usual:
            # It was put back to a checkpoint: the VM before that is not its own any more.
            await clear_away(parts, usual)
    machines = await in_thread(_directories, places.runtime)
    lasting = await in_thread(_directories, places.sandboxes)
    for sandbox_id in machines | lasting:
        if sandbox_id not in known:
            log.warning("removing what is left of %s", sandbox_id)
            await clear_away(parts, places.machine(sandbox_id))
            await in_thread(shutil.rmtree, places.sandbox(sandbox_id), ignore_errors=True)


def _directories(parent: Path) -> set[str]:
    if not parent.is_dir():
        return set()
    return {path.name for path in parent.iterdir() if path.name.startswith(ID_PREFIX)}
