"""Variables and labels from the command line: `K=V`, `K`, and files of such lines.

On the hot path: imports nothing but the errors.
"""

import os
from collections.abc import Sequence

from hutch.errors import error


def parse_env(text: str) -> tuple[str, str | None]:
    """Return the name and value of `K=V`; of `K` alone, None: the value is this process's own.

    Raises InvalidInput (bad_request).
    """
    name, equals, value = text.partition("=")
    if not name or "\0" in text or any(c.isspace() for c in name):
        raise error("bad_request", f"{text!r} is no variable", hint="write it like NAME=VALUE")
    return name, value if equals else None


def collect_env(variables: Sequence[str], files: Sequence[str]) -> dict[str, str]:
    """Return the variables of `--env-file`s, then of `-e`s; later ones win.

    A name without a value takes it from this process, and is left out where it has none. Lines
    of a file that are empty or begin with # are skipped. Raises InvalidInput (bad_request).
    """
    out: dict[str, str] = {}
    texts: list[str] = []
    for path in files:
        texts += _lines(path)
    for text in [*texts, *variables]:
        name, value = parse_env(text)
        value = os.environ.get(name) if value is None else value
        if value is not None:
            out[name] = value
    return out


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else "it is not UTF-8"
        raise error("bad_request", f"--env-file {path}: {reason}") from cause
    stripped = (line.lstrip() for line in lines)
    return [line for line in stripped if line and not line.startswith("#")]


def parse_labels(labels: Sequence[str]) -> dict[str, str]:
    """Return labels given as `k=v` or `k`. Raises InvalidInput (bad_request)."""
    out = {}
    for text in labels:
        name, _, value = text.partition("=")
        if not name:
            raise error("bad_request", f"{text!r} is no label", hint="write it like KEY=VALUE")
        out[name] = value
    return out
