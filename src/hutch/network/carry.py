"""The pump between two connected sockets: a guest's connection and the one made for it.

Owns both sockets from the moment it is made, their buffers and what was carried. Knows nothing of
policies: what looks at the bytes stands `Between`. A FIN is handed on as FIN, a reset as reset.
"""

import asyncio
import contextlib
import fcntl
import logging
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

log = logging.getLogger(__name__)

BUFFER: Final = 64 * 1024
"""Bytes that at most wait for one side of a connection, besides those in the kernel."""
LINGER_TIME: Final = 5.0
"""Seconds that a guest has to take its last answer, and to end its side too."""
LINGER_BYTES: Final = 1024 * 1024
"""Bytes that it may go on to send meanwhile: they are dropped."""
DRAIN_TIME: Final = 60.0
"""Seconds without any progress in which a guest takes what was sent before the upstream's reset."""

_DRAIN_POLL: Final = 0.02
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: close() resets
_ORDERLY: Final = struct.pack("ii", 0, 0)
_SMALL_READ: Final = 1400
"""Bytes for which a bucket makes nobody wake up earlier: a segment, about."""


class _Scratch(threading.local):
    """The buffer that all carries of a thread read into.

    None of them gives way to another while it uses it. What one cannot get rid of at once it
    copies, so that idle connections hold no buffer.
    """

    def __init__(self) -> None:
        self.view = memoryview(bytearray(BUFFER))


_scratch = _Scratch()


