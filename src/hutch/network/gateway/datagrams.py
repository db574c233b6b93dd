"""A sandbox's UDP socket: questions to any address, answered from that address.

Knows nothing of DNS nor of time.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import struct
from collections.abc import Callable
from typing import Final

from hutch.network.gateway.accept import bound_to

log = logging.getLogger(__name__)

BATCH: Final = 16
"""Packets that are taken before other sandboxes have their turn."""
PACKET_LIMIT: Final = 4096
DRAIN_LIMIT: Final = 4096
"""Packets that are dropped at once at most: more than wait in a socket of the usual size."""

_IP_PKTINFO: Final = 8
_PKTINFO: Final = struct.Struct("=I4s4s")

Answer = Callable[[bytes], None]
"""Sends one datagram to who asked, from the address that was asked. Never blocks nor raises."""


class Datagrams:
    """A UDP socket bound to one interface. Nothing is read before `resume`.

    `handle(packet, answer)` is given each packet and returns False to have the rest wait, until
    `resume`.
    """

    def __init__(
        self, sock: socket.socket, ifindex: int, handle: Callable[[bytes, Answer], bool]
    ) -> None:
        """Raises OSError for what is no socket of that interface alone."""
        if bound_to(sock) != ifindex or sock.type != socket.SOCK_DGRAM:
            raise OSError(errno.EINVAL, f"no datagram socket of the interface {ifindex}")
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        sock.setblocking(False)
        self._sock = sock
        self._ifindex = ifindex
        self._handle = handle
        self._loop = asyncio.get_running_loop()
        self._reading = False

    def resume(self) -> None:
        """Read; nothing happens when that is done already."""
        if not self._reading and self._sock.fileno() >= 0:
            self._reading = True
            self._loop.add_reader(self._sock, self._readable)

    def pause(self) -> None:
        """Read nothing for now: packets wait in the kernel, which drops what is too much."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def drain(self) -> None:
        """Drop what waits."""
        with contextlib.suppress(OSError):
            for _ in range(DRAIN_LIMIT):
                self._sock.recv(1)

    def close(self) -> None:
        """Read and send nothing ever again."""
        self.pause()
        self._sock.close()

    def _readable(self) -> None:
        for _ in range(BATCH):
            if not self._reading:
                return
            try:
                packet, ancillary, flags, source = self._sock.recvmsg(
                    PACKET_LIMIT, socket.CMSG_SPACE(_PKTINFO.size)
                )
            except BlockingIOError:
                return
            except OSError as cause:  # of an answer that could not be delivered
                log.debug("interface %d: %s", self._ifindex, cause)
                continue
            asked = self._asked(ancillary)
            if asked is None or flags & socket.MSG_TRUNC:
                continue
            if not self._handle(packet, self._answer_to(source, asked)):
                self.pause()

    def _asked(self, ancillary: list[tuple[int, int, bytes]]) -> bytes | None:
        """Return the address that a packet was sent to; None if it came another way."""
        for level, kind, content in ancillary:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                ifindex, _, address = _PKTINFO.unpack(content)
                return address if ifindex == self._ifindex else None
        return None

    def _answer_to(self, source: tuple[str, int], asked: bytes) -> Answer:
        origin = _PKTINFO.pack(0, asked, bytes(4))

        def answer(packet: bytes) -> None:
            if self._sock.fileno() < 0:
                return
            # A guest that takes no answers has none.
            with contextlib.suppress(OSError):
                self._sock.sendmsg([packet], [(socket.IPPROTO_IP, _IP_PKTINFO, origin)], 0, source)

        return answer
