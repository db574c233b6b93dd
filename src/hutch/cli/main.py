"""The entry point: reads the command line, runs the command, turns failures into exit codes.

The only place of the CLI that exits. `run` and `exec` are read by grammar.py and never import
click; everything else, and every mistake, goes to tree.py.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from hutch.cli.app import App
from hutch.cli.failures import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, report_failure
from hutch.errors import HutchError, error

COMPLETE_VARIABLE = "_HUTCH_COMPLETE"


def execute(arguments: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit code.

    Every failure is reported here and nowhere else.
    """
    app = App()
    try:
        code = _command(app, arguments)()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _abandon_stdout()
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except HutchError as failure:
        return report_failure(app.explain(failure), json_output=app.json)
    except OSError as cause:
        return report_failure(
            error("bad_path", f"{cause.filename or 'the system'}: {cause.strerror or cause}"),
            json_output=app.json,
        )


def _command(app: App, arguments: Sequence[str]) -> Callable[[], int]:
    if arguments[:1] in (["exec"], ["run"]):
        # Two imports spelled out: importlib would be one more on the hot path.
        if arguments[0] == "exec":
            from hutch.cli.exec import EXEC as verb
        else:
            from hutch.cli.run import RUN as verb
        from hutch.cli.grammar import read

        line = read(verb, arguments[1:])
        if line is not None:
            app.json = line.values.pop("json")
            return lambda: verb.handler(app, line.values, line.positional, line.words)
    from hutch.cli.tree import run_tree

    return lambda: run_tree(app, arguments)


def _abandon_stdout() -> None:
    # What is buffered for a closed pipe would fail again, loudly, when the interpreter ends.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def main() -> NoReturn:
    """Run `hutch` with the process's own arguments and exit with its code."""
    if COMPLETE_VARIABLE in os.environ:
        from hutch.cli.tree import complete

        sys.exit(complete(os.environ[COMPLETE_VARIABLE]))
    try:
        code = execute(sys.argv[1:])
    except BrokenPipeError:
        _abandon_stdout()
        code = EXIT_BROKEN_PIPE
    sys.exit(code)