class Bucket:
    """A token bucket that any number of carries may share: the rate of one sandbox, one way."""

    def __init__(
        self,
        rate: int,
        burst: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`rate` is in bytes a second; `burst` is how many may go at once (default: 1/8 s)."""
        self._rate = max(rate, 1)
        self._burst = max(burst if burst is not None else rate // 8, 1)
        self._clock = clock
        self._tokens = float(self._burst)
        self._filled = clock()

    def room(self) -> int:
        """Return how many bytes may go now."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        return max(int(self._tokens), 0)

    def take(self, count: int) -> None:
        """Count bytes that went."""
        self._tokens -= count

    def wait(self) -> float:
        """Return in how many seconds it is worth to ask again."""
        return max(min(self._burst, _SMALL_READ) - self._tokens, 1.0) / self._rate


class Between(Protocol):
    """What stands between the two sides, sees all bytes, and says which go where.

    Nothing here blocks or raises: what is wrong is told by `broken`. What the guest says makes it
    say little to the guest, and so upstream: nothing limits that.
    """

    def from_guest(self, data: bytes) -> None:
        """Take bytes of the guest."""

    def from_upstream(self, data: bytes) -> None:
        """Take bytes of the upstream."""

    def guest_ended(self) -> None:
        """Learn that the guest sends no more."""

    def upstream_ended(self, reset: bool) -> None:
        """Learn that the upstream sends no more, and maybe that it broke the connection off."""

    def for_guest(self) -> bytes:
        """Hand over what is to go to the guest now."""

    def for_upstream(self) -> bytes:
        """Hand over what is to go upstream now."""

    @property
    def unread(self) -> bool:
        """Whether it has left some of what it took unread, so that others have their turn."""

    def read_on(self) -> None:
        """Go on with that, for about as long as a callback of the loop may take."""

    @property
    def hears_guest(self) -> bool:
        """Whether bytes of the guest are wanted; until then they wait in the kernel."""

    @property
    def hears_upstream(self) -> bool:
        """Whether bytes of the upstream are wanted."""

    @property
    def fin_guest(self) -> bool:
        """Whether nothing more goes to the guest once it has what there is."""

    @property
    def fin_upstream(self) -> bool:
        """Whether nothing more goes upstream once it has what there is."""

    @property
    def over(self) -> bool:
        """Whether all is said: the guest gets what there is, then both connections close."""

    @property
    def broken(self) -> bool:
        """Whether both connections are to be reset."""


class _Side:
    """One of the two sockets. `ended`: it sends no more. `finished`: it was sent our FIN."""

    __slots__ = (
        "bucket", "deaf", "ended", "finished", "pending", "reading", "sock", "throttle", "writing"
    )  # fmt: skip

    def __init__(self, sock: socket.socket | None, bucket: Bucket | None) -> None:
        self.sock = sock
        self.bucket = bucket
        self.pending = b""  # what is to go to it
        self.ended = self.finished = sock is None
        self.deaf = sock is None  # nothing can be sent to it any more: it broke off
        self.reading = self.writing = False  # what the loop watches it for
        self.throttle: asyncio.TimerHandle | None = None


class Carry:
    """Carries bytes between two connected, non-blocking sockets until both sides have ended.

    `sent` and `received` are the guest's payload bytes so far, readable while it runs.

    A carry has no task of its own but callbacks of the loop: an idle one costs its two sockets and
    about 3 KiB.
    """

    def __init__(
        self,
        guest: socket.socket,
        upstream: socket.socket | None,
        *,
        first: bytes = b"",
        between: Between | None = None,
        up: Bucket | None = None,
        down: Bucket | None = None,
    ) -> None:
        """Take both sockets over: they are closed when `run` returns, or by `abort`.

        `first` is what was read of the guest already and goes upstream, or through `between`,
        before all else. There need be no `upstream` if `between` answers by itself (a refusal).
        `up` and `down` limit what the guest sends and receives.
        """
        self.sent = len(first)
        self.received = 0
        self._guest = _Side(guest, up)
        self._upstream = _Side(upstream, down)
        self._first = first
        self._between = between
        self._loop: asyncio.AbstractEventLoop | None = None
        self._done: asyncio.Future[None] | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._next: asyncio.Handle | None = None  # the one between reads on
        self._resetting = False  # the guest is reset as soon as it has what is on its way
        self._dropped = 0  # bytes that came after the last answer
        self._closed = False

    async def run(self) -> None:
        """Carry until both sides have ended, or one was reset, or `abort` is called.

        Raises nothing but its cancellation, which resets both sides. To be called once.
        """
        if self._closed:
            return
        self._loop = asyncio.get_running_loop()
        self._done = self._loop.create_future()
        try:
            if self._between is not None:
                if self._first:
                    self._between.from_guest(self._first)
            elif self._first:
                self._send(self._upstream, memoryview(self._first))
            self._first = b""
            self._settle()
            await self._done
        finally:
            self.abort()

    def abort(self) -> None:
        """Reset both sides at once (RST) and close them; `run` then returns. Again: nothing."""
        self._close(reset=True)

    @property
    def half_closed(self) -> bool:
        """Whether one side sends no more while the other one may: what a limit of time is for."""
        return not self._closed and self._guest.ended != self._upstream.ended

    def _close(self, *, reset: bool = False) -> None:
        if self._closed:
            return
        self._closed = True
        if self._linger is not None:
            self._linger.cancel()
        for side in (self._guest, self._upstream):
            self._release(side, reset=reset)
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _release(self, side: _Side, *, reset: bool = False) -> None:
        """Close one socket, after the loop has forgotten it."""
        self._watch(side, reading=False, writing=False)
        if side.throttle is not None:
            side.throttle.cancel()
            side.throttle = None
        side.pending = b""
        side.ended = side.finished = side.deaf = True
        if side.sock is not None:
            # Said in either case: whoever made the socket may have had it reset by our death.
            with contextlib.suppress(OSError):  # of another family than TCP, in tests
                side.sock.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, _RESET if reset else _ORDERLY
                )
            side.sock.close()
            side.sock = None

    def _watch(self, side: _Side, *, reading: bool, writing: bool) -> None:
        """Have the loop watch a side for just that."""
        loop, sock = self._loop, side.sock
        if loop is None or sock is None:
            return
        if reading and not side.reading:
            loop.add_reader(sock, self._guarded, self._arrived, side)
        elif side.reading and not reading:
            loop.remove_reader(sock)
        if writing and not side.writing:
            loop.add_writer(sock, self._guarded, self._drained, side)
        elif side.writing and not writing:
            loop.remove_writer(sock)
        side.reading, side.writing = reading, writing

    def _guarded(self, act: Callable[[_Side], None], side: _Side) -> None:
        """Do what the loop calls for; a failure ends the connection, not just the callback."""
        try:
            act(side)
        except Exception:
            log.exception("a connection cannot be carried on")
            self.abort()

    def _settle(self) -> None:
        """After anything that happened: move what can be moved, end what is at its end."""
        if self._between is not None:
            self._ask(self._between)
        if self._closed:
            return
        guest, upstream = self._guest, self._upstream
        if self._finish(guest, upstream) and self._finish(upstream, guest):
            if guest.ended and upstream.ended and guest.finished and upstream.finished:
                self._close()
                return
            for side, other in ((guest, upstream), (upstream, guest)):
                self._watch(side, reading=self._hears(side, other), writing=bool(side.pending))

    def _ask(self, between: Between) -> None:
        """Queue what the one between has to say to either side."""
        if between.broken:
            self.abort()
            return
        if not self._upstream.pending and (data := between.for_upstream()):
            self._send(self._upstream, memoryview(data))
        if not self._guest.pending and (data := between.for_guest()):
            self.received += len(data)
            self._send(self._guest, memoryview(data))
        if between.unread and self._next is None and self._loop is not None:
            self._next = self._loop.call_soon(self._guarded, self._read_on, self._guest)
        if between.over and not self._closed:
            self._release(self._upstream)
            if self._linger is None and self._loop is not None:
                self._linger = self._loop.call_later(LINGER_TIME, self.abort)

    def _read_on(self, _: _Side) -> None:
        """Have the one between read what it left unread."""
        self._next = None
        if self._between is not None and not self._closed:
            self._between.read_on()
            self._settle()

    def _finish(self, side: _Side, other: _Side) -> bool:
        """Send a side our FIN if it is time for it; False if that ended everything."""
        if side.finished or side.pending or side.sock is None or self._resetting:
            return True
        between = self._between
        if between is None:
            wanted = other.ended
        elif side is self._guest:
            wanted = between.fin_guest or between.over
        else:
            wanted = between.fin_upstream
        if wanted and not side.deaf:
            side.finished = True
            try:
                side.sock.shutdown(socket.SHUT_WR)
            except OSError:
                self._lost(side)
        return not self._closed

    def _hears(self, side: _Side, other: _Side) -> bool:
        """Whether bytes of a side can be taken now."""
        if side.ended or side.throttle is not None:
            return False
        between = self._between
        if between is None:
            return not other.pending and (side.deaf or not other.deaf)
        if between.over:
            return True
        hears = between.hears_guest if side is self._guest else between.hears_upstream
        return hears and not other.pending

    def _arrived(self, side: _Side) -> None:
        """Take what a side sent and, if nothing is in the way, give it to the other one."""
        view, sock = _scratch.view, side.sock
        if sock is None:
            return
        if side.bucket is not None:
            room = side.bucket.room()
            if not room:
                self._wait(side, side.bucket)
                return
            view = view[:room]
        try:
            count = sock.recv_into(view)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._broke_off(side)
            return
        if not count:
            self._ended(side)
            return
        if side.bucket is not None:
            side.bucket.take(count)
        if side is self._guest:
            self.sent += count
        elif self._between is None:
            self.received += count
        if self._between is None:
            other = self._upstream if side is self._guest else self._guest
            if self._send(other, view[:count]):
                return
        elif self._between.over:
            self._dropped += count
            if self._dropped > LINGER_BYTES:
                self._close()
                return
        elif side is self._guest:
            self._between.from_guest(bytes(view[:count]))
        else:
            self._between.from_upstream(bytes(view[:count]))
        self._settle()

    def _send(self, side: _Side, data: memoryview) -> bool:
        """Send to a side; keep what it does not take. False if not all is gone."""
        if side.deaf or side.sock is None:
            return True
        try:
            count = side.sock.send(data)
        except (BlockingIOError, InterruptedError):
            count = 0
        except OSError:
            self._lost(side)
            return False
        if count == len(data):
            return True
        side.pending = bytes(data[count:])
        return False

    def _drained(self, side: _Side) -> None:
        """Send what waits for a side."""
        data, side.pending = side.pending, b""
        self._send(side, memoryview(data))
        if not side.pending and not self._closed:
            self._settle()

    def _wait(self, side: _Side, bucket: Bucket) -> None:
        """Leave a side unread until its bucket has something again."""
        assert self._loop is not None
        side.throttle = self._loop.call_later(bucket.wait(), self._guarded, self._go_on, side)
        self._settle()

    def _go_on(self, side: _Side) -> None:
        side.throttle = None
        self._settle()

    def _ended(self, side: _Side) -> None:
        """Note that a side sends no more."""
        if side.deaf:
            self._broke_off(side)
            return
        side.ended = True
        if self._between is not None and not self._between.over:
            if side is self._guest:
                self._between.guest_ended()
            else:
                self._between.upstream_ended(reset=False)
        self._settle()

    def _lost(self, side: _Side) -> None:
        """Note that a side takes nothing more: it broke off, or is about to.

        What it said before is still there to be read, and handed on: a server may refuse a request
        that it has not read to its end.
        """
        side.pending = b""
        side.deaf = side.finished = True
        if self._between is not None and side is self._guest:
            self.abort()
        elif side.ended:
            self._broke_off(side)
        else:
            self._settle()

    def _broke_off(self, side: _Side) -> None:
        """Note that a side has reset its connection, and that all it said was read."""
        if side is self._guest or self._resetting:
            self.abort()
        elif self._between is None:
            self._release(side)
            self._resetting = True
            self._settle()
            self._drain()
        elif self._between.over:
            self._release(side)
        else:
            self._between.upstream_ended(reset=True)
            self._release(side)
            self._settle()

    def _drain(self, last: int = 0, since: float = 0.0) -> None:
        """Reset the guest when it has all that the upstream sent before its own reset.

        Without us that would be in the guest's kernel by now; a reset drops what is in ours.
        """
        if self._closed or self._loop is None or self._guest.sock is None:
            return
        left = len(self._guest.pending) + _unacknowledged(self._guest.sock)
        now = self._loop.time()
        if left != last:
            last, since = left, now
        if not left or now - since > DRAIN_TIME:
            self.abort()
        else:
            self._linger = self._loop.call_later(_DRAIN_POLL, self._drain, last, since)


def _unacknowledged(sock: socket.socket) -> int:
    """Return how many bytes the kernel has sent, or has yet to send, that have not arrived."""
    answer = fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))
    return int(struct.unpack("i", answer)[0])
