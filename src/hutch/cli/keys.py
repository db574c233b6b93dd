"""The key of encrypted snapshots, as a command is given it: by the environment or in a file.

Never as a word of the command line, which others can see and shells remember. It goes to the daemon
in a header (spec/api.md); nothing here keeps it.
"""

import os
from collections.abc import Callable
from typing import Any, Final

import click

from hutch.errors import error
from hutch.sdk.http1 import key_header

VARIABLE: Final = b"HUTCH_SNAPSHOT_KEY"

_LIMIT: Final = 8192


def key_option() -> Callable[[Any], Any]:
    """Declare the option `--key-file`, whose value is for `key_headers`."""
    return click.option(
        "--key-file",
        type=click.Path(),
        metavar="FILE",
        help="File with the key of what is encrypted ($HUTCH_SNAPSHOT_KEY).",
    )


def key_headers(file: str | None, *, needed: bool = False) -> dict[str, str]:
    """Return the headers that carry the key to the daemon: none where there is no key.

    Raises path_not_found for a file that cannot be read, wrong_key where a key is `needed`.
    """
    key = os.environb.get(VARIABLE, b"") if file is None else _read(file)
    if not key:
        if needed or file is not None:
            raise error(
                "wrong_key",
                "no key was given" if file is None else f"{file} is empty",
                hint="set HUTCH_SNAPSHOT_KEY, or name a file with the key: --key-file",
            )
        return {}
    # The environment's may be there for others: it is of no use for what is in the clear.
    optional = {} if needed or file is not None else {"hutch-snapshot-key-optional": "1"}
    return key_header(key) | optional


def _read(file: str) -> bytes:
    """Return a file's content without the end of its last line."""
    try:
        with open(file, "rb") as opened:
            key = opened.read(_LIMIT)
    except OSError as cause:
        raise error("path_not_found", f"{file}: {cause.strerror}") from cause
    return key.removesuffix(b"\n").removesuffix(b"\r")
