"""`hutch exec`, `shell` and `attach`: programs in a running sandbox.

On the hot path: imports no models, asyncio, httpx or pydantic, so that requests are plain JSON here
(a test holds them against hutch.models).
"""

from typing import Any

import click

from hutch.cli.app import App, pass_app
from hutch.cli.client import sandbox_path
from hutch.cli.options import DURATION, collect_env, command, env_options, user_options
from hutch.cli.session import Session, result_json, started_message
from hutch.cli.terminal import is_tty, window_size

_FIND_SHELL = (
    'for shell in "$SHELL" /bin/bash /usr/bin/bash; do '
    '[ -x "$shell" ] && exec "$shell" {flag}; done; exec sh {flag}'
)


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


@command(
    "exec",
    verbatim=True,
    examples=[
        "hutch exec web uname -a",
        "hutch exec -it web bash",
        "tar c src | hutch exec -i web tar x -C /srv",
        "hutch exec --timeout 30s web make test",
    ],
)
@click.option("-i", "--interactive", is_flag=True, help="Pass stdin on.")
@click.option("-t", "--tty", is_flag=True, help="Give the program a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Leave it running; print its id.")
@click.option(
    "--timeout", type=DURATION, metavar="TIME", help="End it after TIME, with the exit code 124."
)
@env_options
@user_options
@click.argument("name")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARG]...")
@pass_app
def exec_command(
    app: App,
    /,
    name: str,
    argv: tuple[str, ...],
    interactive: bool,
    tty: bool,
    detach: bool,
    timeout: float | None,
    **options: Any,
) -> int | None:
    """Run a program in a sandbox.

    Its exit code is that of `hutch exec`; 128+n for signal n, 124 for --timeout, 126 and 127 when
    it cannot be run or found, 125 when Hutch fails. ^C goes to the program; a second one within
    2 seconds kills it. With -it, ctrl-p ctrl-q lets go of it.
    """
    spec = exec_spec(
        _program(argv),
        stdin=interactive and not detach,
        tty=tty,
        env=collect_env(options["env"], options["env_file"]),
        workdir=options["workdir"],
        user=options["user"],
        timeout=timeout,
    )
    if not detach:
        return run_attached(app, name, spec)
    info = app.client.call("POST", sandbox_path(name, "execs"), json=spec | {"detached": True})
    if app.json:
        from hutch.cli.render import print_json

        print_json(info)
    else:
        click.echo(info["id"])
    return None


def _program(argv: tuple[str, ...]) -> list[str]:
    """Return the words of a program; a `--` before them, as other tools want it, is dropped."""
    return list(argv[1:] if argv[0] == "--" and len(argv) > 1 else argv)


@command(
    "shell",
    examples=["hutch shell web", "echo 'id; pwd' | hutch shell web", "hutch shell -u nobody web"],
)
@env_options
@user_options
@click.argument("name")
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
@click.argument("name")
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
        from hutch.cli.render import print_json

        print_json(result_json(ended, session.captured))
    return ended.exit_code
