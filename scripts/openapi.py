"""Generate spec/openapi.json from the code of the API.

python scripts/openapi.py            write the file
python scripts/openapi.py --check    exit 1 when it is not what would be written
"""

import json
import sys
from pathlib import Path
from typing import Any, cast

from hutch.api.app import create_app
from hutch.api.operations import Operations

TARGET = Path(__file__).resolve().parents[1] / "spec/openapi.json"


class _Nothing:
    """Operations that are only named, never called: the schema asks no more."""

    def __getattr__(self, name: str) -> Any:
        return self


def generated() -> str:
    """Return the text of the file."""
    app = create_app(cast(Operations, _Nothing()))
    return json.dumps(app.openapi(), indent=2, sort_keys=True) + "\n"


def main() -> int:
    """Write or check the file; returns the exit code."""
    text = generated()
    if TARGET.exists() and TARGET.read_text("utf-8") == text:
        return 0
    if "--check" in sys.argv[1:]:
        print("run scripts/openapi.py: spec/openapi.json is not up to date", file=sys.stderr)
        return 1
    TARGET.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
