"""What the daemon, `netd` and the gateway say to each other: calls with descriptors, both ways.

A message is four bytes of length and a JSON object, over a Unix stream; its descriptors travel with
its first byte (SCM_RIGHTS) and are counted in it. Everything is bounded: what a peer sends beyond
that ends the channel. Knows nothing of what the methods mean.
"""

import asyncio
import contextlib
import errno
import itertools
import json
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from hutch.errors import HutchError, error, from_json
from hutch.tasks import Scope

log = logging.getLogger(__name__)

Values: TypeAlias = dict[str, Any]

MESSAGE_LIMIT: Final = 8 << 20
BACKLOG_LIMIT: Final = 16 << 20
"""Bytes that wait for a peer that does not read; beyond, the channel ends."""
NOTES_LIMIT: Final = 1 << 20
"""Bytes that wait already when a notification is dropped instead."""
FDS_LIMIT: Final = 16
HANDLING_LIMIT: Final = 4096
CALL_TIME: Final = 30.0
"""Seconds that a call takes at most, if its caller gives no other time."""
_CHUNK: Final = 256 << 10
_PAUSE: Final = 0.1
_PASSING: Final = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED, errno.EPERM)
)
"""Why somebody cannot be let in now, but later, or why only he cannot."""
_HEAD: Final = 4
_ORDER: Final = sys.byteorder


@dataclass(frozen=True, slots=True)
class Reply:
    """What a handler answers. `gives` says that `fds` are the channel's to close once sent."""

    values: Values = field(default_factory=dict)
    fds: Sequence[int] = ()
    gives: bool = False


Handler: TypeAlias = Callable[[Values, list[int]], Awaitable[Reply]]
"""Serves a method. The descriptors that came with the call are its to close, whatever happens. What
it raises crosses, as it is if it is a HutchError."""


