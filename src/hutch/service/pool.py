"""One pool: how many members it shall have, those that are ready, and the task that sees to it.

Members are made one at a time on a host, while no sandbox is being started, and not again at once
after a failure. It must not know how a member is made, nor who claims one.
"""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from hutch.errors import HutchError, error
from hutch.images.base import Report
from hutch.models import ErrorInfo, PoolInfo, Progress
from hutch.service.events import EventLog
from hutch.service.parts import host_errors
from hutch.service.pool_member import Member, Members
from hutch.state.base import PoolRow
from hutch.tasks import Scope, in_thread

log = logging.getLogger(__name__)

QUIET_SECONDS: Final = 0.5
"""So long no start must have been under way before a member is made: time for a first program."""

PATIENCE: Final = 10.0
"""After so many seconds of starts without a break a member is made all the same."""

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Seconds before the next attempt after a failure; doubled each time, up to the longest."""


class Lull:
    """Tells when no sandbox is being started on this host."""

    def __init__(self) -> None:
        self._starts = 0
        self._ended = 0.0
        self._changed = asyncio.Event()

    @contextlib.contextmanager
    def broken(self) -> Iterator[None]:
        """Say that a sandbox is being started, for the length of the block."""
        self._starts += 1
        try:
            yield
        finally:
            self._starts -= 1
            self._ended = time.monotonic()
            self._changed.set()
            self._changed = asyncio.Event()

    async def wait(self) -> None:
        """Return when nothing has been started for a moment, or patience is at its end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while True:
                    changed, quiet = self._changed, time.monotonic() - self._ended
                    if not self._starts and quiet >= QUIET_SECONDS:
                        return
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(None if self._starts else QUIET_SECONDS - quiet):
                            await changed.wait()


@dataclasses.dataclass(frozen=True, slots=True)
class Yard:
    """What the pools of a host share: who makes members, whose turn it is, and when."""

    members: Members
    make: "Callable[[Pool], Awaitable[Member]]"
    events: EventLog
    lull: Lull
    turn: asyncio.Lock


class Pool:
    """A pool that keeps itself filled until it is closed."""

    def __init__(self, row: PoolRow, yard: Yard) -> None:
        self.row = row
        self.image_id = ""
        """The image that its members are of, once it is known."""
        self._yard = yard
        self._ready: deque[Member] = deque()
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._making = False
        self._claimed = 0
        self._failure: HutchError | None = None
        self._pause = FIRST_PAUSE
        self._retry_at = 0.0
        self._closed = False
        self._changed = asyncio.Event()
        self._scope = Scope(f"pool {row.image}")
        self._scope.start("fill", self._fill())

    # ---- what is asked of it

    def resize(self, row: PoolRow) -> None:
        """Have another size from now on; what has failed is tried again at once."""
        self.row = row
        self._failure, self._pause, self._retry_at = None, FIRST_PAUSE, 0.0
        self._notify()

    async def filled(self, report: Report) -> None:
        """Return once it has as many members as it shall. Raises why one could not be made."""
        while True:
            changed, ready = self._changed, len(self._ready)
            text = f"{ready} of {self.row.size} ready"
            report(Progress("warm", self.row.image, message=text))
            if self._closed:
                raise error("pool_not_found", f"the pool of {self.row.image} was drained")
            if ready >= self.row.size:
                return
            if self._failure is not None:
                raise self._failure
            await changed.wait()

    def take(self, suits: Callable[[Member], bool]) -> Member | None:
        """Take out the first ready member that suits: it is the caller's, and nobody else's."""
        for member in self._ready:
            if suits(member):
                self._drop(member)
                return member
        return None

    def count_claim(self, sandbox_id: str) -> None:
        """Note that one of its members has become a sandbox."""
        self._claimed += 1
        self._emit("pool.claimed", sandbox=sandbox_id)

    async def keep_only(self, fits: Callable[[Member], bool]) -> None:
        """Discard the ready members that do not fit any more."""
        for member in [each for each in self._ready if not fits(each)]:
            if member in self._ready:  # else it was taken or lost meanwhile
                self._drop(member)
                await self._yard.members.discard(member)

    async def info(self) -> PoolInfo:
        """Return it as users see it."""
        machines = [member.machine for member in self._ready]
        failure = None
        if (cause := self._failure) is not None:
            failure = ErrorInfo(cause.code, cause.message, cause.hint)
        return PoolInfo(
            id=self.row.id,
            image=self.row.image,
            image_id=self.image_id,
            cpus=self.row.cpus,
            memory=self.row.memory,
            size=self.row.size,
            ready=len(machines),
            filling=int(self._making),
            claimed=self._claimed,
            memory_bytes=await in_thread(lambda: sum(each.memory_use() for each in machines)),
            error=failure,
        )

    async def close(self) -> None:
        """End it with all its members. Idempotent."""
        self._closed = True
        await self._scope.close()
        self._watches.clear()
        members, self._ready = list(self._ready), deque()
        self._notify()
        async with asyncio.TaskGroup() as group:
            for member in members:
                group.create_task(self._yard.members.discard(member))

    # ---- filling

    async def _fill(self) -> None:
        while True:
            changed = self._changed
            if len(self._ready) > self.row.size:
                await self._yard.members.discard(self._drop(self._ready[-1]))
            elif len(self._ready) == self.row.size:
                await changed.wait()
            elif (delay := self._retry_at - time.monotonic()) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await changed.wait()
            else:
                async with self._yard.turn:
                    await self._yard.lull.wait()
                    if len(self._ready) < self.row.size:
                        await self._add()

    async def _add(self) -> None:
        self._making = True
        try:
            with host_errors():
                member = await self._yard.make(self)
        except HutchError as failure:
            self._fail(failure)
        else:
            self._failure, self._pause = None, FIRST_PAUSE
            self._ready.append(member)
            self._watches[member.id] = self._scope.start(member.id, self._watch(member))
            if len(self._ready) == self.row.size:
                self._emit("pool.filled", size=self.row.size)
        finally:
            self._making = False
            self._notify()

    def _fail(self, failure: HutchError) -> None:
        log.warning("no new member of the pool of %s: %s", self.row.image, failure)
        self._failure = failure
        self._retry_at = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        self._emit("pool.failed", code=failure.code, message=failure.message)

    async def _watch(self, member: Member) -> None:
        """See a member that ends by itself off; another one takes its place."""
        await member.lost()
        if member in self._ready:
            log.warning("the member %s of the pool of %s is lost", member.id, self.row.image)
            self._retry_at = time.monotonic() + FIRST_PAUSE  # whatever ends them all at once
            self._ready.remove(member)
            del self._watches[member.id]
            self._notify()
            await self._yard.members.discard(member)

    def _drop(self, member: Member) -> Member:
        self._ready.remove(member)
        self._watches.pop(member.id).cancel()
        self._notify()
        return member

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _emit(self, kind: str, **fields: object) -> None:
        self._yard.events.emit(kind, self.row.id, self.row.image, **fields)
