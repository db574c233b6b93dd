"""`hutch daemon` and `hutch version`: the process that does the work."""

import os
import select
import sys
from typing import Any

import click

from hutch import __version__
from hutch.cli.app import App
from hutch.cli.options import Group, command, example_text, pass_app
from hutch.cli.render import age, pairs, print_json, size
from hutch.cli.signals import Signals
from hutch.errors import DaemonError, error
from hutch.models import from_json
from hutch.reports import DaemonInfo
from hutch.sdk.start import ensure_daemon, find_daemon, stop_daemon
from hutch.sdk.wire import Connection
from hutch.settings import SETTINGS

LOG_NAME = "daemon.log"
_FOLLOW_EVERY = 0.25


@click.group(
    "daemon",
    cls=Group,
    epilog=example_text(["hutch daemon status", "hutch daemon stop --sandboxes"]),
)
def daemon() -> None:
    """The daemon, which starts by itself on first use."""


def _info(path: str) -> dict[str, Any]:
    with Connection.connect(path) as connection:
        body: dict[str, Any] = connection.request("GET", "/v1/daemon", timeout=10).json()
    return body


def _show(app: App, body: dict[str, Any]) -> None:
    if app.json:
        print_json(body | {"state": "running"})
        return
    info = from_json(DaemonInfo, body)
    pairs(
        [
            ("state", f"running, {age(info.started_at)}"),
            ("pid", str(info.pid)),
            ("version", info.version),
            ("home", info.home),
            ("sandboxes", f"{info.sandboxes}, {info.running} running"),
            ("memory", size(info.memory)),
        ]
    )


@command("start", examples=["hutch daemon start"])
@pass_app
def start(app: App) -> None:
    """Start the daemon unless it runs."""
    _show(app, _info(ensure_daemon(app.settings)))


@command("stop", examples=["hutch daemon stop", "hutch daemon stop --sandboxes"])
@click.option("--sandboxes", is_flag=True, help="Stop the sandboxes as well; else they run on.")
@pass_app
def stop(app: App, /, sandboxes: bool) -> None:
    """End the daemon.

    Sandboxes run on, and the next daemon finds them again.
    """
    ended = stop_daemon(app.settings, stop_sandboxes=sandboxes)
    if app.json:
        print_json({"state": "stopped", "was_running": ended})
    else:
        click.echo("stopped" if ended else "it was not running")


@command("restart", examples=["hutch daemon restart"])
@pass_app
def restart(app: App) -> None:
    """End the daemon and start one of this version; sandboxes run on."""
    stop_daemon(app.settings)
    _show(app, _info(ensure_daemon(app.settings)))


@command("status", examples=["hutch daemon status"])
@pass_app
def status(app: App) -> int:
    """Tell whether the daemon runs; exit code 1 if not."""
    path = find_daemon(app.settings)
    if path is not None:
        _show(app, _info(path))
        return 0
    if app.json:
        print_json({"state": "stopped", "home": str(app.settings.home)})
    else:
        click.echo("stopped")
    return 1


def _setting_options(function: Any) -> Any:
    for row in reversed(SETTINGS):
        if row.key != "home":
            function = click.option(row.flag, row.key, metavar="VALUE", help=row.help)(function)
    return function


@command(
    "run", examples=["hutch daemon run", "hutch daemon run --accelerator tcg --log-level debug"]
)
@_setting_options
@pass_app
def run(app: App, /, **options: str | None) -> None:
    """Be the daemon, in the foreground, until SIGTERM or ^C.

    For service managers.
    """
    given = {key: text for key, text in options.items() if text is not None}
    for row in SETTINGS:
        if row.key in given:
            row.read(given[row.key], row.flag)  # a wrong value is told here, by its flag
            os.environ[row.env] = given[row.key]
    os.environ["HUTCH_HOME"] = str(app.settings.home.absolute())
    os.environ.pop("HUTCH_SNAPSHOT_KEY", None)  # it comes with the requests that need it
    sys.stdout.flush()
    argv = [sys.executable, "-m", "hutch.api.daemon"]
    os.execv(sys.executable, argv)


@command("logs", examples=["hutch daemon logs -n 50", "hutch daemon logs -f"])
@click.option("-f", "--follow", is_flag=True, help="Go on as more is written.")
@click.option(
    "-n", "--tail", type=click.IntRange(min=0), metavar="N", help="The last N lines only."
)
@pass_app
def logs(app: App, /, follow: bool, tail: int | None) -> None:
    """Show the daemon's own log: a JSON object a line."""
    path = app.settings.home / LOG_NAME
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise error(
            "daemon_unreachable", f"there is no log at {path}: no daemon has run yet"
        ) from None
    with file:
        lines = file.readlines()
        for line in lines if tail is None else lines[max(0, len(lines) - tail) :]:
            sys.stdout.buffer.write(line)
        sys.stdout.flush()
        if follow:
            _follow(str(path), file.tell())


def _follow(path: str, offset: int) -> None:
    """Print what is appended to a log, also across its rotation, until a signal comes."""
    with Signals() as signals:
        file = open(path, "rb")  # noqa: SIM115 - replaced on rotation
        file.seek(offset)
        while not select.select([signals], [], [], _FOLLOW_EVERY)[0]:
            sys.stdout.buffer.write(file.read())
            sys.stdout.flush()
            try:
                rotated = os.stat(path).st_ino != os.fstat(file.fileno()).st_ino
            except FileNotFoundError:
                continue  # between two files of a rotation
            if rotated:
                sys.stdout.buffer.write(file.read())
                file.close()
                file = open(path, "rb")  # noqa: SIM115
        file.close()
    raise KeyboardInterrupt


@command("version", examples=["hutch version", "hutch version --json"])
@pass_app
def version(app: App) -> None:
    """Print the versions of this program and of the daemon."""
    running = None
    try:
        path = find_daemon(app.settings)
        running = None if path is None else str(_info(path)["version"])
    except DaemonError as failure:
        running = f"unknown ({failure.code})"
    if app.json:
        print_json({"client": __version__, "daemon": running})
    else:
        pairs([("client", __version__), ("daemon", running or "not running")])


for _verb in (start, stop, restart, status, run, logs):
    daemon.add_command(_verb)
