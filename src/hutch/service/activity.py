"""Whether anybody uses a sandbox, and for how long nobody has.

In use is one with a program beside its main process, a client attached, a file transfer or a tunnel
under way. It must not know what follows from idleness.
"""

import asyncio
import contextlib
import time
from collections.abc import Hashable, Iterator


class Activity:
    """What is under way in one sandbox, each use by a key of its own.

    Invariant: `since` is the (monotonic) moment from which on nobody has used it, while not `busy`.
    """

    def __init__(self) -> None:
        self._uses: set[Hashable] = set()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.since = time.monotonic()

    @property
    def busy(self) -> bool:
        """Whether somebody uses it now."""
        return bool(self._uses)

    def begin(self, key: Hashable) -> None:
        """Note that a use begins. One that has begun goes on."""
        self._uses.add(key)
        self._quiet.clear()

    def end(self, key: Hashable) -> None:
        """Note that a use has ended, if it had begun."""
        self._uses.discard(key)
        self.touch()

    def touch(self) -> None:
        """Count idleness anew, from now on."""
        self.since = time.monotonic()
        if not self._uses:
            self._quiet.set()

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Be a use for the length of the block."""
        key = object()
        self.begin(key)
        try:
            yield
        finally:
            self.end(key)

    async def until_idle(self, seconds: float) -> None:
        """Return when nobody has used it for so long: one timer, however often it is used."""
        while True:
            await self._quiet.wait()
            left = self.since + seconds - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(left)
