"""Files that are there as a whole or not at all, and outlive the host's power.

What makes a directory complete is written so. Blocking throughout. It must not know what is in
them.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, body: Mapping[str, Any], *, lasting: bool = True) -> None:
    """Write a JSON file, readable by its owner alone, in the place of what is there.

    One that is not `lasting` may be lost, or be empty, when the host loses its power. Raises
    OSError; what was there is left then.
    """
    part = path.with_name(f"{path.name}.part")
    with open(part, "w", encoding="utf-8", opener=_private) as file:
        json.dump(body, file, indent=1)
        file.flush()
        if lasting:
            os.fsync(file.fileno())
    part.replace(path)
    if lasting:
        sync(path.parent)


def sync(path: Path) -> None:
    """Have all of a file, or the names in a directory, on the disk itself. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
