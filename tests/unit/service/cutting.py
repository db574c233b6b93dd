"""Work that is cut off at each of the moments in which it waits, one after the other.

A caller may go away at any time, and a daemon may end: what they were waiting for is cancelled
wherever it is just then. `cuts` tries all of these moments; `held` tells what is left in use.
"""

import asyncio
import contextlib
import contextvars
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from pathlib import Path
from typing import Any

from hutch.models import SandboxState
from hutch.service.host import HostService
from tests.unit.service.world import World
from tests.waiting import until

Begin = Callable[[], Coroutine[Any, Any, object]]

_cut: contextvars.ContextVar["Cut | None"] = contextvars.ContextVar("cut", default=None)

_CANCELLED_THEMSELVES = ("boots/", "revivals/")
"""Beginnings of the names of tasks that whoever waits for them cancels, or whoever stops them."""

_OURS = ("/hutch/service/", "/hutch/tasks.py", "/tests/unit/service/")


class Cut:
    """One moment: the `at`-th time that the work, or a task which it has started, waits.

    If `late`, what it waits for has just come about then, and its result is lost. At that moment
    `act` is called, by default to cancel the work.
    """

    def __init__(self, at: int, *, late: bool, act: Callable[[], object] | None = None) -> None:
        self._at = at
        self._late = late
        self._act = act
        self._seen = 0
        self.task: asyncio.Task[object] | None = None
        self.reached = False

    def waits(self, awaited: Any) -> None:
        """Take note that a task of the work is about to wait for a future (None: for a turn)."""
        if self._seen == self._at:
            self.reached = True
            if self._late and awaited is not None:
                task = asyncio.current_task()
                awaited.add_done_callback(lambda _: self._strike(task))
            else:
                self._strike(None)
        self._seen += 1

    def _strike(self, task: "asyncio.Task[Any] | None") -> None:
        if self._act is not None:
            self._act()
            return
        if task is not None and task.get_name().startswith(_CANCELLED_THEMSELVES):
            task.cancel()
        assert self.task is not None
        self.task.cancel()


class Noted:
    """Work of which is known whether it came to its end: `done`."""

    def __init__(self, begin: Callable[[], Awaitable[object]]) -> None:
        self._begin = begin
        self.done = False

    async def __call__(self) -> None:
        self.done = False
        await self._begin()
        self.done = True


class _Counted(Coroutine[Any, Any, Any]):
    """A coroutine that tells a cut each time when it waits."""

    def __init__(self, work: Coroutine[Any, Any, Any], cut: Cut) -> None:
        self._work = work
        self._cut = cut

    def send(self, value: Any) -> Any:
        return self._told(self._work.send(value))

    def throw(self, *failure: Any) -> Any:
        return self._told(self._work.throw(*failure))

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self._work.__await__())

    def _told(self, awaited: Any) -> Any:
        self._cut.waits(awaited)
        return awaited


def _make(
    loop: asyncio.AbstractEventLoop,
    work: Any,
    context: contextvars.Context | None = None,
) -> "asyncio.Task[Any]":
    cut = _cut.get() if context is None else context.get(_cut)
    code = getattr(work, "cr_code", None)
    if cut is not None and code is not None and any(part in code.co_filename for part in _OURS):
        work = _Counted(work, cut)
    return asyncio.Task(work, loop=loop, context=context)


@contextlib.contextmanager
def _counting() -> Iterator[None]:
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    loop.set_task_factory(_make)
    try:
        yield
    finally:
        loop.set_task_factory(before)


async def carried_out(begin: Begin, cut: Cut) -> bool:
    """Carry out work with a cut in it; return whether it came to that. Failures are its own."""
    context = contextvars.copy_context()
    context.run(_cut.set, cut)
    with _counting():
        cut.task = asyncio.get_running_loop().create_task(begin(), context=context)
        await asyncio.wait({cut.task})
    if not cut.task.cancelled():
        cut.task.exception()
    return cut.reached


