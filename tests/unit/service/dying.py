"""A daemon that dies in the middle: after so many writes to its records nothing more happens."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from hutch.errors import error
from hutch.service.host import HostService


@contextlib.asynccontextmanager
async def dying(
    service: HostService, at: int, work: Callable[[], Awaitable[object]]
) -> AsyncIterator[bool]:
    """Begin `work`, of a service that stops dead after `at` more calls of its store.

    The block, which gets whether the work was done before, is the time of the next daemon.
    """
    store: Any = service._parts.store
    hang = asyncio.get_running_loop().create_future()
    reached, steps = asyncio.Event(), 0

    class Dying:
        def __getattr__(self, name: str) -> Any:
            method = getattr(store, name)

            async def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal steps
                if reached.is_set():
                    await asyncio.shield(hang)  # one who is cancelled leaves the others waiting
                result = await method(*args, **kwargs)
                steps += 1
                if steps > at:
                    reached.set()
                    await asyncio.shield(hang)
                return result

            return call

    object.__setattr__(service._parts, "store", Dying())
    making = asyncio.ensure_future(work())
    done = asyncio.ensure_future(reached.wait())
    await asyncio.wait({making, done}, return_when=asyncio.FIRST_COMPLETED)
    yield making.done()
    done.cancel()
    hang.set_exception(error("internal", "this daemon is dead"))
    await asyncio.wait({making})
    # Both are looked at: what nobody has is told of by the garbage collector, in the middle of
    # whatever runs then, which may be the parser (a SystemError in Python 3.11).
    hang.exception()
    if not making.cancelled():
        making.exception()
