"""Verbs on sandboxes: create, start, stop, restart, pause, park, resume, kill, rm, rename, wait.

Those that take several names go on after one fails, report each, and exit with 125 if any failed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import click

from hutch.cli.app import App
from hutch.cli.client import sandbox_path
from hutch.cli.failures import write_failure
from hutch.cli.options import DURATION, command, pass_app, rows, sandbox_argument
from hutch.cli.render import print_json
from hutch.cli.run import SPEC, network, sandbox_spec
from hutch.errors import HutchError, error


def for_each(app: App, names: Sequence[str], act: Callable[[str], Any]) -> int:
    """Do something to each named object; return the exit code.

    Prints each name that worked, and each failure; with --json a list of `{name, ok, result}` and
    `{name, ok, error}`.
    """
    results: list[dict[str, Any]] = []
    for name in dict.fromkeys(names):
        try:
            answer = act(name)
        except HutchError as failure:
            app.explain(failure)
            results.append({"name": name, "ok": False, "error": failure.to_json()})
            if not app.json:
                write_failure(failure)
        else:
            results.append({"name": name, "ok": True, "result": answer})
            if not app.json:
                click.echo(name)
    if app.json:
        print_json(results)
    return 0 if all(result["ok"] for result in results) else HutchError.exit_code


names_argument = sandbox_argument("names", nargs=-1, required=True, metavar="NAME...")


@command(
    "create",
    verbatim=True,
    examples=["hutch create --name box debian", "hutch create --start -m 2g --name box debian"],
)
@click.option("--start", "starts", is_flag=True, help="Start it as well.")
@rows(SPEC)
@click.argument("image")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND [ARG]...]")
@pass_app
def create(app: App, /, image: str, argv: tuple[str, ...], starts: bool, **options: Any) -> None:
    """Make a sandbox without starting it; print its id.

    Without COMMAND it has no main process: once started, it lives until it is stopped.
    """
    spec = sandbox_spec(image, argv, options) | network(app, options)
    spec["idle"] = not argv and options["entrypoint"] is None
    info = app.client.call("POST", "/v1/sandboxes", json=spec)
    if starts:
        info = app.client.call("POST", sandbox_path(info["id"], "start"))
    if app.json:
        print_json(info)
    else:
        click.echo(info["id"])


@command("start", examples=["hutch start web"])
@click.option("--no-template", is_flag=True, help="Boot cold, not as a clone of a template.")
@names_argument
@pass_app
def start(app: App, names: tuple[str, ...], no_template: bool) -> int:
    """Start sandboxes, with the disk they had.

    One that was started before boots cold, always.
    """
    body = {"template": not no_template}
    return for_each(
        app, names, lambda n: app.client.call("POST", sandbox_path(n, "start"), json=body)
    )


def _stop_options(function: Any) -> Any:
    function = click.option("-s", "--signal", metavar="SIGNAL", help="Signal instead of its own.")(
        function
    )
    return click.option(
        "-t", "--timeout", type=DURATION, metavar="TIME", help="Time between the signal and a kill."
    )(function)


@command("stop", examples=["hutch stop web", "hutch stop -t 1s web db"])
@_stop_options
@names_argument
@pass_app
def stop(app: App, names: tuple[str, ...], timeout: float | None, signal: str | None) -> int:
    """Stop sandboxes: a signal to the main process, a kill after a time."""
    body = {"timeout": timeout, "signal": signal}
    return for_each(
        app, names, lambda n: app.client.call("POST", sandbox_path(n, "stop"), json=body)
    )


@command("restart", examples=["hutch restart web"])
@_stop_options
@names_argument
@pass_app
def restart(app: App, names: tuple[str, ...], timeout: float | None, signal: str | None) -> int:
    """Stop sandboxes and start them again."""
    body = {"timeout": timeout, "signal": signal}
    return for_each(
        app, names, lambda n: app.client.call("POST", sandbox_path(n, "restart"), json=body)
    )


@command("pause", examples=["hutch pause web"])
@names_argument
@pass_app
def pause(app: App, names: tuple[str, ...]) -> int:
    """Stop the CPUs of sandboxes; their memory stays.

    They go on with `hutch resume`, or when they are used: by exec, shell, cp and the like.
    """
    return for_each(app, names, lambda n: app.client.call("POST", sandbox_path(n, "pause")))


@command("park", examples=["hutch park web"])
@names_argument
@pass_app
def park(app: App, names: tuple[str, ...]) -> int:
    """Write the memory of sandboxes to disk, and give it back to the host.

    They go on where they were with `hutch resume`, or when they are used.
    """
    return for_each(app, names, lambda n: app.client.call("POST", sandbox_path(n, "park")))


@command("resume", examples=["hutch resume web"])
@names_argument
@pass_app
def resume(app: App, names: tuple[str, ...]) -> int:
    """Let paused and parked sandboxes go on where they were."""
    return for_each(app, names, lambda n: app.client.call("POST", sandbox_path(n, "resume")))


@command("kill", examples=["hutch kill web", "hutch kill -s HUP web"])
@click.option("-s", "--signal", default="KILL", metavar="SIGNAL", help="Signal (KILL).")
@names_argument
@pass_app
def kill(app: App, names: tuple[str, ...], signal: str) -> int:
    """End sandboxes at once.

    Another signal than KILL goes to the main process, which may go on.
    """
    body = {"signal": signal}
    return for_each(
        app, names, lambda n: app.client.call("POST", sandbox_path(n, "kill"), json=body)
    )


@command("rm", examples=["hutch rm web", "hutch rm -f web db", "hutch rm --all"])
@click.option("-f", "--force", is_flag=True, help="Running ones too; missing ones are no failure.")
@click.option(
    "-a", "--all", "everything", is_flag=True, help="All that are not running; with -f all."
)
@sandbox_argument("names", nargs=-1, metavar="NAME...")
@pass_app
def remove(app: App, names: tuple[str, ...], force: bool, everything: bool) -> int:
    """Remove sandboxes and their disks."""
    if bool(names) == everything:
        raise error("bad_request", "rm takes names or --all", hint="see `hutch rm --help`")
    if everything:
        infos = app.client.call("GET", "/v1/sandboxes", {"all": True})
        idle = ("created", "stopped", "failed")
        names = tuple(info["name"] for info in infos if force or info["state"] in idle)

    def act(name: str) -> Any:
        try:
            return app.client.call("DELETE", sandbox_path(name), {"force": force})
        except HutchError as failure:
            gone = failure.code == "sandbox_not_found"
            if gone and (force or everything):  # removed by somebody else meanwhile
                return {"removed": [], "bytes": 0}
            raise

    return for_each(app, names, act)


@command("rename", examples=["hutch rename web front"])
@sandbox_argument()
@click.argument("new_name")
@pass_app
def rename(app: App, /, name: str, new_name: str) -> None:
    """Give a sandbox another name."""
    info = app.client.call("POST", sandbox_path(name, "rename"), json={"name": new_name})
    if app.json:
        print_json(info)


@command("wait", examples=["hutch wait web"])
@click.option("-t", "--timeout", type=DURATION, metavar="TIME", help="Fail after TIME.")
@names_argument
@pass_app
def wait(app: App, names: tuple[str, ...], timeout: float | None) -> int:
    """Wait until sandboxes have stopped; print the exit code of each."""
    infos = []
    for name in names:
        info = app.client.call("GET", sandbox_path(name, "wait"), {"timeout": timeout})
        infos.append(info)
        if not app.json:
            code = (info.get("exit") or {}).get("code")
            click.echo("-" if code is None else code)
    if app.json:
        print_json(infos)
    return 0
