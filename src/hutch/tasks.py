"""Owned tasks: the only place that starts asyncio tasks outside a TaskGroup.

A `Scope` belongs to something long-lived (the daemon, a sandbox's supervisor). Each task has a name
and dies with its scope; a task that fails is logged at once, never silently. Request-scoped work
uses asyncio.TaskGroup.
"""

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec, Self, TypeVar

log = logging.getLogger(__name__)

CANCEL_TIME = 5.0
"""Seconds that `Scope.close` waits for cancelled tasks."""

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")


class Scope:
    """A group of named background tasks.

    Invariants: `close` never raises a task's error and ends in bounded time.
    """

    def __init__(self, name: str, *, grace: float = 0.0) -> None:
        """`grace` is how many seconds `close` lets tasks finish before it cancels them."""
        self._name = name
        self._grace = grace
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` in the background, as a task of this scope."""
        task = asyncio.create_task(work, name=f"{self._name}/{name}")  # noqa: TID251 - the owner
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("task %s failed", task.get_name(), exc_info=failure)

    async def close(self) -> None:
        """Wait for the grace period, cancel what is left, and wait CANCEL_TIME at most for that."""
        tasks = set(self._tasks)
        if tasks and self._grace:
            _, tasks = await asyncio.wait(tasks, timeout=self._grace)
        for task in tasks:
            task.cancel()
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=CANCEL_TIME)
            for task in stuck:
                log.error("task %s ignores its cancellation", task.get_name())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


async def in_thread(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking call (file system, SQLite, locks) in a worker thread: the one gate for it."""
    return await asyncio.to_thread(work, *args, **kwargs)


async def settle_in_thread(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking call as `in_thread` does, but to its end, also when this is cancelled.

    The cancellation shows only then, so that whoever undoes the call finds a settled matter. For
    short calls.
    """
    bound = functools.partial(work, *args, **kwargs)
    return await _settled(asyncio.get_running_loop().run_in_executor(None, bound))


class Stopped(Exception):
    """What a blocking call is ended by that nobody wants any more."""


async def stop_in_thread(work: Callable[[Callable[[], None]], T], /) -> T:
    """Run a long blocking call as `settle_in_thread` does, that ends soon when this is cancelled.

    What it is given it must call now and then; that raises Stopped once this is cancelled.
    """
    stop = threading.Event()

    def go_on() -> None:
        if stop.is_set():
            raise Stopped

    call = asyncio.get_running_loop().run_in_executor(None, work, go_on)
    return await _settled(call, stop.set)


async def _settled(call: asyncio.Future[T], cancelled: Callable[[], None] = lambda: None) -> T:
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        cancelled()
        while not call.done():
            with contextlib.suppress(asyncio.CancelledError):  # the first one is raised below
                await asyncio.wait({call})
        if not call.cancelled():
            call.exception()  # it is nobody's any more
        raise


async def both(one: Coroutine[Any, Any, T], other: Coroutine[Any, Any, U]) -> tuple[T, U]:
    """Run two things at once and return what both do. Raises what the first one to fail raises.

    The other one is cancelled then; both have ended.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = group.create_task(one), group.create_task(other)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return tasks[0].result(), tasks[1].result()


_TURNS: Final = 4
"""Turns of the event loop from the start of a task to the bytes that it sends at first."""


async def give_way() -> None:
    """Let tasks that were just started send what they have to, before work that takes a while.

    A call in a thread may keep the interpreter for itself for longer than that sending takes.
    """
    for _ in range(_TURNS):
        await asyncio.sleep(0)


async def settle(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end, also when this is cancelled: the cancellation shows only then.

    For what must not be left half done, and is done soon.
    """
    task = asyncio.create_task(work)  # noqa: TID251 - the owner
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):  # the first one is raised below
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # it is nobody's any more
        raise
