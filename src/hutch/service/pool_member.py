"""A member of a pool: a clone of a template that is warm, stopped, and nobody's yet.

It has all that a sandbox has, on record too, and the id of the one that it will become: whoever
claims it finds everything in its place. It must not know how many members there are to be.
"""

import asyncio
import contextlib
import dataclasses
import logging
import secrets
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hutch.engine.base import Machine
from hutch.errors import HutchError, error
from hutch.guest.base import Guest, GuestExec, Identity, Output
from hutch.images.flight import together
from hutch.models import SandboxInfo
from hutch.networking import GATEWAY_ADDRESS, NetworkPolicy
from hutch.process import ProcessId
from hutch.service.ahead import Ahead
from hutch.service.boot import Late, Stalled
from hutch.service.capacity import Holding
from hutch.service.machine import Booted, Booter, set_up_clone
from hutch.service.names import EXEC_PREFIX, ID_PREFIX, new_id
from hutch.service.parts import Parts, host_errors
from hutch.service.plugs import Plugs
from hutch.service.priority import lower, restore
from hutch.service.recipe import Recipe, is_stale
from hutch.service.remains import clear_away
from hutch.service.templatefile import Template
from hutch.state.base import LayerRow, SandboxRow
from hutch.tasks import Scope, in_thread, settle, settle_in_thread

log = logging.getLogger(__name__)

NOBODY: Final = "pool"
"""How the host name of a member begins."""

ANSWER_SECONDS: Final = 3.0
"""A member that is claimed must have taken its identity by then, or it is thrown away."""

_WARM_SECONDS: Final = 30.0
_PROGRAMS: Final = (
    (("/bin/sh", "-c", "echo warm"), ("/bin/true",), ("/hutch-warm",)),
    (("cat", "/etc/hostname"), ("/hutch-warm",)),
)
"""What is run in each member, of each line the first that there is: that emulation has seen the way
of a program from its start to its output is most of what a member is for. There is never the last.
"""

_ROUNDS: Final = 3
"""How often each is done: emulation takes a few rounds until it is as fast as it gets."""

_ABSENT: Final = frozenset({"command_not_found", "command_not_executable"})


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A member that is ready: its VM is paused, its agent's port open on our side.

    `lease` keeps the template that its disk is based on.
    """

    row: SandboxRow
    recipe: Recipe
    template: Template
    machine: Machine
    guest: Guest
    lease: contextlib.AsyncExitStack

    @property
    def id(self) -> str:
        """The id of the sandbox that it will become."""
        return self.row.info.id

    def suits(self, info: SandboxInfo, kernel: str) -> bool:
        """Tell whether a sandbox that is to run on that kernel may become it."""
        return self.recipe.kernel.name == kernel and _size(info) == _size(self.row.info)

    async def lost(self) -> None:
        """Return when it is of no use any more: its VM has ended, or its agent has hung up."""
        async with asyncio.TaskGroup() as group:
            ends = [
                group.create_task(self.machine.wait()),
                group.create_task(self.guest.wait_closed()),
            ]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()


def _size(info: SandboxInfo) -> tuple[object, ...]:
    return info.image_id, info.cpus, info.memory, info.disk, info.volumes


class _Record:
    """Puts the making of a member on record: see `machine.BootRecord`."""

    closed = True
    """It has no network before it is claimed."""

    def __init__(self, parts: Parts, row: SandboxRow) -> None:
        self._store = parts.store
        self.row = row
        self.vm: Machine | None = None

    def memory_use(self) -> int:
        """Return what its VM takes of the host's memory (0: it is not up yet). Blocking."""
        return 0 if self.vm is None else self.vm.memory_use()

    async def machine(self, machine: Mapping[str, Any] | None) -> None:
        """Keep none: the VM's sockets are found by its directory's name when the daemon dies.

        It gives way to all others from its first moment on.
        """
        if machine is not None:
            await in_thread(lower, ProcessId(machine["pid"], machine["start_time"]))

    async def layer(self, layer: LayerRow, template_id: str | None) -> None:
        """Record the layer of its disk, and the template that is behind it."""
        self.row = await self._store.put_layer(self.row.info.id, layer, template=template_id)


@dataclass(frozen=True, slots=True)
class _Going:
    """A member on its way to be a sandbox; the task is `_answer`."""

    task: "asyncio.Task[float | str]"
    identity: tuple[object, ...]


def _identity(info: SandboxInfo, generation: int) -> tuple[object, ...]:
    return info.hostname, info.workdir, info.network, generation


