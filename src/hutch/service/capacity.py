"""Whether this host has room for one more VM, and the room kept for those that are coming up.

Two limits on memory. What all guests together have been promised stays within a factor of what the
host has (`memory_overcommit`): a guest may use all that it was given, though most never do. And
what a start is known to take leaves the host its reserve (`memory_reserve`), counted with all other
starts under way. It must not know what a sandbox, a pool or a template is: those who hold VMs
tell it through `count`.
"""

import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hutch.errors import HutchError, error
from hutch.service.hostmemory import HostMemory, host_memory
from hutch.settings import GIB, MIB, Settings
from hutch.tasks import in_thread

BOOT_GUEST: Final = 96 * MIB
"""What the guest of a cold boot touches until it is up, at most (84 MiB of busybox's 256)."""
BOOT_ENGINE: Final = 96 * MIB
"""What the engine takes for a cold boot, most of it translated code (80 MiB)."""
CLONE: Final = 48 * MIB
"""What a clone takes for itself until its first program has run, engine and all (30 MiB)."""
PAGE_TABLE_SHARE: Final = 64
"""A guest's kernel takes this part of its memory to keep account of it."""

LARGEST: Final = 3
"""How many of those that use most a refusal names."""


@dataclass(frozen=True, slots=True)
class Need:
    """What is about to be started.

    `memory` is what its guest is promised, `expected` what it takes of the host until it is up.
    `subject` names it in messages.
    """

    id: str
    subject: str
    memory: int
    expected: int


@dataclass(frozen=True, slots=True)
class Holding:
    """A VM that is up: what its guest was promised, and a (blocking) look at what it takes."""

    id: str
    name: str
    memory: int
    use: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Room:
    """What there is, in bytes. `pending` is what starts under way are still expected to take."""

    host: HostMemory
    reserve: int
    pending: int
    promised: int
    promise_limit: int
    disk_free: int
    disk_reserve: int


