"""Connect to one of several addresses that were checked (RFC 8305).

Knows numeric addresses only, so that nothing is ever resolved behind the policy's back. Who calls
it has judged each address, and judges again what it gets.
"""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from itertools import zip_longest
from typing import Final

from hutch.network.gateway.accept import arm, bound_unsent, is_spare
from hutch.networking import Reason

Address = IPv4Address | IPv6Address

ATTEMPTS: Final = 6
"""Addresses that one connection tries at most."""
ATTEMPT_DELAY: Final = 0.25
"""Seconds until the next address is tried beside those that have not answered."""
KEEPALIVE_IDLE: Final = 60
"""Seconds without a byte after which a peer is asked whether it is still there."""

_REFUSED = {errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED}
_FULL = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN}
_TELLING = (
    Reason.UPSTREAM_REFUSED,
    Reason.UPSTREAM_TIMEOUT,
    Reason.UPSTREAM_UNREACHABLE,
    Reason.LIMIT,
)
"""Of several failures, the one that tells most is told."""


class DialError(Exception):
    """No address could be connected to. `reason` is one of UPSTREAM_… or LIMIT."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def interleaved(addresses: Sequence[Address]) -> list[Address]:
    """Return the first ATTEMPTS addresses in the order to try: IPv6 and IPv4 in turn."""
    ordered = dict.fromkeys(addresses)
    six = [address for address in ordered if address.version == 6]
    four = [address for address in ordered if address.version == 4]
    turns = zip_longest(six, four)
    return [address for turn in turns for address in turn if address is not None][:ATTEMPTS]


async def dial(
    addresses: Sequence[Address],
    port: int,
    *,
    timeout: float,
    delay: float = ATTEMPT_DELAY,
) -> tuple[socket.socket, Address]:
    """Connect to the first of `addresses` that answers; returns a non-blocking socket and which.

    Raises DialError. Cancelled or not, nothing half open is left behind.
    """
    race = _Race(port)
    try:
        async with asyncio.timeout(timeout):
            return await race.run(interleaved(addresses), delay)
    except TimeoutError:
        raise DialError(
            Reason.UPSTREAM_TIMEOUT, f"no answer within {timeout:g} s on port {port}"
        ) from None
    finally:
        race.close()


class _Race:
    def __init__(self, port: int) -> None:
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._open: dict[socket.socket, Address] = {}
        self._ready: asyncio.Queue[socket.socket] = asyncio.Queue()
        self._failures: dict[Reason, str] = {}

    async def run(self, addresses: list[Address], delay: float) -> tuple[socket.socket, Address]:
        waiting = addresses[::-1]
        while waiting or self._open:
            if waiting:
                self._start(waiting.pop())
            if not self._open and self._ready.empty():
                continue
            try:
                async with asyncio.timeout(delay if waiting else None):
                    ready = await self._ready.get()
            except TimeoutError:
                continue
            self._loop.remove_writer(ready)
            address = self._open.pop(ready)
            number = ready.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not number and not _met_itself(ready):
                _prepare(ready)
                return ready, address
            ready.close()
            self._failed(address, number or errno.ECONNREFUSED)
        for reason in _TELLING:
            if reason in self._failures:
                raise DialError(reason, self._failures[reason])
        raise DialError(Reason.UPSTREAM_UNREACHABLE, "there is no address to connect to")

    def _start(self, address: Address) -> None:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            attempt = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as cause:
            self._failed(address, cause.errno or errno.EMFILE)
            return
        if is_spare(attempt.fileno()):
            attempt.close()
            self._failed(address, errno.EMFILE)
            return
        number = attempt.connect_ex((str(address), self._port))
        if number in (0, errno.EINPROGRESS):
            self._open[attempt] = address
            self._loop.add_writer(attempt, self._answered, attempt)
            return
        attempt.close()
        self._failed(address, number)

    def _answered(self, attempt: socket.socket) -> None:
        self._loop.remove_writer(attempt)
        self._ready.put_nowait(attempt)

    def _failed(self, address: Address, number: int) -> None:
        if number in _REFUSED:
            reason, text = Reason.UPSTREAM_REFUSED, "refused the connection"
        elif number == errno.ETIMEDOUT:
            reason, text = Reason.UPSTREAM_TIMEOUT, "did not answer"
        elif number in _FULL:
            reason, text = Reason.LIMIT, "cannot be tried: the gateway is at its limits"
        else:
            name = errno.errorcode.get(number, str(number))
            reason, text = Reason.UPSTREAM_UNREACHABLE, f"cannot be reached ({name})"
        self._failures.setdefault(reason, f"{address} port {self._port} {text}")

    def close(self) -> None:
        for attempt in self._open:
            self._loop.remove_writer(attempt)
            attempt.close()
        self._open.clear()


def _met_itself(connected: socket.socket) -> bool:
    """Tell whether a port of loopback that nobody listens on was its own peer by chance."""
    with contextlib.suppress(OSError):
        return bool(connected.getsockname() == connected.getpeername())
    return False


def _prepare(connected: socket.socket) -> None:
    arm(connected)
    bound_unsent(connected)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
