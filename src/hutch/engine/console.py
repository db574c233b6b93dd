"""The guest's console: read from its socket for as long as we live, kept in a capped, rotated file.

The guest owns every byte, so nothing of it is interpreted, and a flood of it costs a bounded amount
of disk and memory. While no daemon is there QEMU drops what the guest writes, and the guest never
blocks on it.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from hutch.tasks import in_thread

log = logging.getLogger(__name__)

CHUNK = 64 << 10
TAIL = 16 << 10
PACE = 0.01


class ConsoleLog:
    """A file and its rotated predecessors `<name>.1` to `<name>.<files>`.

    Invariant: none is larger than `size` bytes. A log that cannot be written loses bytes, never the
    VM.
    """

    def __init__(self, path: Path, *, size: int, files: int) -> None:
        self.path = path
        self._size = max(size, 1)
        self._files = max(files, 0)
        self._failed = False

    def append(self, data: bytes) -> None:
        """Write `data`, rotating at the limit."""
        view = memoryview(data)
        try:
            while view:
                with open(self.path, "ab", opener=_private) as file:
                    room = self._size - file.tell()
                    if room > 0:
                        file.write(view[:room])
                if len(view) >= room:
                    self._rotate()
                view = view[max(room, 0) :]
            self._failed = False
        except OSError as cause:
            if not self._failed:
                log.warning("console log %s: %s; its bytes are dropped", self.path, cause)
            self._failed = True

    def _rotate(self) -> None:
        names = [self.path, *(Path(f"{self.path}.{n}") for n in range(1, self._files + 1))]
        if len(names) == 1:
            os.truncate(self.path, 0)
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer, older)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


class Console:
    """The reader of one machine's console: `run` is its task."""

    def __init__(
        self,
        sock: socket.socket,
        target: ConsoleLog,
        listener: Callable[[float, bytes], None] | None = None,
    ) -> None:
        """`listener` gets each chunk with the monotonic time of its arrival; it must not block."""
        sock.setblocking(False)
        self._sock = sock
        self._log = target
        self._listener = listener
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self.total = 0
        self.tail = b""

    async def run(self) -> None:
        """Read until the machine hangs up."""
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(self._sock, CHUNK):
                if self._listener:
                    self._listener(time.monotonic(), data)
                self.total += len(data)
                self.tail = (self.tail + data)[-TAIL:]
                await in_thread(self._log.append, data)
                self._notify()
                if self._listener is None:
                    # A flood comes in crumbs of a few bytes: let them gather, so that it costs no
                    # core of ours.
                    await asyncio.sleep(PACE)
        except ConnectionError:
            log.debug("console of %s was reset", self._log.path)
        finally:
            self._sock.close()
            self._ended.set()
            self._notify()

    def _notify(self) -> None:
        # Each waiter holds the event it saw, so that none misses a change that another has cleared.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def progress(self) -> AsyncIterator[int]:
        """Yield `total` at once and whenever it has grown; end with the console."""
        seen = -1
        while True:
            changed = self._changed
            if self.total != seen:
                seen = self.total
                yield seen
            elif self._ended.is_set():
                return
            else:
                await changed.wait()

    async def drained(self, *, timeout: float) -> None:
        """Return when the last byte has been read, or after `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._ended.wait()

    def close(self) -> None:
        """Close the socket of a console whose task is not running. Idempotent."""
        self._sock.close()