class Channel:
    """One end of a connection, from a connected socket on. Needs a running loop.

    Handlers run at the same time, each in a task of its own; a notification is a call that nobody
    waits for.
    """

    def __init__(
        self,
        sock: socket.socket,
        handlers: Mapping[str, Handler] | None = None,
        *,
        name: str = "channel",
    ) -> None:
        """`sock` belongs to the channel from now on."""
        sock.setblocking(False)
        self._sock = sock
        self._handlers = dict(handlers or {})
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[tuple[Values, list[int]]]] = {}
        self._received = bytearray()
        self._fds: deque[int] = deque()
        self._waiting: deque[tuple[memoryview, list[int]]] = deque()
        self._backlog = 0
        self._writing = False
        self._handling = 0
        self._scope = Scope(name)
        self._ended = asyncio.Event()
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def open(self) -> bool:
        """Tell whether the channel can be used."""
        return not self._ended.is_set()

    async def ended(self) -> None:
        """Return when the channel has ended, at whichever end."""
        await self._ended.wait()

    async def call(
        self,
        method: str,
        values: Values | None = None,
        fds: Sequence[int] = (),
        *,
        timeout: float = CALL_TIME,
    ) -> tuple[Values, list[int]]:
        """Have the peer do something; return what it answers.

        `fds` stay the caller's; those returned are the caller's to close. Raises what the handler
        raised, network_failed when the channel ends or `timeout` seconds pass.
        """
        if not self.open:
            raise self._gone()
        number = next(self._numbers)
        answer: asyncio.Future[tuple[Values, list[int]]] = self._loop.create_future()
        self._calls[number] = answer
        try:
            self._send({"id": number, "method": method, "values": values or {}}, fds)
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise error(
                "network_failed", f"{self._name} did not answer `{method}` within {timeout:g} s"
            ) from None
        except asyncio.CancelledError:
            # An answer that had come already is nobody's any more.
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                _close(answer.result()[1])
            raise
        finally:
            self._calls.pop(number, None)

    def notify(self, method: str, values: Values | None = None) -> bool:
        """Tell the peer something. Returns False when it is dropped: the peer is slow, or gone."""
        if not self.open or self._backlog > NOTES_LIMIT:
            return False
        with contextlib.suppress(HutchError):
            self._send({"method": method, "values": values or {}}, ())
        return self.open

    async def close(self) -> None:
        """End the channel, its handlers and its calls. Not for a handler of it."""
        self._end()
        await self._scope.close()

    # What goes out

    def _send(self, message: Values, fds: Sequence[int]) -> None:
        """Queue a message; its descriptors are duplicated. Raises network_failed."""
        if not self.open:
            raise self._gone()
        try:
            body = json.dumps(message | {"fds": len(fds)}, separators=(",", ":")).encode()
        except (TypeError, ValueError) as cause:
            raise error("network_failed", f"{cause} (in a message to {self._name})") from cause
        if len(body) > MESSAGE_LIMIT or len(fds) > FDS_LIMIT:
            raise error("network_failed", f"a message to {self._name} is too long")
        if self._backlog + len(body) > BACKLOG_LIMIT:
            self._end()
            raise self._gone()
        held: list[int] = []
        try:
            for fd in fds:
                held.append(os.dup(fd))
        except OSError as cause:
            _close(held)
            raise error("network_failed", f"a descriptor cannot be sent: {cause}") from cause
        self._waiting.append((memoryview(len(body).to_bytes(_HEAD) + body), held))
        self._backlog += _HEAD + len(body)
        if not self._writing:
            self._writable()

    def _writable(self) -> None:
        try:
            while self._waiting:
                data, fds = self._waiting[0]
                ancillary = (
                    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(_packed(fd) for fd in fds))]
                    if fds
                    else []
                )
                sent = self._sock.sendmsg([data[:_CHUNK]], ancillary, socket.MSG_NOSIGNAL)
                _close(fds)
                self._backlog -= sent
                if sent < len(data):
                    self._waiting[0] = (data[sent:], [])
                else:
                    self._waiting.popleft()
        except (BlockingIOError, InterruptedError):
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._sock.fileno(), self._writable)
            return
        except OSError as cause:
            log.debug("%s: %s", self._name, cause)
            self._end()
            return
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock.fileno())

    # What comes in

    def _readable(self) -> None:
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(
                _CHUNK, socket.CMSG_SPACE(FDS_LIMIT * 4), socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError as cause:
            log.debug("%s: %s", self._name, cause)
            self._end()
            return
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(content) - len(content) % 4
                for at in range(0, whole, 4):
                    self._fds.append(int.from_bytes(content[at : at + 4], _ORDER))
        self._received += data
        if not data or flags & socket.MSG_CTRUNC or not self._take():
            self._end()

    def _take(self) -> bool:
        """Take the whole messages that are there; returns False when the peer talks nonsense."""
        while len(self._received) >= _HEAD:
            length = int.from_bytes(self._received[:_HEAD])
            if length > MESSAGE_LIMIT:
                log.error("%s: a message of %d bytes", self._name, length)
                return False
            if len(self._received) < _HEAD + length:
                break
            body = bytes(self._received[_HEAD : _HEAD + length])
            del self._received[: _HEAD + length]
            try:
                message = json.loads(body)
                count = message["fds"]
                if not 0 <= count <= len(self._fds):
                    raise ValueError(count)
            except (ValueError, TypeError, KeyError, RecursionError):
                log.error("%s: a message that cannot be read", self._name)
                return False
            fds = [self._fds.popleft() for _ in range(count)]
            if not self._dispatch(message, fds):
                _close(fds)
                log.error("%s: a message that makes no sense", self._name)
                return False
        return len(self._fds) <= FDS_LIMIT

    def _dispatch(self, message: Values, fds: list[int]) -> bool:
        number, method = message.get("id"), message.get("method")
        values = message.get("values", {})
        if not isinstance(values, dict) or not isinstance(number, int | None):
            return False
        if isinstance(method, str):
            if self._handling >= HANDLING_LIMIT:
                return False
            self._handling += 1
            self._scope.start(method, self._handle(number, method, values, fds))
            return True
        if number is None:
            return False
        answer = self._calls.get(number)
        if answer is None or answer.done():  # nobody waits for it any more
            _close(fds)
        elif isinstance(failure := message.get("error"), dict):
            _close(fds)
            answer.set_exception(from_json(failure))
        else:
            answer.set_result((values, fds))
        return True

    async def _handle(
        self, number: int | None, method: str, values: Values, fds: list[int]
    ) -> None:
        try:
            answer, reply = await self._outcome(method, values, fds)
        finally:
            self._handling -= 1
        try:
            if number is not None:
                self._send({"id": number} | answer, reply.fds)
        except HutchError as cause:
            # The one who asked is gone, or the answer cannot be told: then he is told that.
            if self.open:
                self._send({"id": number, "error": cause.to_json()}, ())
        finally:
            if reply.gives:
                _close(reply.fds)

    async def _outcome(self, method: str, values: Values, fds: list[int]) -> tuple[Values, Reply]:
        handler = self._handlers.get(method)
        if handler is None:
            _close(fds)
            unknown = error("network_failed", f"{self._name} was asked for an unknown `{method}`")
            return {"error": unknown.to_json()}, Reply()
        try:
            reply = await handler(values, fds)
        except HutchError as cause:
            return {"error": cause.to_json()}, Reply()
        except Exception as cause:  # crosses to the one who asked
            log.exception("%s: `%s` failed", self._name, method)
            failure = error("network_failed", f"`{method}` failed: {cause!r}")
            return {"error": failure.to_json()}, Reply()
        return {"values": reply.values}, reply

    def _gone(self) -> HutchError:
        return error("network_failed", f"{self._name} is gone")

    def _end(self) -> None:
        if self._ended.is_set():
            return
        self._ended.set()
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _, fds in self._waiting:
            _close(fds)
        self._waiting.clear()
        _close(self._fds)
        self._fds.clear()
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(self._gone())


def listen(path: Path) -> socket.socket:
    """Return a listening socket at `path`, which it replaces. Only its owner may connect.

    Raises OSError.
    """
    # Under another name first: `path` is never a socket that others may connect to.
    made = path.with_name(f".{path.name}.{os.getpid()}")
    made.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(made))
        made.chmod(0o600)
        sock.listen(16)
        made.replace(path)
    except OSError:
        sock.close()
        made.unlink(missing_ok=True)
        raise
    return sock


