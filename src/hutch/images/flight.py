"""Working together: several tasks that want the same thing made once, and several that make parts
of one thing.

Single flight is a lock per key instead of a shared task: when the maker is cancelled, the next one
takes over.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Flights:
    """Locks by key; a key that nobody holds or waits for takes no memory."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    def busy(self, key: str) -> bool:
        """Tell whether somebody works on `key`, or waits for that."""
        return key in self._locks

    @asynccontextmanager
    async def over(self, key: str) -> AsyncIterator[None]:
        """Be the only one to work on `key`; the body looks first whether the work is done."""
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = (lock, users - 1)


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """Give a task group that, when parts fail, raises the first failure itself instead of a group
    of all.
    """
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        first: BaseException = failures
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from failures
