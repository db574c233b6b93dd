"""`hutch run`: make a sandbox, start it, and be its main process's terminal.

On the hot path: imports no click, models, asyncio, httpx or pydantic. Requests are plain JSON here
(a test holds them against hutch.models).
"""

import sys
from typing import Any

from hutch.cli.app import App
from hutch.cli.client import sandbox_path
from hutch.cli.grammar import ENVIRONMENT, NETWORK, USER, Option, Verb
from hutch.cli.progress import Progress
from hutch.cli.session import Session, result_json
from hutch.cli.terminal import window_size
from hutch.cli.variables import collect_env, parse_labels
from hutch.errors import error, from_json
from hutch.sdk.wire import WebSocket

SPEC = (
    Option(("--name",), "name", "Name; one is made up otherwise.", "NAME"),
    Option(("--entrypoint",), "entrypoint", "Replace the image's entrypoint.", "WORDS"),
    Option(("--cpus",), "cpus", "CPUs.", "N", kind="int"),
    Option(("-m", "--memory"), "memory", "Memory, like 512m or 2g.", "SIZE", kind="size"),
    Option(("--disk",), "disk", "Size of the writable disk.", "SIZE", kind="size"),
    Option(("--timeout",), "timeout", "Stop after TIME of running.", "TIME", kind="duration"),
    Option(
        ("--idle-timeout",),
        "idle_timeout",
        "Put it to rest when nobody has used it for TIME; 0: never.",
        "TIME",
        kind="duration",
    ),
    Option(
        ("--idle-action",),
        "idle_action",
        "How: pause (default), park (its memory goes to disk) or stop.",
        "ACTION",
        choices=("pause", "park", "stop"),
    ),
    Option(("-l", "--label"), "label", "Label.", "K=V", multiple=True),
    Option(("--hostname",), "hostname", "Host name in the sandbox.", "NAME"),
    Option(("--stop-signal",), "stop_signal", "Signal that asks it to stop.", "SIGNAL"),
    Option(("--kernel",), "kernel", "Kernel to boot, of `hutch kernel ls`.", "NAME"),
    Option(
        ("--pull",),
        "pull",
        "When to ask the registry: missing (default), always or never.",
        "WHEN",
        choices=("missing", "always", "never"),
    ),
    Option(
        ("-p", "--publish"),
        "ports",
        "Publish a port: HOST:GUEST, IP:HOST:GUEST, a range, or GUEST on a free port.",
        "PORT",
        multiple=True,
    ),
    Option(("-P", "--publish-all"), "publish_all", "Publish the ports that the image exposes."),
    Option(("--rm",), "auto_remove", "Remove it when it stops."),
    Option(("--no-template",), "no_template", "Boot cold, not as a clone of a template."),
    *ENVIRONMENT,
    *USER,
    *NETWORK,
)
"""What a sandbox is; `sandbox_spec` takes the values."""


def sandbox_spec(image: str, argv: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Return a SandboxSpec as JSON from the values of `SPEC`; absent ones are left out."""
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
    for key in (*plain, "idle_timeout", "idle_action", "stop_signal", "kernel", "pull"):
        spec[key] = options[key]
    if options["no_template"]:
        spec["template"] = False
    if options["publish_all"]:
        spec["publish_all"] = True
    if options["ports"]:
        from hutch.portspec import port_list

        spec["ports"] = [
            {"guest_port": port.guest_port, "host_port": port.host_port, "address": port.address}
            for port in port_list(options["ports"])
        ]
    return {key: value for key, value in spec.items() if value is not None}


def network(app: App, options: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a SandboxSpec that the values of `NETWORK` ask for: none without any."""
    if not any(options[row.dest] for row in NETWORK):
        return {}
    from hutch.cli.netflags import policy_of

    return {"network": policy_of(app, options)}


def execute(app: App, values: dict[str, Any], image: str, words: tuple[str, ...]) -> int:
    """Run an image as a virtual machine.

    Its main process is the image's, or COMMAND. `hutch run` ends with its exit code; 128+n for
    signal n, 125 when Hutch fails, 126 and 127 when COMMAND cannot be run or found. The sandbox
    is kept, stopped, unless --rm is given.
    """
    if words[:1] == ("--",):
        words = words[1:]
    idle, tty = values["idle"], values["tty"]
    if idle and words:
        raise error("bad_command", "--idle runs no main process, so there can be no command")
    detached = values["detach"] or idle
    spec = (
        sandbox_spec(image, words, values)
        | network(app, values)
        | {
            "tty": tty,
            "stdin": values["interactive"],
            "idle": idle,
            "detached": detached,
        }
    )
    rows, cols = window_size()
    size = {"rows": rows, "cols": cols} if tty else None
    ws = app.client.websocket("/v1/run")
    ws.send_json({"spec": spec, "attach": not detached, "size": size})
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
        sys.stdout.write(f"{info['id']}\n")
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


RUN = Verb(
    name="run",
    handler=execute,
    options=(
        Option(("-d", "--detach"), "detach", "Leave it running; print its id."),
        Option(("-i", "--interactive"), "interactive", "Pass stdin on."),
        Option(("-t", "--tty"), "tty", "Give the program a terminal."),
        Option(("--idle",), "idle", "Run no main process; live until stopped. Implies -d."),
        *SPEC,
    ),
    positional="image",
    words="COMMAND [ARG]...",
    needs_words=False,
    examples=(
        "hutch run --rm busybox uname -a",
        "hutch run -it --rm debian bash",
        "hutch run -d --name web -m 1g debian sleep infinity",
        "hutch run -d --idle --name box debian",
    ),
)
