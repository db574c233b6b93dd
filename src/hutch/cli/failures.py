"""How failures reach people and programs: text on stderr, or one JSON object on stdout.

Text: `hutch: MESSAGE (CODE)` and `hint: ...`. With --json: `{"error": {code, message, hint,
details}}` on stdout, where the result would have been. Counterpart of hutch.errors.
"""

import sys

from hutch.cli.escape import escape_lines
from hutch.errors import HutchError

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def report_failure(failure: HutchError, *, json_output: bool) -> int:
    """Print a failure and return the exit code that goes with it."""
    if json_output:
        import json

        print(json.dumps({"error": failure.to_json()}, indent=2), flush=True)
    else:
        write_failure(failure)
    return failure.exit_code


def write_failure(failure: HutchError) -> None:
    """Print a failure as text on stderr."""
    lines = f"hutch: {escape_lines(failure.message)} ({failure.code})\n"
    if failure.hint:
        lines += f"hint: {escape_lines(failure.hint)}\n"
    sys.stdout.flush()
    sys.stderr.write(lines)
    sys.stderr.flush()


def warn(message: str) -> None:
    """Print a remark that is no failure, on stderr."""
    sys.stderr.write(f"hutch: {escape_lines(message)}\n")
    sys.stderr.flush()
