"""`hutch exec`: a program in a running sandbox.

On the hot path: imports no click, models, asyncio, httpx or pydantic, so that requests are plain
JSON here (a test holds them against hutch.models).
"""

import sys
from typing import Any

from hutch.cli.app import App
from hutch.cli.client import sandbox_path
from hutch.cli.grammar import ENVIRONMENT, USER, Option, Verb
from hutch.cli.session import Session, result_json, started_message
from hutch.cli.terminal import window_size
from hutch.cli.variables import collect_env


def exec_spec(
    argv: list[str], *, stdin: bool, tty: bool, env: dict[str, str], **more: Any
) -> dict[str, Any]:
    """Return an ExecSpec as JSON; `more` are its other fields, left out where None."""
    spec: dict[str, Any] = {"argv": argv, "stdin": stdin, "env": env}
    if tty:
        rows, cols = window_size()
        spec["tty"] = {"rows": rows, "cols": cols}
    return spec | {key: value for key, value in more.items() if value is not None}


def run_attached(app: App, ref: str, spec: dict[str, Any]) -> int:
    """Run a program with our stdin and output; return its exit code."""
    ws = app.client.websocket(sandbox_path(ref, "exec"))
    ws.send_json({"start": spec})
    started = started_message(ws)
    session = Session(app, ref, started["id"], stdin=spec["stdin"], tty=spec.get("tty") is not None)
    ended = session.run(ws, started)
    if session.captured is not None:
        from hutch.cli.render import print_json

        print_json(result_json(ended, session.captured))
    return ended.exit_code


def execute(app: App, values: dict[str, Any], name: str, words: tuple[str, ...]) -> int:
    """Run a program in a sandbox.

    Its exit code is that of `hutch exec`; 128+n for signal n, 124 for --timeout, 126 and 127 when
    it cannot be run or found, 125 when Hutch fails. ^C goes to the program; a second one within
    2 seconds kills it. With -it, ctrl-p ctrl-q lets go of it.
    """
    detach = values["detach"]
    spec = exec_spec(
        program(words),
        stdin=values["interactive"] and not detach,
        tty=values["tty"],
        env=collect_env(values["env"], values["env_file"]),
        workdir=values["workdir"],
        user=values["user"],
        timeout=values["timeout"],
        checkpoint=values["checkpoint"] or None,
    )
    if not detach:
        return run_attached(app, name, spec)
    info = app.client.call("POST", sandbox_path(name, "execs"), json=spec | {"detached": True})
    if app.json:
        from hutch.cli.render import print_json

        print_json(info)
    else:
        sys.stdout.write(f"{info['id']}\n")
    return 0


def program(words: tuple[str, ...]) -> list[str]:
    """Return the words of a program; a `--` before them, as other tools want it, is dropped."""
    return list(words[1:] if words[0] == "--" and len(words) > 1 else words)


EXEC = Verb(
    name="exec",
    handler=execute,
    options=(
        Option(("-i", "--interactive"), "interactive", "Pass stdin on."),
        Option(("-t", "--tty"), "tty", "Give the program a terminal."),
        Option(("-d", "--detach"), "detach", "Leave it running; print its id."),
        Option(("--checkpoint",), "checkpoint", "Take a checkpoint before, for `hutch undo`."),
        Option(
            ("--timeout",),
            "timeout",
            "End it after TIME, with the exit code 124.",
            "TIME",
            kind="duration",
        ),
        *ENVIRONMENT,
        *USER,
    ),
    positional="name",
    words="COMMAND [ARG]...",
    needs_words=True,
    examples=(
        "hutch exec web uname -a",
        "hutch exec -it web bash",
        "tar c src | hutch exec -i web tar x -C /srv",
        "hutch exec --timeout 30s web make test",
        "hutch exec --checkpoint web make install",
    ),
)
