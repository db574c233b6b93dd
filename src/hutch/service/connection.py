"""The one connection to a running sandbox's agent, made anew when it breaks.

A guest that breaks the protocol loses its connection, not its programs; one that does so again and
again is given up. Everyone who talks to the guest asks here for the connection in force. It must
not know what is said over it.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

from hutch.errors import HutchError, error
from hutch.guest.base import Guest

log = logging.getLogger(__name__)

ATTEMPTS: Final = 5
WINDOW_SECONDS: Final = 60.0
"""A guest may lose its connection that many times within these seconds."""

_FIRST_PAUSE: Final = 0.05

LOST: Final = frozenset({"sandbox_died", "guest_protocol", "guest_timeout"})
"""Codes that a broken connection gives to those who were using it."""


class ConnectGuest(Protocol):
    """How a connection to the agent behind a socket is made (guest.session.connect_guest)."""

    def __call__(self, path: Path, *, timeout: float) -> Awaitable[Guest]:
        """Connect and greet within `timeout` seconds."""


class Connection:
    """The current `Guest` of one machine; `run` is its task, for as long as the machine lives."""

    def __init__(
        self,
        subject: str,
        socket: Path,
        connect: ConnectGuest,
        *,
        timeout: float,
        give_up: Callable[[HutchError], None],
    ) -> None:
        """`give_up` is called once, with the reason, when the guest cannot be reached any more."""
        self._subject = subject
        self._socket = socket
        self._connect = connect
        self._timeout = timeout
        self._give_up = give_up
        self._guest: Guest | None = None
        self._failure: HutchError | None = None
        self._changed = asyncio.Event()
        self.last = False
        """Whether the guest was told to power off: the loss of this connection is no fault."""
        self.held = False
        """Whether the guest is stopped, and cannot answer: everyone who asks for it waits."""

    def use(self, guest: Guest) -> None:
        """Take a connection into service."""
        self._guest = guest
        self._wake()

    def end(self, failure: HutchError) -> None:
        """Fail everyone who waits, now and later: there is no guest any more."""
        if self._failure is None:
            self._failure = failure
            self._wake()

    def hold(self) -> None:
        """Let everyone wait from now on: the guest is about to be stopped."""
        self.held = True

    def release(self) -> None:
        """Go on after `hold`: the guest runs again."""
        self.held = False
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def current(self) -> Guest | None:
        """The connection in force, if there is one right now."""
        guest = self._guest
        return None if guest is None or guest.closed else guest

    @property
    def ended(self) -> bool:
        """Whether there will be no connection any more."""
        return self._failure is not None

    def _is_over(self) -> bool:
        # A call, because mypy takes a property for unchanged across an await.
        return self.ended

    async def get(self) -> Guest:
        """Return the connection in force, waiting for one that is being made, or while it is held.

        Raises what it was ended with; guest_timeout.
        """
        guest = self.current
        if guest is not None and not self.ended and not self.held:
            return guest
        return await self._wait(None)

    async def after(self, dead: Guest) -> Guest:
        """Return a connection newer than `dead`. Raises as `get`."""
        return await self._wait(dead)

    async def _wait(self, dead: Guest | None) -> Guest:
        while True:
            await self.until_released()
            try:
                async with asyncio.timeout(self._timeout):
                    return await self._next(dead)
            except TimeoutError:
                if self.held:
                    continue
                raise error(
                    "guest_timeout",
                    f"the agent of {self._subject} has not answered for {self._timeout:g} s",
                    hint="look at its console with `hutch logs --boot`",
                ) from None

    async def _next(self, dead: Guest | None) -> Guest:
        while True:
            changed = self._changed
            if self._failure is not None:
                raise self._failure
            guest = self.current
            if guest is not None and guest is not dead and not self.held:
                return guest
            await changed.wait()

    async def until_released(self) -> None:
        """Return once it is not held, or has ended."""
        while self.held and not self._is_over():
            await self._changed.wait()

    async def run(self, connected: Callable[[Guest], Awaitable[None]]) -> None:
        """Keep a connection until the guest is given up or `end` is called.

        `connected` is awaited with each new connection; it returns when that connection has ended.
        """
        losses: deque[float] = deque(maxlen=ATTEMPTS)
        pause = _FIRST_PAUSE
        while not self.ended:
            await self.until_released()
            try:
                if self.current is None:
                    self.use(await self._connect(self._socket, timeout=self._timeout))
                guest = await self.get()
                await connected(guest)
                await guest.wait_closed()
                failure = error("guest_protocol", f"the agent of {self._subject} hung up")
            except HutchError as cause:
                failure = cause
            if self._is_over() or self.last:
                return
            log.warning("connection to %s lost: %s", self._subject, failure)
            losses.append(time.monotonic())
            if len(losses) == ATTEMPTS and losses[-1] - losses[0] < WINDOW_SECONDS:
                self.end(failure)
                self._give_up(failure)
                return
            if self._guest is not None:
                await self._guest.close()
            # Not a wait for an event: a guest that hangs up at once must not keep us busy.
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)

    async def close(self) -> None:
        """Hang up. The guest and its programs go on."""
        self.end(error("daemon_unreachable", "the daemon is ending"))
        if self._guest is not None:
            await self._guest.close()
