"""The ports that one sandbox publishes: taken, listened on, and the connections that came in.

A port is taken before its sandbox runs; connections that come before wait in the kernel. It must
not know how a sandbox is reached, nor what is on record.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from hutch.errors import HutchError
from hutch.guest.base import TunnelStream
from hutch.networking import PublishedPort
from hutch.portspec import overlap
from hutch.service.hostports import is_spare
from hutch.service.portconnection import PortConnection, prepare
from hutch.tasks import Scope

log = logging.getLogger(__name__)

BREATH_SECONDS: Final = 1.0
"""How long nobody is accepted once the host is out of descriptors or memory for it."""

Connect = Callable[[int], Awaitable[TunnelStream]]
Key = tuple[str, int]


def key_of(port: PublishedPort) -> Key:
    """Return what tells one published port from all others of a host."""
    return port.address, port.host_port


class Listener:
    """A socket that listens on one port, which hands out whom it accepts while it is `open`."""

    def __init__(self, port: PublishedPort, listener: socket.socket) -> None:
        self.port = port
        self._listener = listener
        self._accepted: Callable[[PublishedPort, socket.socket], None] | None = None
        self._breath: asyncio.TimerHandle | None = None

    def open(self, accepted: Callable[[PublishedPort, socket.socket], None]) -> None:
        """Accept from now on, one at a time. Idempotent."""
        self._accepted = accepted
        if self._breath is None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def hold(self) -> None:
        """Accept nobody for now: who comes waits in the kernel. Idempotent."""
        self._accepted = None
        if self._breath is not None:
            self._breath.cancel()
            self._breath = None
        asyncio.get_running_loop().remove_reader(self._listener)

    def close(self) -> None:
        """Give the port up. Idempotent."""
        if self._listener.fileno() >= 0:
            self.hold()
            self._listener.close()

    def _accept(self) -> None:
        try:
            _check_spare(self._listener)
            client, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # whoever it was has gone again
        except OSError as cause:
            log.warning("port %d accepts nobody for a moment: %s", self.port.host_port, cause)
            self._take_breath()
            return
        try:
            prepare(client)
        except OSError:  # it has gone meanwhile
            client.close()
            return
        assert self._accepted is not None
        self._accepted(self.port, client)

    def _take_breath(self) -> None:
        loop, accepted = asyncio.get_running_loop(), self._accepted
        assert accepted is not None
        self.hold()

        def go_on() -> None:
            self._breath = None
            self.open(accepted)

        self._breath = loop.call_later(BREATH_SECONDS, go_on)


def _check_spare(listener: socket.socket) -> None:
    """Leave the last descriptors to others, before anybody is accepted. Raises OSError."""
    next_fd = os.dup(listener.fileno())
    os.close(next_fd)
    if is_spare(next_fd):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Publication:
    """All published ports of one sandbox, of which some may be `failed`: others have them."""

    def __init__(self, name: str, connect: Connect, limit: int) -> None:
        """`connect` reaches a port of the guest; `limit` is how many connections there may be."""
        self._connect = connect
        self._limit = limit
        self._listeners: dict[Key, Listener] = {}
        self._clients: dict[asyncio.Task[None], Key] = {}
        self._scope = Scope(f"ports {name}")
        self.failed: dict[Key, HutchError] = {}
        """Why what should be published is not."""
        self.serving = False
        """Whether connections are taken."""
        self.closed = False

    # ---- ports

    @property
    def taken(self) -> Sequence[int]:
        """The numbers of the ports that are taken."""
        return [number for _, number in self._listeners]

    def has(self, port: PublishedPort) -> bool:
        """Tell whether a port is taken."""
        return key_of(port) in self._listeners

    def holds(self, port: PublishedPort) -> bool:
        """Tell whether what is taken stands in the way of a port."""
        return any(
            number == port.host_port and overlap(address, port.address)
            for address, number in self._listeners
        )

    def add(self, port: PublishedPort, listener: socket.socket) -> None:
        """Take over a port that was taken for it."""
        self.failed.pop(key_of(port), None)
        added = self._listeners[key_of(port)] = Listener(port, listener)
        if self.serving and not self._full:
            added.open(self._accepted)

    async def remove(self, port: PublishedPort) -> None:
        """Give a port up, and break its connections off."""
        self.failed.pop(key_of(port), None)
        listener = self._listeners.pop(key_of(port), None)
        if listener is not None:
            listener.close()
        gone = {task for task, key in self._clients.items() if key == key_of(port)}
        for task in gone:
            task.cancel()
        if gone:
            await asyncio.wait(gone)

    def noted(self, port: PublishedPort) -> PublishedPort:
        """Return a port with why it is not published, if it is not."""
        failure = self.failed.get(key_of(port))
        return replace(port, error=None if failure is None else failure.message)

    # ---- connections

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._clients)

    @property
    def _full(self) -> bool:
        return len(self._clients) >= self._limit

    def serve(self) -> None:
        """Take connections from now on. Idempotent."""
        self.serving = True
        if not self._full:
            for listener in self._listeners.values():
                listener.open(self._accepted)

    def _accepted(self, port: PublishedPort, client: socket.socket) -> None:
        task = self._scope.start("connection", self._carry(port, client))
        self._clients[task] = key_of(port)
        # Not at the end of the task's own work: one that is cancelled early never begins it.
        task.add_done_callback(lambda _: self._ended(task, client))
        if self._full:
            for listener in self._listeners.values():
                listener.hold()

    def _ended(self, task: "asyncio.Task[None]", client: socket.socket) -> None:
        client.close()
        was_full = self._full
        self._clients.pop(task, None)
        if was_full and self.serving:
            self.serve()

    async def _carry(self, port: PublishedPort, client: socket.socket) -> None:
        try:
            stream = await self._connect(port.guest_port)
        except HutchError as failure:
            log.debug("nobody answers at port %d: %s", port.guest_port, failure)
            return
        try:
            await PortConnection(client, stream).carry()
        finally:
            await stream.close()

    # ---- the end

    def shut(self) -> None:
        """Give all ports up, at once. Idempotent."""
        self.closed, self.serving = True, False
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()

    async def close(self) -> None:
        """Give all ports up, and break all connections off."""
        self.shut()
        await self._scope.close()


class Reserved:
    """Ports that are taken for a sandbox in the making; what nobody keeps is given up."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ports: list[PublishedPort] = []
        """As they are to be on record, each with its number."""
        self._sockets: list[tuple[PublishedPort, socket.socket]] = []

    def note(self, port: PublishedPort, listener: socket.socket | None) -> None:
        """Add a port, which is taken if there is a socket that listens."""
        self.ports.append(port)
        if listener is not None:
            self._sockets.append((port, listener))

    @property
    def taken(self) -> Sequence[int]:
        """The numbers of the ports that are taken, as long as nobody else has them."""
        return [port.host_port for port, _ in self._sockets]

    def holds(self, port: PublishedPort) -> bool:
        """Tell whether what is taken stands in the way of a port."""
        return any(
            port.host_port == other.host_port and overlap(port.address, other.address)
            for other, _ in self._sockets
        )

    def hand_over(self, publication: Publication) -> None:
        """Let the sandbox have them, unless its publication was closed meanwhile."""
        if not publication.closed:
            sockets, self._sockets = self._sockets, []
            for port, listener in sockets:
                publication.add(port, listener)

    def close(self) -> None:
        """Give up what nobody has been handed."""
        for _, listener in self._sockets:
            listener.close()
        self._sockets.clear()

    @contextlib.contextmanager
    def until_kept(self) -> Iterator["Reserved"]:
        """Give up at the end of the block what was not handed over."""
        try:
            yield self
        finally:
            self.close()
