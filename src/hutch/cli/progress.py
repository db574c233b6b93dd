"""Progress of long work on stderr: one line for each item, redrawn in place, gone at the end.

Only on a terminal; elsewhere silent, so that stderr of a script holds failures only. Its own few
lines rather than a library, because `run` may not import one.
"""

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from hutch.cli.escape import escape
from hutch.cli.terminal import is_tty

_REDRAW = 0.1
_BAR = 24
_LINES = 12


class Progress:
    """A context that shows steps of work; call it with each Progress (as JSON)."""

    def __init__(self, *, enabled: bool = True) -> None:
        self._shown = 0
        self._due = 0.0
        self._items: dict[tuple[str, str], dict[str, Any]] = {}
        self._on = enabled and is_tty(2) and os.environ.get("TERM") != "dumb"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        cause: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()

    def __call__(self, step: dict[str, Any]) -> None:
        """Take a step and show it."""
        if not self._on:
            return
        self._items[step["stage"], step.get("id", "")] = step
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _REDRAW
            self._draw()

    def due(self) -> bool:
        """Tell whether a step would be shown now."""
        return self._on and time.monotonic() >= self._due

    def clear(self) -> None:
        """Take away what is shown."""
        if self._shown:
            sys.stderr.write(f"\x1b[{self._shown}A\x1b[J")
            sys.stderr.flush()
            self._shown = 0

    def _draw(self) -> None:
        width = os.get_terminal_size(2).columns
        rows, columns = os.get_terminal_size(2).lines, max(20, width)
        recent = list(self._items.values())[-min(_LINES, max(1, rows - 1)) :]
        lines = [self._line(step)[: columns - 1] for step in recent]
        text = f"\x1b[{self._shown}A" if self._shown else ""
        text += "".join(f"\r\x1b[K{line}\n" for line in lines)
        sys.stderr.write(text + "\x1b[J")
        sys.stderr.flush()
        self._shown = len(lines)

    def _line(self, step: dict[str, Any]) -> str:
        done, total = step.get("done", 0), step.get("total")
        label = escape(f"{step['stage']} {step.get('id', '')}"[:32])
        message = escape(step.get("message", ""))
        if not total:
            amount = _short(done) if done else ""
            return f"{label:<32}  {amount:>9}  {message}".rstrip()
        filled = _BAR * min(done, total) // total
        bar = "#" * filled + "-" * (_BAR - filled)
        return f"{label:<32}  [{bar}]  {_short(done)} of {_short(total)}  {message}".rstrip()


def _short(count: float) -> str:
    for unit in ("B", "K", "M"):
        if count < 1000:
            return f"{count:.0f}{unit}"
        count /= 1024
    return f"{count:.1f}G"


class Transfer:
    """A context that counts the bytes of one transfer and shows them, with their rate."""

    def __init__(self, name: str, total: int | None, *, enabled: bool = True) -> None:
        self._progress = Progress(enabled=enabled)
        self._name = name[-28:]
        self._total = total
        self._began = time.monotonic()
        self.done = 0
        """The bytes so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        cause: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.clear()

    def add(self, size: int) -> None:
        """Count bytes."""
        self.done += size
        if self._progress.due():
            rate = self.done / max(0.001, time.monotonic() - self._began)
            step = {"stage": self._name, "done": self.done, "total": self._total}
            self._progress(step | {"message": f"{_short(rate)}/s"})

    def warn(self, tell: Callable[[str], None]) -> Callable[[str], None]:
        """Return `tell` with what is shown taken away before."""

        def clear_and_tell(text: str) -> None:
            self._progress.clear()
            tell(text)

        return clear_and_tell
