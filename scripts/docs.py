"""Writes the pages of docs/ that follow from the code: settings, errors and the command line.

`python scripts/docs.py` after a change of one of those; a test checks that running it again changes
nothing. The tables are the source, so a setting, error or option cannot go undocumented.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

import click

from hutch.errors import CODES
from hutch.settings import (
    GIB,
    KIB,
    MIB,
    SETTINGS,
    Setting,
    parse_bool,
    parse_duration,
    parse_reserve,
    parse_size,
)

DOCS = Path(__file__).resolve().parent.parent / "docs"
NOTICE = "<!-- Written by scripts/docs.py: change the code, then run it. -->\n"
WIDTH = 88


def _default(row: Setting) -> str:
    """Return the default as a user would write it; one that depends on the host says how."""
    value = row.default()
    if row.default.__doc__:
        return row.default.__doc__.splitlines()[0].partition(": ")[2].rstrip(".")
    if row.parse is parse_bool:
        return "`yes`" if value else "`no`"
    if row.parse is parse_duration:
        return f"`{value:g}s`"
    if row.parse in (parse_size, parse_reserve):
        units = ((GIB, "g"), (MIB, "m"), (KIB, "k"), (1, ""))
        unit, letter = next(pair for pair in units if value % pair[0] == 0)
        return f"`{value // unit}{letter}`"
    return f"`{value}`" if value not in ("", ()) else "none"


def settings_page() -> str:
    """Return docs/settings.md."""
    lines = [
        NOTICE,
        "# Settings",
        "",
        "A value comes from the first of: the command line, the environment, the configuration",
        "file, the default. The file is TOML: `$HUTCH_CONFIG`, else `/etc/hutch/config.toml` as",
        "root and `$XDG_CONFIG_HOME/hutch/config.toml` otherwise. `hutch config` shows every value",
        "and its origin. Sizes are written like `512m` or `2g`, times like `30s` or `2h30m`; lists",
        "are separated by commas (in the file: TOML lists).",
        "",
        "| key in the file | environment | default | meaning |",
        "|---|---|---|---|",
    ]
    lines += [f"| `{r.key}` | `{r.env}` | {_default(r)} | {r.help} |" for r in SETTINGS]
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """Return docs/errors.md."""
    lines = [
        NOTICE,
        "# Errors",
        "",
        "Every failure has a stable code. The API sends it as `{code, message, hint, details}`",
        "with the status below; the SDK raises the class; the command prints message and hint, and",
        "exits with the code in the last column (a guest program's own exit code is passed on).",
        "",
        "| code | meaning | class | HTTP | exit |",
        "|---|---|---|---|---|",
    ]
    for code, row in sorted(CODES.items()):
        cls = row.cls
        lines.append(
            f"| `{code}` | {row.meaning} | `{cls.__name__}` | {row.status} | {cls.exit_code} |"
        )
    return "\n".join(lines) + "\n"


def _context(
    command: click.Command, name: str, parent: click.Context | None = None
) -> click.Context:
    # A fixed width, so that the page does not depend on the terminal of whoever writes it.
    width = {"terminal_width": WIDTH, "max_content_width": WIDTH}
    settings = dict(command.context_settings) | width
    return click.Context(command, parent, info_name=name, **settings)


def _commands(
    group: click.Group, parent: click.Context
) -> list[tuple[click.Command, click.Context]]:
    found: list[tuple[click.Command, click.Context]] = []
    for name in sorted(group.list_commands(parent)):
        command = group.get_command(parent, name)
        if command is None or command.hidden:
            continue
        context = _context(command, name, parent)
        found.append((command, context))
        if isinstance(command, click.Group):
            found += _commands(command, context)
    return found


def cli_page() -> str:
    """Return docs/cli.md."""
    root = importlib.import_module("hutch.cli.tree").cli
    top = _context(root, "hutch")
    parts = [NOTICE, "# The command line\n", f"```\n{root.get_help(top)}\n```\n"]
    for command, context in _commands(root, top):
        parts.append(f"## {context.command_path}\n\n```\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "errors.md": errors_page,
    "cli.md": cli_page,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
