"""The terminal on our side: raw mode that is always taken back, its size, the detach keys.

Knows no protocol; relay.py uses it.
"""

import os
import sys
from types import TracebackType
from typing import Any, Self

DETACH_KEYS = b"\x10\x11"  # ctrl-p ctrl-q
DEFAULT_SIZE = (24, 80)


def is_tty(fd: int) -> bool:
    """Tell whether a descriptor is a terminal; a closed one is not."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


def window_size() -> tuple[int, int]:
    """Return rows and columns of the terminal that we were started on, else of a common one."""
    for fd in (0, 1, 2):
        try:
            size = os.get_terminal_size(fd)
        except OSError:
            continue
        if size.lines > 0 and size.columns > 0:
            return size.lines, size.columns
    return DEFAULT_SIZE


class RawMode:
    """A context in which keys of the terminal `fd` come one by one, uninterpreted.

    Invariant: on leaving, by whatever way, the terminal is as it was found.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] | None = None

    def __enter__(self) -> Self:
        import termios  # here, as most programs have no terminal

        self._saved = termios.tcgetattr(self._fd)
        self.renew()
        return self

    def renew(self) -> None:
        """Set raw mode again: after SIGCONT the shell may have taken it back."""
        import termios
        import tty

        tty.setraw(self._fd, termios.TCSANOW)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        cause: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._saved is None:
            return
        import termios

        try:
            # DRAIN, so that what the program wrote last is shown under its own mode.
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
        except termios.error:
            # The terminal has hung up; there is nothing to restore and nobody to tell.
            self._saved = None


class DetachScanner:
    """Finds the detach keys in what is typed, also when they come apart."""

    def __init__(self, keys: bytes = DETACH_KEYS) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Return what may go to the program, and whether the keys were typed.

        The beginning of the keys is held back until it is clear what it was.
        """
        data = self._held + data
        at = data.find(self._keys)
        if at >= 0:
            self._held = b""
            return data[:at], True
        hold = next(
            (n for n in range(len(self._keys) - 1, 0, -1) if data.endswith(self._keys[:n])), 0
        )
        self._held = data[len(data) - hold :]
        return data[: len(data) - hold], False


def no_color() -> bool:
    """Tell whether output must be plain: NO_COLOR is set, or stdout is no terminal."""
    return bool(os.environ.get("NO_COLOR")) or not sys.stdout.isatty()
