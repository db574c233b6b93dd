"""`hutch stats` and `hutch top`: what sandboxes use, and the processes in one."""

import select
import sys
from typing import Any

import click

from hutch.cli.app import App
from hutch.cli.client import sandbox_path
from hutch.cli.options import DURATION, command, pass_app, sandbox_argument
from hutch.cli.render import age, duration, print_json, print_json_line, size, table
from hutch.cli.signals import Signals
from hutch.cli.terminal import no_color
from hutch.errors import HutchError
from hutch.models import ProcessInfo, SandboxStats, from_json


@command("stats", examples=["hutch stats", "hutch stats --watch 1s web"])
@click.option("--watch", type=DURATION, metavar="TIME", help="Again each TIME, until ^C.")
@sandbox_argument("names", nargs=-1, metavar="[NAME]...")
@pass_app
def stats(app: App, /, names: tuple[str, ...], watch: float | None) -> None:
    """Show the use of CPU, memory and disk.

    Once, unless --watch is given; of all running sandboxes where none is named.
    """
    if watch is None:
        _show(app, _collect(app, names), line=False)
        return
    with Signals() as signals:
        while True:
            answer = _collect(app, names)
            if not app.json and not no_color():
                click.echo("\x1b[H\x1b[2J", nl=False)
            _show(app, answer, line=True)
            sys.stdout.flush()
            if select.select([signals], [], [], watch)[0]:
                raise KeyboardInterrupt


def _collect(app: App, names: tuple[str, ...]) -> list[dict[str, Any]]:
    every = not names
    if every:
        infos = app.client.call("GET", "/v1/sandboxes", {"state": ["running"], "all": True})
        names = tuple(info["id"] for info in infos)
    out = []
    for name in names:
        try:
            out.append(app.client.call("GET", sandbox_path(name, "stats")))
        except HutchError as failure:
            # One that has stopped since the list was made is no failure of ours.
            if not every or failure.code not in ("sandbox_not_found", "wrong_state"):
                raise
    return out


def _show(app: App, answer: list[dict[str, Any]], *, line: bool) -> None:
    if app.json:
        (print_json_line if line else print_json)(answer)
        return
    rows = [_row(from_json(SandboxStats, item)) for item in answer]
    headers = ["NAME", "CPU", "LOAD", "MEMORY", "DISK", "PROCESSES", "UP", "HOST MEMORY"]
    table(headers, rows)


def _row(s: SandboxStats) -> tuple[str, ...]:
    return (
        s.name,
        f"{s.cpu_percent:.1f} %",
        f"{s.load[0]:.2f}" if s.load else "-",
        f"{size(s.memory_used)} of {size(s.memory_total)}",
        f"{size(s.disk_used)} of {size(s.disk_total)}",
        str(s.processes),
        duration(s.uptime_seconds),
        size(s.host_memory),
    )


@command("top", examples=["hutch top web"])
@sandbox_argument()
@pass_app
def top(app: App, /, name: str) -> None:
    """Show the processes in a sandbox."""
    answer = app.client.call("GET", sandbox_path(name, "processes"))
    if app.json:
        print_json(answer)
        return
    table(
        ["PID", "PPID", "USER", "STATE", "CPU", "MEMORY", "AGE", "COMMAND"],
        [
            (
                str(p.pid),
                str(p.ppid),
                p.user,
                p.state,
                f"{p.cpu_seconds:.2f}s",
                size(p.memory),
                age(p.started_at),
                p.command,
            )
            for p in (from_json(ProcessInfo, item) for item in answer)
        ],
        flexible=7,
    )