class Members:
    """Makes, hands over and discards the members of all pools of one host."""

    def __init__(self, parts: Parts, booter: Booter) -> None:
        self._parts = parts
        self._booter = booter
        self._records: dict[str, _Record] = {}
        self._ends = Scope("members", grace=10.0)
        self._going = Scope("going on")
        self._roused: dict[str, _Going] = {}
        booter.layers.add_holder(self._layers)
        parts.capacity.count(self._holdings)

    def _layers(self) -> Iterable[str | None]:
        return [record.row.layer for record in self._records.values()]

    def _holdings(self) -> Iterable[Holding]:
        for member_id, record in self._records.items():
            info = record.row.info
            name = f"the pool of {info.image}"
            yield Holding(member_id, name, info.memory, record.memory_use)

    # ---- making

    async def make(self, pool_id: str, ahead: Ahead) -> Member:
        """Make a member; nothing of it is left when this raises or is cancelled.

        Raises engine_*, boot_failed, disk_full, no_capacity, and why there is no template.
        """
        try:
            with host_errors():
                await self._booter.templates.build(ahead.recipe)  # which says why not
                async with contextlib.AsyncExitStack() as undo:
                    return await self._make(pool_id, ahead, undo)
        except (Stalled, Late, TimeoutError) as cause:
            raise error(
                "boot_failed",
                f"a clone of {ahead.recipe.image} did not come up: {str(cause) or 'time is over'}",
                hint="see the daemon's log and `hutch doctor`",
            ) from cause

    async def _make(self, pool_id: str, ahead: Ahead, undo: contextlib.AsyncExitStack) -> Member:
        parts, lease = self._parts, contextlib.AsyncExitStack()
        await undo.enter_async_context(lease)
        template = await lease.enter_async_context(self._booter.templates.lease(ahead.recipe))
        if template is None:
            raise error("engine_failed", f"the template of {ahead.recipe.image} is gone again")
        member_id = new_id(ID_PREFIX)
        info = dataclasses.replace(ahead.info, id=member_id, name=member_id)
        undo.push_async_callback(lambda: settle(self._clear(member_id)))
        row = await parts.store.add_member(info, pool_id, slots=parts.settings.uid_count)
        record = self._records[member_id] = _Record(parts, row)
        await settle_in_thread(parts.places.sandbox(member_id).mkdir, mode=0o700, parents=True)
        machine, guest = await self._booter.clone(row, record, ahead.recipe, template, _warm)
        record.vm = machine
        undo.push_async_callback(lambda: settle(machine.kill()))
        undo.push_async_callback(guest.close)
        await machine.pause()
        await in_thread(restore, machine.record.process)
        undo.pop_all()
        return Member(record.row, ahead.recipe, template, machine, guest, lease)

    # ---- using

    async def is_fresh(self, member: Member) -> bool:
        """Tell whether its template is still what a start of today would be a clone of."""
        if not self._booter.templates.has(member.template.id):
            return False
        key = member.template.manifest.key
        return not await in_thread(is_stale, key, self._parts.engine)

    def rouse(self, member: Member, *, hostname: str, workdir: str, network: NetworkPolicy) -> None:
        """Let a member go on as the sandbox that is likely to claim it, before it does.

        Nothing but its identity runs in it until `begin`; `discard` and `abandon` end it as ever.
        """
        info = dataclasses.replace(
            member.row.info, hostname=hostname, workdir=workdir, network=network
        )
        self._go_on(member, info, member.row.generation + 1)

    async def begin(self, member: Member, row: SandboxRow) -> Booted | None:
        """Let a claimed member go on as the sandbox of `row`, and hand it over.

        None when it does not: then its VM is gone. In any case it is no member any more.
        """
        going = self._roused.get(member.id)
        try:
            if going is not None and going.identity != _identity(row.info, row.generation):
                await asyncio.wait({going.task})
                going = None
            if going is None:
                going = self._go_on(member, row.info, row.generation)
            await asyncio.wait({going.task})
            answer = going.task.result()
        except BaseException:
            await self.abandon(member)
            raise
        if isinstance(answer, str):
            log.warning("%s does not begin as a member of a pool: %s", row.info.name, answer)
            await self.abandon(member)
            return None
        self._roused.pop(member.id, None)
        self._records.pop(member.id, None)
        # Not waited for: a cancellation in the middle would lose a VM that runs.
        self._ends.start(member.id, member.lease.aclose())
        return Booted(
            member.machine,
            member.guest,
            member.recipe.kernel.name,
            member.recipe.verdict,
            answer,
        )

    def _go_on(self, member: Member, info: SandboxInfo, generation: int) -> "_Going":
        work = _answer(member, info, generation, self._parts.plugs)
        task = self._going.start(member.id, work)
        going = self._roused[member.id] = _Going(task, _identity(info, generation))
        return going

    # ---- ending

    async def abandon(self, member: Member) -> None:
        """End the VM of a member that is a sandbox's; the sandbox keeps its disk and its slot."""
        await self._ended(member.id, self._abandon(member))

    async def discard(self, member: Member) -> None:
        """End a member that nobody has claimed, and remove all that there is of it."""
        await self._ended(member.id, self._discard(member))

    async def _ended(self, member_id: str, work: Any) -> None:
        # A task of its own: whoever asked for it may be cancelled, and a VM must not be left.
        task = self._ends.start(member_id, work)
        await asyncio.wait({task})

    async def _abandon(self, member: Member) -> None:
        await self._stop(member)
        await member.guest.close()
        await member.machine.kill()
        await self._clear_machine(member.id)
        await self._let_go(member)

    async def _discard(self, member: Member) -> None:
        await self._stop(member)
        await member.guest.close()
        await member.machine.kill()
        await self._clear(member.id)
        await member.lease.aclose()

    async def _stop(self, member: Member) -> None:
        """Cut off what `rouse` has begun."""
        if (going := self._roused.pop(member.id, None)) is not None:
            going.task.cancel()
            await asyncio.wait({going.task})

    async def _let_go(self, member: Member) -> None:
        self._roused.pop(member.id, None)
        self._records.pop(member.id, None)
        await member.lease.aclose()

    async def _clear(self, member_id: str) -> None:
        await self._clear_machine(member_id)
        await in_thread(shutil.rmtree, self._parts.places.sandbox(member_id), ignore_errors=True)
        record = self._records.pop(member_id, None)
        try:
            await self._parts.store.remove_sandbox(member_id)
        except HutchError as failure:
            # The next start of the daemon removes all members that are on record.
            log.error("%s is gone, which cannot be recorded: %s", member_id, failure)
        if record is not None:
            await self._booter.layers.release(record.row.layer)

    async def _clear_machine(self, member_id: str) -> None:
        directory = self._parts.places.machine(member_id)
        await clear_away(self._parts, directory)

    async def close(self) -> None:
        """Wait for those that are being ended."""
        await self._ends.close()
        await self._going.close()

    async def forget_all(self) -> None:
        """Take the members that a daemon has left off the record, before anything is made of it.

        Their VMs, directories and disks then belong to nobody, and are removed as such.
        """
        for row in await self._parts.store.members():
            try:
                await self._parts.store.remove_sandbox(row.info.id)
            except HutchError as failure:
                # On a full disk, say: the daemon is what makes room. The next one tries again.
                log.error("the member %s stays on record: %s", row.info.id, failure)


