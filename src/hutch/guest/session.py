"""A connection to one agent as `base.Guest`: the link, greeted, with every operation on it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from hutch.guest import failures
from hutch.guest.base import AgentInfo, Guest, GuestEvent, GuestFiles
from hutch.guest.exec import Execs
from hutch.guest.files import Files
from hutch.guest.link import Link
from hutch.guest.machine import Machine, parse_info
from hutch.guest.messages import GuestProtocolError
from hutch.guest.tunnel import Tunnels

_RECONNECT_PAUSE: Final = 0.02


class GuestSession(Machine, Execs, Tunnels):
    """`base.Guest` over a greeted link; `connect_guest` makes one."""

    def __init__(self, link: Link, info: AgentInfo, round_trip: float) -> None:
        super().__init__(link, info, round_trip)
        self.files: GuestFiles = Files(link)

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, for whatever reason."""
        return self._link.closed

    async def wait_closed(self) -> None:
        """Wait until the connection has ended."""
        await self._link.wait_closed()

    async def events(self) -> AsyncGenerator[GuestEvent, None]:
        """Yield events until the connection ends; the queue is bounded, the oldest are dropped.

        There is one queue, filled from the start of the connection: two iterators share it.
        """
        while (event := await self._link.events.take()) is not None:
            yield event

    async def close(self) -> None:
        """End the connection. Programs in the guest go on; transfers are undone."""
        self._link.close()


async def connect_guest(path: Path | str, *, timeout: float) -> Guest:
    """Connect to the agent behind the unix socket `path` within `timeout` seconds.

    The socket may not listen yet, and the guest may still boot: both are waited for. Raises
    guest_timeout, sandbox_died when the other side closes, guest_protocol, and guest_failed when no
    version is common.
    """
    deadline = asyncio.get_running_loop().time() + timeout
    try:
        async with asyncio.timeout_at(deadline):
            link = await _connect(str(path))
    except TimeoutError:
        raise failures.timed_out("the guest's socket", timeout) from None
    try:
        async with asyncio.timeout_at(deadline):
            round_trip = await link.greet(timeout)
            info = await _first_event(link)
    except TimeoutError:
        link.close()
        raise failures.timed_out("the guest agent", timeout) from None
    except BaseException:
        link.close()
        raise
    return GuestSession(link, info, round_trip)


async def _connect(path: str) -> Link:
    loop = asyncio.get_running_loop()
    while True:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            _, link = await loop.create_unix_connection(Link, path)
            return link
        # Nothing tells when a socket begins to listen: look again.
        await asyncio.sleep(_RECONNECT_PAUSE)


async def _first_event(link: Link) -> AgentInfo:
    event = await link.events.take()
    if event is None:
        raise link.failure or failures.lost("it ended before the agent said hello")
    with link.strict():
        if event.kind != "hello":
            raise GuestProtocolError("the first event is not hello")
        return parse_info(event.fields)
