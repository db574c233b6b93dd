"""The one renderer: tables for people, JSON for programs, and the words for sizes and times.

All text of guests and images passes `escape` on its way into a table. Colour only on a terminal,
and never with NO_COLOR.
"""

import json
import shutil
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click

from hutch.cli.escape import escape
from hutch.cli.terminal import no_color
from hutch.models import parse_timestamp, to_json

_SECOND_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_COLORS = {"running": "green", "ok": "green", "failed": "red", "fail": "red", "warn": "yellow"}


def print_json(value: Any) -> None:
    """Print a value, models among them, as one JSON document."""
    click.echo(json.dumps(to_json(value), indent=2))


def print_json_line(value: Any) -> None:
    """Print a value as one line, for output that has no end."""
    click.echo(json.dumps(to_json(value), separators=(",", ":")))


def size(count: int | None) -> str:
    """Return bytes as people read them: `512 MiB`, `1.5 GiB`; a dash for None."""
    if count is None:
        return "-"
    value, units = float(count), ["TiB", "GiB", "MiB", "KiB", "B"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop()
    unit = units[-1]
    return f"{value:.0f} {unit}" if value >= 100 or value == int(value) else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """Return a time span in its two largest units: `3h 20m`, `45s`."""
    left = max(0, int(seconds))
    parts = []
    for unit, length in _SECOND_UNITS:
        if left >= length:
            parts.append(f"{left // length}{unit}")
            left %= length
    return " ".join(parts[:2]) or "0s"


def age(moment: str | None) -> str:
    """Return how long ago an RFC 3339 moment was; a dash for None."""
    return "-" if moment is None else duration(time.time() - parse_timestamp(moment))


def table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], *, flexible: int | None = None
) -> None:
    """Print rows below headers, in columns as wide as they need.

    On a terminal the column `flexible` is shortened so that lines fit.
    """
    cells = [[escape(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    plain = no_color()
    if flexible is not None and not plain:
        widths[flexible] = _fitting(widths, flexible)
    bold = [h if plain else click.style(h, bold=True) for h in headers]
    click.echo(_line(bold, headers, widths), color=not plain)
    for row in cells:
        shown = [_shorten(cell, width) for cell, width in zip(row, widths, strict=True)]
        styled = shown if plain else [_styled(cell) for cell in shown]
        click.echo(_line(styled, shown, widths), color=not plain)


def _fitting(widths: Sequence[int], flexible: int) -> int:
    others = sum(widths) - widths[flexible] + 2 * (len(widths) - 1)
    room = shutil.get_terminal_size().columns - others
    return max(10, min(widths[flexible], room))


def _shorten(cell: str, width: int) -> str:
    return cell if len(cell) <= width else cell[: width - 1] + "…"


def _styled(cell: str) -> str:
    color = _COLORS.get(cell.split(" ")[0])
    return click.style(cell, fg=color) if color else cell


def _line(styled: Sequence[str], plain: Sequence[str], widths: Sequence[int]) -> str:
    padded = [s + " " * (w - len(p)) for s, p, w in zip(styled, plain, widths, strict=True)]
    return "  ".join(padded).rstrip()


def pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one pair a line."""
    shown = [(name, escape(value)) for name, value in rows]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{name + ':':<{width + 1}}  {value}".rstrip())
