"""`hutch run`: make a sandbox, start it, and be its main process's terminal.

On the hot path: imports no models, asyncio, httpx or pydantic. Requests are plain JSON here (a test
holds them against hutch.models).
"""

from typing import Any

import click

from hutch.cli.app import App, pass_app
from hutch.cli.client import sandbox_path
from hutch.cli.options import (
    DURATION,
    SIZE,
    collect_env,
    command,
    env_options,
    parse_labels,
    user_options,
)
from hutch.cli.progress import Progress
from hutch.cli.session import Session, result_json
from hutch.cli.terminal import window_size
from hutch.errors import error, from_json
from hutch.sdk.wire import WebSocket


def spec_options(function: Any) -> Any:
    """Add the options that say what a sandbox is; `sandbox_spec` takes their values."""
    options = [
        click.option("--name", metavar="NAME", help="Name; one is made up otherwise."),
        click.option("--entrypoint", metavar="WORDS", help="Replace the image's entrypoint."),
        click.option("--cpus", type=int, metavar="N", help="CPUs."),
        click.option("-m", "--memory", type=SIZE, metavar="SIZE", help="Memory, like 512m or 2g."),
        click.option("--disk", type=SIZE, metavar="SIZE", help="Size of the writable disk."),
        click.option(
            "--timeout", type=DURATION, metavar="TIME", help="Stop after TIME of running."
        ),
        click.option("-l", "--label", multiple=True, metavar="K=V", help="Label."),
        click.option("--hostname", metavar="NAME", help="Host name in the sandbox."),
        click.option("--stop-signal", metavar="SIGNAL", help="Signal that asks it to stop."),
        click.option("--kernel", metavar="NAME", help="Kernel to boot, of `hutch kernel ls`."),
        click.option(
            "--pull",
            type=click.Choice(["missing", "always", "never"]),
            help="When to ask the registry (missing).",
        ),
        click.option("--rm", "auto_remove", is_flag=True, help="Remove it when it stops."),
    ]
    for option in reversed(options):
        function = option(function)
    return user_options(env_options(function))


def sandbox_spec(image: str, argv: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Return a SandboxSpec as JSON from the values of `spec_options`; absent ones are left out."""
    entrypoint = options["entrypoint"]
    if entrypoint:
        import shlex

        entrypoint = shlex.split(entrypoint)
    spec = {
        "image": image,
        "command": list(argv) or None,
        "entrypoint": [] if entrypoint == "" else entrypoint,
        "env": collect_env(options["env"], options["env_file"]),
        "labels": parse_labels(options["label"]),
        "auto_remove": options["auto_remove"],
    }
    plain = ("name", "workdir", "user", "cpus", "memory", "disk", "timeout", "hostname")
    for key in (*plain, "stop_signal", "kernel", "pull"):
        spec[key] = options[key]
    return {key: value for key, value in spec.items() if value is not None}


@command(
    "run",
    verbatim=True,
    examples=[
        "hutch run --rm busybox uname -a",
        "hutch run -it --rm debian bash",
        "hutch run -d --name web -m 1g debian sleep infinity",
        "hutch run -d --idle --name box debian",
    ],
)
@click.option("-d", "--detach", is_flag=True, help="Leave it running; print its id.")
@click.option("-i", "--interactive", is_flag=True, help="Pass stdin on.")
@click.option("-t", "--tty", is_flag=True, help="Give the program a terminal.")
@click.option("--idle", is_flag=True, help="Run no main process; live until stopped. Implies -d.")
@spec_options
@click.argument("image")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND [ARG]...]")
@pass_app
def run(
    app: App,
    /,
    image: str,
    argv: tuple[str, ...],
    detach: bool,
    interactive: bool,
    tty: bool,
    idle: bool,
    **options: Any,
) -> int:
    """Run an image as a virtual machine.

    Its main process is the image's, or COMMAND. `hutch run` ends with its exit code; 128+n for
    signal n, 125 when Hutch fails, 126 and 127 when COMMAND cannot be run or found. The sandbox
    is kept, stopped, unless --rm is given.
    """
    if argv and argv[0] == "--":
        argv = argv[1:]
    if idle and argv:
        raise error("bad_command", "--idle runs no main process, so there can be no command")
    detached = detach or idle
    spec = sandbox_spec(image, argv, options) | {
        "tty": tty,
        "stdin": interactive,
        "idle": idle,
        "detached": detached,
    }
    rows, cols = window_size()
    ws = app.client.websocket("/v1/run")
    ws.send_json(
        {
            "spec": spec,
            "attach": not detached,
            "size": {"rows": rows, "cols": cols} if tty else None,
        }
    )
    info, started = _follow_start(ws, show=not app.json)
    if started is None:
        return _print_started(app, info)
    return _run_attached(app, ws, info, started, spec)


def _follow_start(ws: WebSocket, *, show: bool) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Show progress until the sandbox runs; return it and, when attached, `started`."""
    info: dict[str, Any] = {}
    with Progress(enabled=show) as progress:
        while (message := ws.receive()) is not None:
            body = message.json()
            if "progress" in body:
                progress(body["progress"])
            elif "error" in body:
                raise from_json(body["error"])
            elif "started" in body:
                return info, body["started"]
            else:
                info = body.get("running") or body.get("created") or info
    if ws.close_code != 1000 or not info:
        raise error("daemon_unreachable", "the daemon closed the connection during the start")
    return info, None


def _print_started(app: App, info: dict[str, Any]) -> int:
    if app.json:
        from hutch.cli.render import print_json

        print_json(info)
    else:
        click.echo(info["id"])
    return 0


def _run_attached(
    app: App, ws: WebSocket, info: dict[str, Any], started: dict[str, Any], spec: dict[str, Any]
) -> int:
    session = Session(app, info["id"], "main", stdin=spec["stdin"], tty=spec["tty"])
    session.keep_open = True
    ended = session.run(ws, started)
    stopped = None if ended.detached else _await_stopped(app, ws, session, info)
    if session.captured is not None:
        from hutch.cli.render import print_json

        print_json(result_json(ended, session.captured) | {"sandbox": stopped or info})
    return ended.exit_code


def _await_stopped(
    app: App, ws: WebSocket, session: Session, info: dict[str, Any]
) -> dict[str, Any] | None:
    """Wait until the sandbox has stopped, so that nothing of it runs on when we are done."""
    for body in session.rest:
        if "stopped" in body:
            return dict(body["stopped"])
    if not session.keep_open:  # the connection is another one, which does not say it
        stopped: dict[str, Any] = app.client.call("GET", sandbox_path(info["id"], "wait"))
        return stopped
    while (message := ws.receive()) is not None:
        body = message.json()
        if "error" in body:
            raise from_json(body["error"])
        if "stopped" in body:
            return dict(body["stopped"])
    return None
