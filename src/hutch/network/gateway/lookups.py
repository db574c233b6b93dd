"""A sandbox's questions: DNS over UDP and TCP, whatever address they are sent to, and the time.

Bounds how many are answered at once; what is answered is `hutch.network.dns.guest`'s to say.
"""

import asyncio
import logging
import socket
import time
from typing import Final

from hutch.network import sntp
from hutch.network.dns.guest import GuestResolver
from hutch.network.gateway.accept import finish, reset
from hutch.network.gateway.datagrams import Answer, Datagrams
from hutch.tasks import Scope

log = logging.getLogger(__name__)

_LENGTH: Final = 2


class Lookups:
    """The questions of one sandbox. Nothing is answered before `resume`."""

    def __init__(
        self,
        dns: socket.socket,
        clock: socket.socket,
        ifindex: int,
        *,
        limit: int,
        message_time: float,
    ) -> None:
        """`message_time` is how many seconds a question over TCP may take to arrive.

        Raises OSError for sockets of another interface.
        """
        self.count = 0
        """Questions so far."""
        self.silent = False
        """Whether nothing is answered though all is judged: the mode is none."""
        self._dns = Datagrams(dns, ifindex, self._asked)
        self._clock = Datagrams(clock, ifindex, self._tell_time)
        self._limit = limit
        self._message_time = message_time
        self._resolver: GuestResolver | None = None
        self._scope = Scope("lookups")
        self._tasks: set[asyncio.Task[None]] = set()

    def resume(self, resolver: GuestResolver) -> None:
        """Answer, by that resolver; what came before is dropped."""
        self._dns.drain()
        self._clock.drain()
        self._resolver = resolver
        self._dns.resume()
        self._clock.resume()

    def pause(self) -> None:
        """Answer nothing more, and nothing of what was asked already."""
        self._resolver = None
        self._dns.pause()
        self._clock.pause()
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """Close the sockets."""
        self.pause()
        self._dns.close()
        self._clock.close()
        await self._scope.close()

    def _asked(self, packet: bytes, answer: Answer) -> bool:
        self.count += 1
        task = self._scope.start("datagram", self._datagram(packet, answer))
        self._tasks.add(task)
        task.add_done_callback(self._answered)
        return len(self._tasks) < self._limit

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._resolver is not None:
            self._dns.resume()

    async def _datagram(self, packet: bytes, answer: Answer) -> None:
        resolver = self._resolver
        if resolver is None:
            return
        reply = await resolver.answer(packet, False)
        # A policy that was withdrawn, or withdrawn and put again, has another resolver.
        if reply is not None and resolver is self._resolver and not self.silent:
            answer(reply)

    async def stream(self, guest: socket.socket) -> None:
        """Answer what is asked over a TCP connection, one question after the other, to its end.

        Raises OSError when the guest hangs up or is too slow.
        """
        try:
            while (query := await self._question(guest)) is not None:
                self.count += 1
                resolver = self._resolver
                if resolver is None:
                    return
                reply = await resolver.answer(query, True)
                if reply is None or resolver is not self._resolver or self.silent:
                    return
                async with asyncio.timeout(self._message_time):
                    data = len(reply).to_bytes(_LENGTH) + reply
                    await asyncio.get_running_loop().sock_sendall(guest, data)
            finish(guest)
        finally:
            reset(guest)

    def _tell_time(self, packet: bytes, answer: Answer) -> bool:
        if not self.silent and (reply := sntp.answer(packet, time.time_ns())) is not None:
            answer(reply)
        return True

    async def _question(self, guest: socket.socket) -> bytes | None:
        """Return the next question; None when there are no more."""
        async with asyncio.timeout(self._message_time):
            length = await _exactly(guest, _LENGTH)
            return await _exactly(guest, int.from_bytes(length)) if length else None


async def _exactly(sock: socket.socket, count: int) -> bytes:
    """Return that many bytes, or none at all if the end comes before the first."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < count:
        part = await loop.sock_recv(sock, count - len(data))
        if not part:
            if data:
                raise ConnectionResetError("the guest hung up within a question")
            break
        data += part
    return data
