"""Progress of long work, from threads as well as from the event loop, and the way to stop such
work.

A `Meter` counts one item and reports a few times a second; cancelling the awaiting task makes the
thread's next `advance` raise, so that a cancelled import ends at once and removes what it has
begun.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from hutch.images.base import Report, no_report
from hutch.models import Progress

P = ParamSpec("P")
T = TypeVar("T")

_INTERVAL = 0.1


class Stopped(Exception):
    """Raised in a worker thread whose caller has gone; never reaches a caller."""


class Meter:
    """Counts the bytes of one item. `advance` may be called from any thread; made on the event
    loop.
    """

    def __init__(self, report: Report, stage: str, item: str, total: int | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._report = report
        self._stage, self._item = stage, item
        self.total = total
        self.done = 0
        self._next = 0.0
        self._stopped = False

    def advance(self, count: int) -> None:
        """Count so many more bytes, and report now and then. Raises Stopped after `stop`."""
        if self._stopped:
            raise Stopped
        self.done += count
        if (now := time.monotonic()) >= self._next:
            self._next = now + _INTERVAL
            self._loop.call_soon_threadsafe(self._send, self._progress(""))

    @classmethod
    def quiet(cls, like: "Meter") -> "Meter":
        """Return a meter that can be stopped but reports nothing, for a second look at the same
        item.
        """
        return cls(no_report, like._stage, like._item, like.total)

    def finish(self, message: str = "done") -> None:
        """Report the end of the item; called on the event loop."""
        self._send(self._progress(message))

    def stop(self) -> None:
        """Make the next `advance` raise."""
        self._stopped = True

    def _send(self, progress: Progress) -> None:
        if not self._stopped:
            self._report(progress)

    def _progress(self, message: str) -> Progress:
        return Progress(self._stage, self._item, self.done, self.total, message)


async def in_metered_thread(
    meter: Meter, work: Callable[Concatenate[Meter, P], T], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run `work(meter, …)` in a thread; when cancelled, stop it and wait for its end."""
    call = functools.partial(work, meter, *args, **kwargs)
    # A future of the executor, not a task: cancelling the caller must not lose sight of the thread.
    running = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        meter.stop()
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):  # the first one is raised below
                await asyncio.wait({running})
        if not running.cancelled():
            running.exception()  # seen: whatever it was, the caller has gone
        raise
