"""Ends of streams for tests with VMs: a terminal, a reader that counts, what memory it takes.

Knows `subprocess.Popen` and nothing of sandboxes.
"""

import fcntl
import hashlib
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.harness.hutch import Hutch

_STEP = 1 << 20


def memory(pid: int) -> int:
    """Return the bytes of memory that are a process's own: resident, and of no file."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


@dataclass(slots=True)
class Arrived:
    """What a process has written, without the bytes themselves, and the most memory meanwhile."""

    size: int = 0
    sha256: str = ""
    stderr: bytes = b""
    peaks: dict[int, int] = field(default_factory=dict)


def consume(process: "subprocess.Popen[bytes]", *, watch: Sequence[int] = ()) -> Arrived:
    """Read a process's stdout to its end; note the memory of it and of `watch` on the way."""
    assert process.stdout is not None
    assert process.stderr is not None
    arrived, digest, errors = Arrived(), hashlib.sha256(), []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))
    reader.start()
    watched, looked = (process.pid, *watch), 0
    while data := process.stdout.read1(_STEP):
        digest.update(data)
        arrived.size += len(data)
        if arrived.size >= looked:
            looked = arrived.size + 8 * _STEP
            for pid in watched:
                arrived.peaks[pid] = max(arrived.peaks.get(pid, 0), memory(pid))
    process.wait()
    reader.join()
    process.stdout.close()
    process.stderr.close()
    arrived.sha256, arrived.stderr = digest.hexdigest(), b"".join(errors)
    return arrived


class Terminal:
    """A terminal with `hutch` running on it; `before` are its modes as the command found them."""

    def __init__(self, hutch: Hutch, *args: str, rows: int = 30, cols: int = 100) -> None:
        self._ours, theirs = pty.openpty()
        self._seen = b""
        self._set_size(rows, cols)
        self.before = self.settings()
        self.process = hutch.start(*args, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)

    def write(self, data: bytes) -> None:
        """Type something."""
        os.write(self._ours, data)

    def expect(self, text: bytes, timeout: float = 60) -> bytes:
        """Read until `text` has appeared; return everything up to its end."""
        deadline = time.monotonic() + timeout
        while text not in self._seen:
            left = max(0.0, deadline - time.monotonic())
            readable, _, _ = select.select([self._ours], [], [], left)
            try:
                data = os.read(self._ours, _STEP) if readable else b""
            except OSError:  # the other side is closed
                data = b""
            assert data, f"no {text!r} in {self._seen!r}"
            self._seen += data
        before, _, self._seen = self._seen.partition(text)
        return before + text

    def resize(self, rows: int, cols: int) -> None:
        """Give the terminal another size, and say so as a window would."""
        self._set_size(rows, cols)
        self.process.send_signal(signal.SIGWINCH)

    def wait(self, timeout: float = 60) -> int:
        """Return the exit code of the command."""
        return self.process.wait(timeout)

    def settings(self) -> list[object]:
        """Return the terminal's modes, as they are now."""
        return list(termios.tcgetattr(self._ours))

    def _set_size(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