async def _answer(member: Member, info: SandboxInfo, generation: int, plugs: Plugs) -> float | str:
    """Let a member run on and make it the sandbox that it is, with its policy in force.

    Returns the seconds that it took, or why it is of no use.
    """
    began = time.monotonic()
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            async with together() as group:
                # Its agent finds the identity waiting as soon as it runs.
                group.create_task(member.machine.resume())
                group.create_task(plugs.open(member.id, info.network))
                await set_up_clone(info, generation, member.guest)
    except (Stalled, HutchError, TimeoutError) as cause:
        return str(cause) or f"it has not answered for {ANSWER_SECONDS:g} s"
    return time.monotonic() - began


async def _warm(guest: Guest) -> None:
    """Make a clone its own, and walk the way of a claim and its first programs, to and fro."""
    async with asyncio.timeout(_WARM_SECONDS):
        await _identify(guest)
        await guest.files.mkdir("/", parents=True)
        for _ in range(_ROUNDS):
            # As it will be claimed: what is dirty then would be written in the midst of it.
            await guest.sync()
            await _identify(guest)
            for programs in _PROGRAMS:
                await _run_any(guest, programs)
        await guest.sync()


async def _identify(guest: Guest) -> None:
    name = f"{NOBODY}-{secrets.token_hex(2)}"  # a new one, or it would not be written
    identity = Identity(
        hostname=name,
        machine_id=secrets.token_hex(16),
        entropy=secrets.token_bytes(64),
        nonce=secrets.token_bytes(16),
        generation=0,
        hosts=[("127.0.1.1", name)],
        nameservers=[GATEWAY_ADDRESS],
    )
    if not await guest.identify(identity):
        raise Stalled("the clone did not renew its random numbers")


async def _run_any(guest: Guest, programs: Sequence[tuple[str, ...]]) -> None:
    for program in programs:
        try:
            await _run(guest, program)
        except HutchError as failure:
            if failure.code not in _ABSENT:
                raise
        else:
            return


async def _run(guest: Guest, program: tuple[str, ...]) -> None:
    stream = await guest.start_exec(GuestExec(id=new_id(EXEC_PREFIX), argv=program))
    try:
        async for event in stream:
            if isinstance(event, Output):
                stream.ack(event.channel, len(event.data))
    finally:
        await stream.close()
    await guest.release_exec(stream.id)
