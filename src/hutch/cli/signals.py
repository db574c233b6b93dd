"""Signals as readable numbers for a poll loop, and what repeated ones mean.

While active, the signals in `FORWARDED` do nothing to this process but arrive at `fileno`.
"""

import os
import signal
from types import TracebackType
from typing import Any, Self

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_WATCHED = (*FORWARDED, signal.SIGWINCH, signal.SIGCONT)
REPEAT_WITHIN = 2.0
"""Seconds within which a second ^C means: kill it."""


def _ignore(_number: int, _frame: Any) -> None:
    """Take a signal: its number is in the pipe already."""


class Signals:
    """A context in which signals are read instead of obeyed.

    One that was ignored before (nohup, a shell's background job) stays so.
    """

    def __init__(self) -> None:
        self._read = self._write = -1
        self._wakeup = -1
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in _WATCHED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, _ignore)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        cause: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        """Return the descriptor that is readable when signals have come."""
        return self._read

    def take(self) -> list[signal.Signals]:
        """Return the signals that have come since the last call, without waiting."""
        try:
            return [signal.Signals(number) for number in os.read(self._read, 256)]
        except BlockingIOError:
            return []


class Repeats:
    """Counts signals that ask a program to end, to tell impatience from a first request."""

    def __init__(self) -> None:
        self._count = 0
        self._last = 0.0

    def is_final(self, now: float) -> bool:
        """Tell whether a request at `now` (monotonic seconds) means: kill it.

        It does when it follows another within `REPEAT_WITHIN`, or is the third.
        """
        soon = self._count > 0 and now - self._last <= REPEAT_WITHIN
        self._count, self._last = self._count + 1, now
        return soon or self._count >= 3