def boot_need(vm_id: str, subject: str, memory: int) -> Need:
    """Return what a cold boot needs."""
    guest = min(memory, BOOT_GUEST + memory // PAGE_TABLE_SHARE)
    return Need(vm_id, subject, memory, guest + BOOT_ENGINE)


def clone_need(vm_id: str, subject: str, memory: int, load: int = 0) -> Need:
    """Return what a clone needs; `load` is the size of the frozen memory if it must be read in."""
    return Need(vm_id, subject, memory, min(memory, CLONE) + load)


def copy_need(vm_id: str, subject: str, size: int) -> Need:
    """Return what a copy of a running VM's memory needs: its own, and what it was a clone of."""
    return Need(f"{vm_id}/copy", subject, 0, size)


class Capacity:
    """The room of one host.

    Invariant: what was admitted is counted until its block ends, by when whoever holds the VM
    counts it; so two starts never take the same room.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        read: Callable[[], HostMemory] = host_memory,
        free: Callable[[Path], int] | None = None,
    ) -> None:
        """`read` and `free` look at the host: its memory, and a file system's room in bytes."""
        self._settings = settings
        self._read = read
        self._free = free or file_system_room
        self._sources: list[Callable[[], Iterable[Holding]]] = []
        self._pending: dict[str, Need] = {}

    def count(self, source: Callable[[], Iterable[Holding]]) -> None:
        """Count the VMs that `source` returns, now and later."""
        self._sources.append(source)

    @contextlib.asynccontextmanager
    async def admit(self, need: Need) -> AsyncIterator[None]:
        """Keep the room for a VM while it starts. Raises no_capacity, saying what is missing.

        One that is admitted already, by whoever called, is not counted twice.
        """
        if need.id in self._pending:
            yield
            return
        refusal = self._refusal(need)
        if refusal is not None:
            raise await self._explained(refusal)
        self._pending[need.id] = need
        try:
            yield
        finally:
            del self._pending[need.id]

    def room(self) -> Room:
        """Return what there is now. Blocking, but quick."""
        host = self._read()
        settings = self._settings
        up = {holding.id: holding.memory for holding in self._holdings()}
        promised = up | {each.id: each.memory for each in self._pending.values()}
        return Room(
            host=host,
            reserve=settings.memory_reserve,
            pending=sum(each.expected for each in self._pending.values()),
            promised=sum(promised.values()),
            promise_limit=int(host.total * settings.memory_overcommit),
            disk_free=self._free(settings.home),
            disk_reserve=settings.disk_reserve,
        )

    def _holdings(self) -> list[Holding]:
        return [holding for source in self._sources for holding in source()]

    # ---- refusing

    def _refusal(self, need: Need) -> HutchError | None:
        # All of this happens in one step of the loop: nobody else can take the room meanwhile.
        room = self.room()
        if need.expected > room.host.available - room.pending - room.reserve:
            return _no_memory(need, room)
        if room.promised + need.memory > room.promise_limit:
            return _no_promise(need, room, self._settings.memory_overcommit)
        if room.disk_free < room.disk_reserve:
            return _no_disk(need, room, self._settings.home)
        return None

    async def _explained(self, refusal: HutchError) -> HutchError:
        """Return the refusal with those that use most, which takes a look at each."""
        if refusal.details["resource"] == "disk":
            return refusal
        uses = await in_thread(_uses, self._holdings())
        largest = [(name, size) for name, size in uses.most_common(LARGEST) if size]
        details = refusal.details | {
            "largest": [{"name": name, "bytes": size} for name, size in largest]
        }
        names = ", ".join(f"{name} ({_size(size)})" for name, size in largest)
        message = refusal.message + (f"; most is used by {names}" if names else "")
        return error("no_capacity", message, hint=refusal.hint, details=details)


def file_system_room(path: Path) -> int:
    """Return the bytes that may still be written to the file system of a directory."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _uses(holdings: list[Holding]) -> Counter[str]:
    """Return what VMs take, those of one name (a pool's) together."""
    uses: Counter[str] = Counter()
    for holding in holdings:
        uses[holding.name] += holding.use()
    return uses


def _no_memory(need: Need, room: Room) -> HutchError:
    group = f" in the control group {room.host.group}" if room.host.group else ""
    starting = f" and {_size(room.pending)} for starts under way" if room.pending else ""
    return error(
        "no_capacity",
        f"there is no memory for {need.subject}: it takes {_size(need.expected)};"
        f" {_size(room.host.available)} are available{group}, of which {_size(room.reserve)} are"
        f" kept in reserve{starting}",
        hint="stop or park a sandbox (`hutch ps -s` shows what each takes), or lower the setting"
        " memory_reserve",
        details={
            "resource": "memory",
            "needed": need.expected,
            "available": room.host.available,
            "reserved": room.reserve,
            "pending": room.pending,
        },
    )


def _no_promise(need: Need, room: Room, factor: float) -> HutchError:
    return error(
        "no_capacity",
        f"{need.subject} is to have {_size(need.memory)} of memory: {_size(room.promised)} are"
        f" promised to others, and {_size(room.promise_limit)} may be, {factor:g} times"
        f" {_size(room.host.total)}",
        hint="stop or park a sandbox, give this one less with --memory, or raise the setting"
        " memory_overcommit",
        details={
            "resource": "promise",
            "needed": need.memory,
            "available": max(0, room.promise_limit - room.promised),
            "reserved": room.promised,
            "limit": room.promise_limit,
        },
    )


def _no_disk(need: Need, room: Room, home: Path) -> HutchError:
    return error(
        "no_capacity",
        f"there is no room on the disk for {need.subject}: {_size(room.disk_free)} are free for"
        f" {home}, and {_size(room.disk_reserve)} are kept in reserve",
        hint="free some space, for example with `hutch image prune` or `hutch rm`, or lower the"
        " setting disk_reserve",
        details={
            "resource": "disk",
            "needed": room.disk_reserve,
            "available": room.disk_free,
            "reserved": room.disk_reserve,
        },
    )


def _size(count: int) -> str:
    if count >= GIB:
        return f"{count / GIB:.1f} GiB"
    return f"{count / MIB:.0f} MiB"
