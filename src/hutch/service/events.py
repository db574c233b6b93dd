"""What happened on this host: a bounded ring, and any number of readers that follow it.

Readers hold a place in the ring, not a queue of their own: a slow one costs nothing and merely
misses the oldest. It must not know what the events mean.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

from hutch.models import timestamp
from hutch.reports import Event

KEPT = 2048


class EventLog:
    """The last `KEPT` events, numbered upwards also across restarts of the daemon."""

    def __init__(self) -> None:
        # A restarted daemon goes on above all numbers given out before, as long as it makes fewer
        # than a thousand events a second on average.
        self._next = int(time.time() * 1000)
        self._ring: deque[Event] = deque(maxlen=KEPT)
        self._arrived = asyncio.Event()
        self._closed = False

    def emit(self, kind: str, subject: str, name: str = "", **fields: Any) -> None:
        """Add an event; `subject` is the id of what it happened to, `name` its name."""
        self._ring.append(Event(self._next, timestamp(), kind, subject, name, fields))
        self._next += 1
        self._wake()

    def close(self) -> None:
        """End all readers that follow."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._arrived.set()
        self._arrived = asyncio.Event()

    def kept(self, since: int | None) -> Sequence[Event]:
        """Return the events that are still kept and whose number is at least `since`."""
        if since is None or not self._ring:
            return list(self._ring)
        return list(itertools.islice(self._ring, max(since - self._ring[0].seq, 0), None))

    async def follow(self, since: int | None, *, follow: bool) -> AsyncIterator[Event]:
        """Yield the events kept (from `since` on), then, with `follow`, each new one."""
        place = since
        while True:
            arrived = self._arrived
            for event in self.kept(place):
                place = event.seq + 1
                yield event
            if not follow or self._closed:
                return
            if arrived is self._arrived:
                await arrived.wait()
