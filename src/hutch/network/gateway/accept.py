"""Take a sandbox's connections off its listener, one sandbox never in the way of another.

A connection's identity is the interface that its listener is bound to; its destination is the
address of its own end (TPROXY). Knows nothing of policies.
"""

import asyncio
import contextlib
import errno
import logging
import resource
import socket
import struct
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

Endpoint = tuple[str, int]

BATCH: Final = 16
"""Connections that are taken before other sandboxes have their turn."""
DRAIN_LIMIT: Final = 65536
"""Connections that are taken off a listener's backlog at most: more than a backlog can hold."""
RETRY: Final = 0.5
"""Seconds until a listener is tried again after the kernel had no room for a connection."""

SPARE: Final = 64
"""Descriptors that no guest's connection may have: for the daemon, files and look-ups."""

RECEIVE_ROOM: Final = 512 * 1024
"""Bytes of a guest that the kernel keeps for us at most; it reckons twice as many of memory."""
UNSENT: Final = 256 * 1024
"""Bytes that wait in the kernel to be sent at most, besides those that are on their way."""

_SO_BINDTOIFINDEX: Final = 62
_TCP_NOTSENT_LOWAT: Final = 25
_ABORT: Final = struct.pack("ii", 1, 0)
_ORDERLY: Final = struct.pack("ii", 0, 0)
_FULL: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_USER_TIMEOUT: Final = 2**31 - 1
"""Milliseconds for which bytes may wait for a guest's answer: it may be paused for days."""
_TCP_RTO_MAX_MS: Final = 44
_RTO_MAX: Final = 2000
"""Milliseconds after which a guest that was paused gets, at the latest, what it missed."""


def arm(sock: socket.socket) -> None:
    """Have a connection end with a RST when it is closed, by whatever: by our death, too.

    A FIN would make what is missing look like the end. Who ends it in order calls `finish`.
    """
    with contextlib.suppress(OSError):  # of another family, or closed
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)


def reset(sock: socket.socket) -> None:
    """End a connection with a RST; nothing happens to one that has ended."""
    arm(sock)
    sock.close()


def bound_unsent(sock: socket.socket) -> None:
    """Bound what the kernel holds for a peer that takes nothing.

    Not by SO_SNDBUF: that would bound what is on its way, too, and so how fast far peers are.
    """
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT)


def finish(sock: socket.socket) -> None:
    """End a connection in order: what was sent arrives, and then its end."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ORDERLY)
    sock.close()


def is_spare(fd: int) -> bool:
    """Tell whether a descriptor is one of the last that this process may have."""
    return fd >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE


def bound_to(sock: socket.socket) -> int:
    """Return the index of the interface that a socket is bound to; 0: none."""
    return sock.getsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX)


def destination_of(guest: socket.socket) -> Endpoint:
    """Return what the guest connected to: with TPROXY that is the address of our own end."""
    address, port = guest.getsockname()[:2]
    return address, port


def drain(listener: socket.socket) -> int:
    """Reset what waits in a listener's backlog; returns how many connections that were.

    The kernel completes handshakes while nobody decides about them.
    """
    for count in range(DRAIN_LIMIT):
        try:
            waiting, _ = listener.accept()
        except BlockingIOError:
            return count
        except ConnectionError:
            continue
        except OSError as cause:
            log.warning("a backlog cannot be drained: %s", cause)
            return count
        reset(waiting)
    return DRAIN_LIMIT


class Acceptor:
    """A sandbox's listener. Nothing is taken off it before `resume`.

    `admit(guest, destination)` is given each connection, non-blocking, and owns it from then on;
    it returns False when the sandbox is at its limit: the acceptor pauses, until `resume`.
    `exhausted` is called when the process has no descriptor left.
    """

    def __init__(
        self,
        listener: socket.socket,
        ifindex: int,
        admit: Callable[[socket.socket, Endpoint], bool],
        exhausted: Callable[[], None],
    ) -> None:
        """Raises OSError for what is no socket that listens on that interface alone."""
        if bound_to(listener) != ifindex or not listener.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        ):
            raise OSError(errno.EINVAL, f"no listener of the interface {ifindex}")
        listener.setblocking(False)
        self._listener = listener
        self._ifindex = ifindex
        self._admit = admit
        self._exhausted = exhausted
        self._loop = asyncio.get_running_loop()
        self._accepting = False
        self._retry: asyncio.TimerHandle | None = None

    @property
    def accepting(self) -> bool:
        """Tell whether connections are taken at the moment."""
        return self._accepting

    def resume(self) -> None:
        """Take connections; nothing happens when they are taken already."""
        self._unschedule()
        if not self._accepting and self._listener.fileno() >= 0:
            self._accepting = True
            self._loop.add_reader(self._listener, self._readable)

    def pause(self) -> None:
        """Take none for now: they wait in the backlog."""
        self._unschedule()
        if self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._listener)

    def close(self) -> None:
        """Take none ever again; those that wait are reset."""
        self.pause()
        if self._listener.fileno() >= 0:
            drain(self._listener)
            self._listener.close()

    def drain(self) -> int:
        """Reset what waits; returns how many that were."""
        return drain(self._listener)

    def _unschedule(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _readable(self) -> None:
        for _ in range(BATCH):
            if not self._accepting:
                return
            try:
                guest, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # gone before it was taken
                continue
            except OSError as cause:
                self._failed(cause)
                return
            if is_spare(guest.fileno()):
                reset(guest)
                self._failed(OSError(errno.EMFILE, "there are spare descriptors only"))
                return
            self._take(guest)

    def _failed(self, cause: OSError) -> None:
        if cause.errno not in _FULL:
            log.error("interface %d takes no connections: %s", self._ifindex, cause)
        self.pause()
        self._retry = self._loop.call_later(RETRY, self.resume)
        self._exhausted()

    def _take(self, guest: socket.socket) -> None:
        try:
            guest.setblocking(False)
            arm(guest)
            if bound_to(guest) != self._ifindex:
                raise OSError(errno.EINVAL, "a connection of another interface")
            destination = destination_of(guest)
            guest.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            guest.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_ROOM)
            bound_unsent(guest)
            # No keepalive to a guest: a paused one must find its connections as they were. That it
            # has ended is not for the kernel to find out, the daemon says so.
            guest.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT)
            with contextlib.suppress(OSError):  # before Linux 6.15 it is two minutes
                guest.setsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS, _RTO_MAX)
        except OSError as cause:
            log.warning("interface %d: a connection is refused: %s", self._ifindex, cause)
            reset(guest)
            return
        if not self._admit(guest, destination):
            self.pause()
