"""Where a program's output goes: our stdout and stderr without ever blocking, or memory.

Not blocking matters: while a reader of ours stalls, ^C and stdin must go on working. Counterpart of
relay.py, which acknowledges to the daemon only what a sink has taken.
"""

import os
import select
import stat
from collections import deque
from typing import Protocol

_STEP = 64 << 10
_PIPE_STEP = 4096  # what a pipe that polls as writable takes without blocking (PIPE_BUF)


class OutputClosedError(Exception):
    """Nobody reads our output any more."""


class Sink(Protocol):
    """A taker of output."""

    @property
    def fd(self) -> int:
        """The descriptor to poll for writing while `pending`, or -1."""

    @property
    def pending(self) -> bool:
        """Tell whether bytes wait."""

    def put(self, channel: int, data: bytes | memoryview) -> None:
        """Take output; bounded by what the protocol lets be unacknowledged."""

    def taken(self) -> dict[int, int]:
        """Return, once, how many bytes of each channel have left since the last call."""

    def flush(self) -> None:
        """Write as much as goes without blocking. Raises OutputClosedError."""


class FileSink:
    """A descriptor of ours. Channels that share it keep their order of arrival."""

    def __init__(self, fd: int) -> None:
        self._own = -1
        self._step = _STEP
        self._queue: deque[tuple[int, memoryview]] = deque()
        self._taken: dict[int, int] = {}
        self.fd = self._open(fd)

    def _open(self, fd: int) -> int:
        """Return a descriptor whose writes do not block.

        O_NONBLOCK is a property of the open file, which we share with the shell and others; so the
        same pipe or terminal is opened anew. Where that is not allowed, small writes after
        a select do.
        """
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            return fd
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            try:
                self._own = os.open(f"/proc/self/fd/{fd}", flags)
            except OSError:
                self._own = -1
        if self._own < 0:
            self._step = _PIPE_STEP
            return fd
        return self._own

    @property
    def pending(self) -> bool:
        """Tell whether bytes wait."""
        return bool(self._queue)

    def put(self, channel: int, data: bytes | memoryview) -> None:
        """Queue bytes of a channel."""
        if len(data):
            self._queue.append((channel, memoryview(data)))

    def taken(self) -> dict[int, int]:
        """Return, once, the bytes written of each channel."""
        taken, self._taken = self._taken, {}
        return taken

    def flush(self) -> None:
        """Write until the queue is empty or the descriptor is full."""
        may_block = self._step == _PIPE_STEP
        while self._queue:
            if may_block and not select.select((), (self.fd,), (), 0)[1]:
                return
            channel, data = self._queue[0]
            try:
                size = os.write(self.fd, data[: self._step])
            except BlockingIOError:
                return
            except OSError as cause:
                self._queue.clear()
                raise OutputClosedError(cause.strerror) from cause
            self._taken[channel] = self._taken.get(channel, 0) + size
            if size == len(data):
                self._queue.popleft()
            else:
                self._queue[0] = (channel, data[size:])

    def close(self) -> None:
        """Give back the descriptor that was opened here."""
        if self._own >= 0:
            os.close(self._own)
            self._own = -1


class Capture:
    """Memory, for --json: keeps the first `limit` bytes of each channel and counts the rest."""

    fd = -1
    pending = False

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: dict[int, int] = {}
        self.data: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        self.dropped: dict[int, int] = {1: 0, 2: 0}

    def put(self, channel: int, data: bytes | memoryview) -> None:
        """Keep bytes of a channel, as far as there is room."""
        kept = self.data[channel]
        room = self._limit - len(kept)
        kept += data[:room]
        self.dropped[channel] += max(0, len(data) - room)
        self._taken[channel] = self._taken.get(channel, 0) + len(data)

    def taken(self) -> dict[int, int]:
        """Return, once, the bytes taken of each channel."""
        taken, self._taken = self._taken, {}
        return taken

    def flush(self) -> None:
        """Do nothing: memory takes all at once."""

    def close(self) -> None:
        """Do nothing: there is no descriptor."""


def standard_sinks() -> dict[int, FileSink]:
    """Return the sinks of channels 1 and 2: one and the same where stdout is stderr."""
    out = FileSink(1)
    first, second = os.fstat(1), os.fstat(2)
    same = (first.st_dev, first.st_ino, first.st_rdev) == (
        second.st_dev,
        second.st_ino,
        second.st_rdev,
    )
    return {1: out, 2: out if same else FileSink(2)}