async def connect(
    path: Path, handlers: Mapping[str, Handler] | None = None, *, name: str
) -> Channel:
    """Return a channel to who listens at `path`. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, str(path))
    except BaseException:
        sock.close()
        raise
    return Channel(sock, handlers, name=name)


async def serve(
    listener: socket.socket, handlers: Callable[[Channel], Mapping[str, Handler]], *, name: str
) -> None:
    """Accept channels on a listening socket until cancelled; then they end.

    When the host has no room for one more, it waits at the socket until there is.
    `handlers` gives those of a new channel: the channel itself is for what they push.
    """
    listener.setblocking(False)
    loop = asyncio.get_running_loop()
    channels: set[Channel] = set()
    async with Scope(name) as scope:
        try:
            while True:
                try:
                    sock, _ = await loop.sock_accept(listener)
                except OSError as cause:
                    if cause.errno not in _PASSING:
                        raise
                    log.warning("%s: nobody can be let in: %s", name, cause.strerror)
                    await asyncio.sleep(_PAUSE)
                    continue
                channel = Channel(sock, name=name)
                channel._handlers.update(handlers(channel))
                channels.add(channel)
                scope.start("end", _forget(channel, channels))
        finally:
            for channel in channels.copy():
                await channel.close()


async def _forget(channel: Channel, channels: set[Channel]) -> None:
    await channel.ended()
    channels.discard(channel)
    await channel.close()


def _packed(fd: int) -> bytes:
    return fd.to_bytes(4, _ORDER)


def _close(fds: Sequence[int] | deque[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
