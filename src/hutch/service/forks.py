"""Forks: running children of a running sandbox, all from one moment of it.

The moment is captured once and held in memory until the last child has it. A child that does not
come up is undone alone. It must not know how a moment is captured or a sandbox begins from one.
"""

import asyncio
import contextlib
import logging
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from hutch.engine.base import Frozen
from hutch.errors import HutchError, error
from hutch.models import ErrorInfo, Forked, ForkFailure, SandboxInfo
from hutch.service.capture import Captures, Source
from hutch.service.lifecycle import wrong_state
from hutch.service.lives import Lives
from hutch.service.names import check_name, numbered_name
from hutch.service.parts import Parts, host_errors
from hutch.service.registry import Entry, Registry
from hutch.service.revival import Origin, Revivals
from hutch.tasks import in_thread, settle

log = logging.getLogger(__name__)

PREFIX: Final = "fk_"
"""How the names of directories begin that a fork uses while it is under way."""

AT_ONCE: Final = 2
"""Children that are started at once; others wait."""

AHEAD: Final = 1
"""Those that are begun before the capture: more of them, and the source stands still for longer."""

CHILDREN_MAX: Final = 1000


class Forks:
    """Forks the sandboxes of one host."""

    def __init__(
        self,
        parts: Parts,
        registry: Registry,
        lives: Lives,
        captures: Captures,
        revivals: Revivals,
    ) -> None:
        self._parts = parts
        self._registry = registry
        self._lives = lives
        self._captures = captures
        self._revivals = revivals

    async def fork(self, ref: str, names: Sequence[str] = (), count: int | None = None) -> Forked:
        """Make children of a sandbox, which goes on; return them, and why others did not come up.

        `names` are those of the first ones, `count` is how many there shall be (None: as many as
        names, or one). When this is cancelled none is left. Raises wrong_state, name_taken,
        bad_request, guest_timeout, disk_full, engine_failed, sandbox_died, and when no child came
        up the failure of the first.
        """
        entry = self._registry.find(ref)
        number = max(len(names), 1) if count is None else count
        if not max(len(names), 1) <= number <= CHILDREN_MAX:
            raise error(
                "bad_request",
                f"{number} children cannot be made with {len(names)} names",
                hint=f"ask for 1 to {CHILDREN_MAX}, and for as many as there are names at least",
            )
        await self._captures.thinning.make_room(entry)
        directory = self._parts.places.machine(PREFIX + secrets.token_hex(6))
        layers = self._lives.booter.layers
        layer = forked = None
        try:
            try:
                with contextlib.ExitStack() as stack:
                    chosen = self._reserve(stack, entry, names, number)
                    async with contextlib.AsyncExitStack() as held:
                        source = await held.enter_async_context(self._captures.hold(entry))
                        if not source.alive:
                            raise wrong_state(source.row.info, "running or paused")
                        layer, info = source.layer, source.row.info
                        stack.enter_context(layers.pinned(layer))
                        frozen = await self._parts.engine.expect(directory, info.memory)
                        try:
                            forked = await self._make(source, held, frozen, chosen)
                        finally:
                            await settle(self._let_go(frozen))
            finally:
                await layers.release(layer)  # the source may have gone meanwhile
        except BaseException:
            if forked is not None:
                await settle(self._undo(forked.children))
            raise
        self._captures.thinning.begin(entry)
        self._parts.events.emit(
            "sandbox.forked",
            info.id,
            info.name,
            children=[child.id for child in forked.children],
        )
        return forked

    def _reserve(
        self, stack: contextlib.ExitStack, entry: Entry, names: Sequence[str], number: int
    ) -> list[str]:
        """Hold the names of all children before anything is done. Raises name_taken, bad_name."""
        chosen = [check_name(name) for name in names]
        for name in chosen:
            stack.enter_context(self._registry.reserve(name))
        while len(chosen) < number:
            name = numbered_name(entry.info.name, self._registry.taken)
            stack.enter_context(self._registry.reserve(name))
            chosen.append(name)
        return chosen

    async def _make(
        self,
        source: Source,
        held: contextlib.AsyncExitStack,
        frozen: Frozen,
        names: Sequence[str],
    ) -> Forked:
        """Capture a source, which is `held` until then, and make its children.

        The first of them is begun before: a process that waits for the memory by the time that it
        is there. It may take that up, and get its identity, before the capture is over; its
        programs wait for that.
        """
        brood = _Brood(self._revivals, source, frozen)
        try:
            async with asyncio.TaskGroup() as group:
                for number, name in enumerate(names):
                    group.create_task(brood.make(name, ahead=number < AHEAD))
                try:
                    with host_errors():
                        point = await source.capture(frozen.directory, logs=brood.origin.logs)
                except HutchError as cause:
                    brood.failure = cause
                    await self._parts.engine.drop(frozen)  # nobody waits for it any more
                brood.decided.set()
                await held.aclose()
        except BaseException:
            await settle(self._undo(list(brood.made.values())))
            raise
        if brood.failure is not None:
            await settle(self._undo(list(brood.made.values())))
            raise brood.failure
        if not brood.made:
            raise next(iter(brood.failures.values()))
        failed = [
            ForkFailure(name, ErrorInfo(cause.code, cause.message, cause.hint))
            for name, cause in brood.failures.items()
        ]
        children = [brood.made[name] for name in names if name in brood.made]
        return Forked(point.row.info.id, children, failed, point.seconds)

    async def _undo(self, children: Sequence[SandboxInfo]) -> None:
        """Remove children that nobody waits for any more."""
        for child in children:
            with contextlib.suppress(HutchError):
                await self._lives.remove(self._registry.find(child.id), force=True)

    async def _let_go(self, frozen: Frozen) -> None:
        await self._parts.engine.drop(frozen)
        await in_thread(shutil.rmtree, frozen.directory, ignore_errors=True)

    async def open(self) -> None:
        """Remove what a fork has left that was under way when a daemon died."""
        runtime = self._parts.places.runtime
        for directory in await in_thread(lambda: sorted(runtime.glob(f"{PREFIX}*"))):
            await in_thread(shutil.rmtree, directory, ignore_errors=True)


