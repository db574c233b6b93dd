"""Waiting for a condition with a deadline: the only place in the tests that sleeps.

The deadlines are for what never happens: a busy host may take many times as long as a quiet one.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_INTERVAL = 0.02
_DEADLINE = 60.0


def wait_until(check: Callable[[], T], *, timeout: float = _DEADLINE, what: str = "") -> T:
    """Call `check` until it returns something true, and return that. Raises AssertionError."""
    deadline = time.monotonic() + timeout
    while True:
        if found := check():
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or check}")
        time.sleep(_INTERVAL)


async def until(
    check: Callable[[], T | Awaitable[T]], *, timeout: float = _DEADLINE, what: str = ""
) -> T:
    """Do the same in a coroutine; `check` may be one."""
    deadline = time.monotonic() + timeout
    while True:
        found = check()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or check}")
        await asyncio.sleep(_INTERVAL)
