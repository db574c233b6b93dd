"""All sandboxes of this host in memory: the rows as last written, and what goes with them now.

Found by id, name or prefix without a look at the store, which keeps the hot path short. It must not
know how a sandbox gets from one state to another; `lives.py` does.
"""

import asyncio
import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final

from hutch.errors import HutchError, error
from hutch.models import SandboxInfo, SandboxState
from hutch.networking import NetworkPolicy, PublishedPort
from hutch.service.capacity import Holding
from hutch.service.lifecycle import wrong_state
from hutch.service.names import ID_PREFIX, friendly_name
from hutch.service.sandbox import Sandbox
from hutch.state.base import SandboxRow

REMEMBERED: Final = 256
"""Removed sandboxes whose last state can still be asked for."""

_PREFIX_MIN: Final = 4


class Entry:
    """One sandbox: its row, and while it lives the task that boots it and the running sandbox.

    `lock` is held by whoever starts or removes it.
    """

    def __init__(self, row: SandboxRow) -> None:
        self._row = row
        self.lock = asyncio.Lock()
        self.boot: asyncio.Task[object] | None = None
        self.sandbox: Sandbox | None = None
        self.removed = False
        """Whether its removal has begun."""
        self.forgotten = False
        """Whether its removal is complete."""
        self.unsettled = False
        """Whether its state is ahead of the record, which could not be written."""
        self.turning = False
        """Whether it is being paused, parked or woken: the lock tells when that is over."""
        self.undoing = False
        """Whether it is about to have another VM: what its present one does is not its own."""
        self.limit: asyncio.Task[None] | None = None
        """While it is parked: the task that ends it when its time is up."""
        self.policies = asyncio.Lock()
        """Held by whoever changes its network policy, which may be done at any time."""
        self.untold = False
        """Whether its guest may not know yet whether it has a network: see telling.py."""
        self._latest: dict[str, Any] = {}
        self._changed = asyncio.Event()

    @property
    def row(self) -> SandboxRow:
        """The row as it was last written."""
        return self._row

    @row.setter
    def row(self, row: SandboxRow) -> None:
        # It may have been read before these were changed, and be told of only now.
        newer = {key: it for key, it in self._latest.items() if it != getattr(row.info, key)}
        if newer:
            row = dataclasses.replace(row, info=dataclasses.replace(row.info, **newer))
        self._row = row
        self.notify()

    def have_policy(self, policy: NetworkPolicy) -> None:
        """Take note of a policy that is on record from now on."""
        self._latest["network"] = policy
        self.row = self._row

    def have_ports(self, ports: Sequence[PublishedPort]) -> None:
        """Take note of published ports that are on record from now on."""
        self._latest["ports"] = list(ports)
        self.row = self._row

    @property
    def info(self) -> SandboxInfo:
        """The sandbox as `inspect` shows it."""
        return self._row.info

    @property
    def at_rest(self) -> bool:
        """Whether nothing runs and nothing is about to happen by itself."""
        if self.removed and self.sandbox is None:
            return self.forgotten
        lives = self.info.state.has_machine or self.info.state is SandboxState.PARKED
        return not (lives or self.sandbox is not None or self.boot is not None)

    def notify(self) -> None:
        """Wake everyone who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    @contextlib.contextmanager
    def turn(self, *, undoing: bool = False) -> Iterator[None]:
        """Let nobody take the sandbox for running in the block: see `turning` and `undoing`."""
        self.turning, self.undoing = True, undoing
        try:
            yield
        finally:
            self.turning = self.undoing = False
            self.notify()

    @contextlib.contextmanager
    def begin(self) -> Iterator[None]:
        """Let whoever stops, kills or removes the sandbox cancel this task, as a boot."""
        self.boot = asyncio.current_task()
        try:
            yield
        finally:
            self.boot = None
            self.notify()

    async def settled(self) -> None:
        """Return once the sandbox is not being paused, parked or woken."""
        while self.turning:
            await self._changed.wait()

    async def rest(self) -> SandboxInfo:
        """Return the last state once the sandbox is at rest, or gone."""
        while not self.at_rest:
            await self._changed.wait()
        return self.info

    def running(self) -> Sandbox:
        """Return the running sandbox. Raises wrong_state."""
        if self.sandbox is None or self.info.state is not SandboxState.RUNNING:
            raise wrong_state(self.info, "running")
        return self.sandbox

    def memory_use(self) -> int:
        """Return what the VM takes of the host's memory (0: there is none). Blocking."""
        return 0 if self.sandbox is None else self.sandbox.machine.memory_use()

    def check_present(self) -> None:
        """Refuse a sandbox whose removal has begun. Raises sandbox_not_found."""
        if self.removed:
            raise error("sandbox_not_found", f"sandbox {self.info.name} was removed")