class _Brood:
    """The children of one fork: those that came up (`made`), and why others did not.

    `failure` is why there is nothing to go on from, which is known once that is `decided`.
    """

    def __init__(self, revivals: Revivals, source: Source, frozen: Frozen) -> None:
        logs = frozen.directory / "logs"
        self.origin = Origin(
            source.row,
            source.row.info.id,
            source.layer,
            logs,
            settled=self._settled,
            ports=[replace(port, host_port=0, error=None) for port in source.row.info.ports],
        )
        self.decided = asyncio.Event()
        self.made: dict[str, SandboxInfo] = {}
        self.failures: dict[str, HutchError] = {}
        self.failure: HutchError | None = None
        self._revivals = revivals
        self._frozen = frozen
        self._board = source.board
        self._places = asyncio.Semaphore(AT_ONCE)

    async def _settled(self) -> None:
        """Wait until it is decided that there is a moment to go on from. Raises why there is none.

        The logs of that moment are there by then.
        """
        await self.decided.wait()
        if self.failure is not None:
            raise self.failure

    async def make(self, name: str, *, ahead: bool) -> None:
        """Make a child when it is its turn: after the capture, unless it is begun `ahead` of it."""
        async with self._places:
            if not ahead:
                await self.decided.wait()
            if self.failure is not None:
                return
            try:
                child = await self._revivals.go_on(name, self.origin, self._frozen, self._board)
            except HutchError as cause:
                log.warning("the fork %s of %s failed: %s", name, self.origin.id, cause)
                self.failures[name] = cause
            else:
                self.made[name] = child.info
