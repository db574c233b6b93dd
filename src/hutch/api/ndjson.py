"""Long work told in lines of JSON: progress as it comes, then one result or one error.

Progress is coalesced for each item, so that a slow client costs no memory; a client that closes its
connection cancels the work.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from hutch.api.responses import ByteStream, encode, error_body
from hutch.images.base import Report
from hutch.models import Progress
from hutch.reports import Event
from hutch.tasks import Scope

MEDIA_TYPE = "application/x-ndjson"


class ProgressFeed:
    """Progress on its way from the work to the client: the latest step of each item.

    Invariant: never holds more than one step for each pair of stage and item.
    """

    def __init__(self) -> None:
        self._latest: dict[tuple[str, str], Progress] = {}
        self._changed = asyncio.Event()
        self._ended = False

    def report(self, progress: Progress) -> None:
        """Take a step; never blocks."""
        self._latest[progress.stage, progress.id] = progress
        self._changed.set()

    def end(self) -> None:
        """Say that no more steps come."""
        self._ended = True
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[Progress]:
        while True:
            await self._changed.wait()
            self._changed.clear()
            steps, self._latest = self._latest, {}
            for step in steps.values():
                yield step
            if self._ended and not self._latest:
                return


def long_work(work: Callable[[Report], Awaitable[Any]]) -> ByteStream:
    """Return the response that runs `work(report)` and tells of it."""
    return ByteStream(_told(work), MEDIA_TYPE)


async def _told(work: Callable[[Report], Awaitable[Any]]) -> AsyncIterator[bytes]:
    feed = ProgressFeed()

    async def worked() -> dict[str, Any]:
        try:
            return {"result": await work(feed.report)}
        except Exception as failure:  # noqa: BLE001 - whatever it is, the client is told
            return error_body(failure)
        finally:
            feed.end()

    async with Scope("long work") as scope:
        task = scope.start("work", worked())
        async for step in feed:
            yield _line({"progress": step})
        yield _line(await task)


def event_lines(events: AsyncIterator[Event]) -> ByteStream:
    """Return the response that tells events as they come."""

    async def lines() -> AsyncIterator[bytes]:
        async for event in events:
            yield _line({"event": event})

    return ByteStream(lines(), MEDIA_TYPE)


def _line(value: Any) -> bytes:
    return encode(value) + b"\n"