class Registry:
    """The entries of one host, in the order of their making."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._names: dict[str, str] = {}
        self._reserved: set[str] = set()
        self._last: OrderedDict[str, Entry] = OrderedDict()
        self._needed: list[Callable[[], Iterable[SandboxInfo]]] = []

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, row: SandboxRow) -> Entry:
        """Add a sandbox that has just been put on record."""
        entry = Entry(row)
        self._entries[row.info.id] = entry
        self._names[row.info.name] = row.info.id
        return entry

    def rename(self, entry: Entry, row: SandboxRow) -> None:
        """Take note of another name."""
        self._names.pop(entry.info.name, None)
        entry.row = row
        self._names[row.info.name] = row.info.id

    def forget(self, entry: Entry) -> None:
        """Take a removed sandbox out; its last state stays known for a while."""
        self._entries.pop(entry.info.id, None)
        self._names.pop(entry.info.name, None)
        self._last[entry.info.id] = entry
        if len(self._last) > REMEMBERED:
            self._last.popitem(last=False)
        entry.forgotten = True
        entry.notify()

    def find(self, ref: str) -> Entry:
        """Find by id, name, or unique prefix (at least 4 characters) of an id.

        Raises sandbox_not_found, bad_request for a prefix of several.
        """
        if (entry := self._entries.get(self._names.get(ref, ref))) is not None:
            return entry
        prefix = ref if ref.startswith(ID_PREFIX) else ID_PREFIX + ref
        if len(ref) >= _PREFIX_MIN and len(prefix) > len(ID_PREFIX):
            found = [entry for key, entry in self._entries.items() if key.startswith(prefix)]
            if len(found) == 1:
                return found[0]
            if found:
                raise error(
                    "bad_request",
                    f"{ref} is the beginning of {len(found)} ids",
                    hint="give more of the id, or the name",
                )
        raise _not_found(ref)

    def by_id(self, sandbox_id: str) -> Entry | None:
        """Return the entry of that id, and of no other that it could mean; None: it is gone."""
        return self._entries.get(sandbox_id)

    def policy_of(self, sandbox_id: str) -> NetworkPolicy | None:
        """Return what a sandbox may reach (None: it is gone)."""
        entry = self._entries.get(sandbox_id)
        return None if entry is None else entry.info.network

    def find_last(self, ref: str) -> Entry:
        """Find as `find` does, and also one that was removed a while ago, by its id or name."""
        try:
            return self.find(ref)
        except HutchError:
            for entry in reversed(self._last.values()):
                if ref in (entry.info.id, entry.info.name):
                    return entry
            raise

    @property
    def taken(self) -> AbstractSet[str]:
        """The names that sandboxes have, or are about to have."""
        return self._names.keys() | self._reserved

    @contextlib.contextmanager
    def reserve(self, name: str | None) -> Iterator[str]:
        """Hold a name (None: a friendly one) while a sandbox is made. Raises name_taken."""
        taken = self.taken
        if name is None:
            name = friendly_name(taken)
        elif name in taken:
            raise error(
                "name_taken",
                f"there is already a sandbox named {name}",
                hint=f"choose another name, or remove it with `hutch rm {name}`",
            )
        self._reserved.add(name)
        try:
            yield name
        finally:
            self._reserved.discard(name)

    def holdings(self) -> Iterator[Holding]:
        """Yield the sandboxes with a VM, for the account of the host's memory."""
        for entry in self:
            if entry.row.machine is not None:
                yield Holding(entry.info.id, entry.info.name, entry.info.memory, entry.memory_use)

    def also_needs(self, others: Callable[[], Iterable[SandboxInfo]]) -> None:
        """Count what sandboxes need that can be made again, now and later."""
        self._needed.append(others)

    def _all_infos(self) -> Iterator[SandboxInfo]:
        yield from (entry.info for entry in self._entries.values())
        for others in self._needed:
            yield from others()

    def used_images(self) -> Sequence[str]:
        """Return the ids of all images that sandboxes need."""
        return sorted({info.image_id for info in self._all_infos()})

    def based_on(self, template_id: str) -> Sequence[SandboxInfo]:
        """Return the sandboxes whose disks are based on a template's."""
        infos = (entry.info for entry in self._entries.values())
        return [info for info in infos if info.template == template_id]

    def layers(self) -> Sequence[str | None]:
        """Return the uppermost layers of the disks of all that is not about to be removed."""
        return [entry.row.layer for entry in self._entries.values() if not entry.removed]

    def used_kernels(self) -> Sequence[str]:
        """Return the names of all kernels that sandboxes ask for or run on."""
        return sorted({info.kernel for info in self._all_infos() if info.kernel})


def _not_found(ref: str) -> HutchError:
    return error(
        "sandbox_not_found",
        f"there is no sandbox {ref}",
        hint="`hutch ps -a` lists all of them",
    )