async def cuts(begin: Begin, act: Callable[[], object] | None = None) -> AsyncIterator[str]:
    """Carry out some work again and again, each time with a cut at a later moment of it.

    The block, which gets the name of the moment, is the time to look at what is left. The last time
    nothing is cut off any more. Some of the moments are left out unless $HUTCH_TEST_CUTS is `all`.
    """
    everything = os.environ.get("HUTCH_TEST_CUTS") == "all"
    for number in itertools.count():
        at, late = (number // 2, number % 2 == 1) if everything else (number * 3, number % 2 == 1)
        reached = await carried_out(begin, Cut(at, late=late, act=act))
        yield f"{'after' if late else 'in'} its wait {at}"
        if not reached:
            assert at, "it never waits"
            return


async def settled(world: World, service: HostService) -> list[str]:
    """Return what is in use or on record that should not be, once what is under way is over."""
    found: list[str] = []

    async def nothing() -> bool:
        found[:] = [*_in_use(world, service), *await _off_record(world, service)]
        return not found

    check: Callable[[], bool | Awaitable[bool]] = nothing
    with contextlib.suppress(AssertionError):
        await until(check, timeout=20)
    return found


def _in_use(world: World, service: HostService) -> Iterator[str]:
    lives, registry = service._lives, service._registry
    templates, layers = lives.templates, lives.booter.layers
    yield from (f"the name {name}" for name in registry._reserved)
    yield from (f"a pin of {layer}" for layer, count in layers._pins.items() if count)
    members = [each for pool in lives.pools._pools.values() for each in pool._ready]
    members += lives.pools._claimed.values()
    leases = templates._leases.total() - len(members)
    if leases:
        yield f"{leases} leases of templates"
    yield from (f"the flight over {key}" for key in templates._flights._locks)
    if len(templates._numbers) != templates._sites._value:
        yield "the number of a build"
    yield from (f"room for {each}" for each in service._parts.capacity._pending)
    yield from (f"the snapshot {each}, which leaves" for each in service.snapshots.shelf.leaving)
    for entry in registry:
        if entry.lock.locked() or entry.boot is not None or entry.turning:
            yield f"sandbox {entry.info.name}"
        if (entry.sandbox is not None) != entry.info.state.has_machine:
            yield f"sandbox {entry.info.name}, which is {entry.info.state}"
    for sandbox_id, publication in service.ports._published.items():
        owner = registry.by_id(sandbox_id)
        if owner is None or owner.info.state in (SandboxState.STOPPED, SandboxState.FAILED):
            yield f"the ports of {sandbox_id}"
        elif publication.connections:
            yield f"connections to {sandbox_id}"
    yield from (f"ports for {each.name}" for each in service.ports._reserved)
    known = world.templates()
    yield from (f"the memory for {path}" for path in world.engine._memories if path not in known)
    alive = {f"sandbox {e.info.name}" for e in registry if e.sandbox is not None}
    for task in asyncio.all_tasks():
        owner, _, what = task.get_name().partition("/")
        if owner.startswith("sandbox ") and owner not in alive:
            yield f"the task {task.get_name()}"
        if what and owner in ("boots", "revivals", "pauses", "members", "undos"):
            yield f"the task {task.get_name()}"


async def _off_record(world: World, service: HostService) -> list[str]:
    """Return what is otherwise on record than in memory, or than it is."""
    store, registry = service._parts.store, service._registry
    layers, pools = service._lives.booter.layers, service._lives.pools
    found = []
    rows = {row.info.id: row for row in await store.sandboxes()}
    entries = {entry.info.id: entry for entry in registry}
    found += [f"the row of {each}" for each in rows.keys() ^ entries.keys()]
    for key in rows.keys() & entries.keys():
        row, entry = rows[key], entries[key]
        if row != entry.row:
            found.append(f"the row of {row.info.name}: {row} in memory {entry.row}")
    members = {row.info.id for row in await store.members()}
    ready = {each.id for pool in pools._pools.values() for each in pool._ready}
    found += [f"the member {each}" for each in members ^ ready]
    known = {row.id for row in await store.layers()}
    found += [f"the layer {each}" for each in known ^ layers._rows.keys()]
    files = {path.name.partition(".")[0] for path in world.layers()}
    held = set(layers._held())
    found += [f"the layer {each}, which nobody holds" for each in known if not layers._in_use(each)]
    found += [f"the file of the layer {each}" for each in files - known]
    found += [f"the layer {each}, which has no file" for each in held - files]
    shelf = service.snapshots.shelf
    found += [f"the snapshot {row.info.id}" for row in await store.snapshots() if not row.ready]
    found += [f"the snapshot {row.info.id}" for row in shelf.values() if not row.ready]
    vms = {process.record.directory.name for process in world.engine.running()}
    machines = [entry.row.machine for entry in registry]
    owners = {Path(each["directory"]).name for each in machines if each is not None} | ready
    found += [f"the VM of {each}" for each in vms ^ owners]
    directories = {path.name for path in world.settings.runtime_dir.iterdir() if path.is_dir()}
    found += [f"the directory of the VM {each}" for each in directories - owners]
    attached = set(world.network.attached)
    found += [f"the network of {each}" for each in attached ^ owners]
    found += [f"the plug of {each}" for each in service._parts.plugs._held.keys() ^ owners]
    lasting = {path.name for path in (world.settings.home / "sandboxes").glob("*")}
    found += [f"the directory of {each}" for each in lasting - entries.keys() - ready]
    return found


def states(service: HostService) -> set[SandboxState]:
    """Return the states that its sandboxes are in."""
    return {entry.info.state for entry in service._registry}
