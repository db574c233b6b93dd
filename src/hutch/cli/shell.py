"""`hutch shell` and `attach`: a terminal in a sandbox, and one that was left."""

from typing import Any

import click

from hutch.cli.app import App
from hutch.cli.client import sandbox_path
from hutch.cli.exec import exec_spec, run_attached
from hutch.cli.grammar import ENVIRONMENT, USER
from hutch.cli.options import command, pass_app, rows, sandbox_argument
from hutch.cli.render import print_json
from hutch.cli.session import Session, result_json, started_message
from hutch.cli.terminal import is_tty
from hutch.cli.variables import collect_env

_FIND_SHELL = (
    'for shell in "$SHELL" /bin/bash /usr/bin/bash; do '
    '[ -x "$shell" ] && exec "$shell" {flag}; done; exec sh {flag}'
)


@command(
    "shell",
    examples=["hutch shell web", "echo 'id; pwd' | hutch shell web", "hutch shell -u nobody web"],
)
@rows(ENVIRONMENT, USER)
@sandbox_argument()
@pass_app
def shell(app: App, /, name: str, **options: Any) -> int:
    """Open a shell in a sandbox: the image's $SHELL, else bash, else sh.

    With a terminal on stdin it is interactive; otherwise it reads a script from stdin.
    """
    tty = is_tty(0) and not app.json
    script = _FIND_SHELL.format(flag="-i" if tty else "-s")
    spec = exec_spec(
        ["/bin/sh", "-c", script],
        stdin=True,
        tty=tty,
        env=collect_env(options["env"], options["env_file"]),
        workdir=options["workdir"],
        user=options["user"],
    )
    return run_attached(app, name, spec)


@command(
    "attach",
    examples=["hutch attach web", "hutch attach --no-stdin web", "hutch attach web ex_4k2"],
)
@click.option("--no-stdin", is_flag=True, help="Only show output.")
@sandbox_argument()
@click.argument("exec_id", default="main", metavar="[EXEC]")
@pass_app
def attach(app: App, /, name: str, exec_id: str, no_stdin: bool) -> int:
    """Attach to the main process of a sandbox, or to a detached exec.

    ctrl-p ctrl-q lets go of a program with a terminal; closing this command never ends it, ^C does
    what it does to a program.
    """
    info = app.client.call("GET", sandbox_path(name))
    ws = app.client.websocket(sandbox_path(name, "exec"))
    ws.send_json({"attach": exec_id, "offsets": None})
    started = started_message(ws)
    takes_stdin = info["stdin"] if exec_id == "main" else True
    session = Session(
        app,
        name,
        exec_id,
        stdin=takes_stdin and not no_stdin,
        tty=bool(started.get("tty")),
        owns=False,
    )
    ended = session.run(ws, started)
    if session.captured is not None:
        print_json(result_json(ended, session.captured))
    return ended.exit_code
