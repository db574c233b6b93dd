"""`hutch stats` and `hutch top`: what sandboxes use, and the processes in one."""

import select
import sys
from typing import Any

import click

from hutch.cli.app import App
from hutch.cli.client import sandbox_path
from hutch.cli.options import DURATION, command, pass_app, sandbox_argument
from hutch.cli.render import age, duration, pairs, print_json, print_json_line, size, table
from hutch.cli.signals import Signals
from hutch.cli.terminal import no_color
from hutch.errors import HutchError, error
from hutch.models import SandboxState, from_json
from hutch.reports import HostUsage, ProcessInfo, SandboxStats

_SHOWN = (SandboxState.RUNNING, SandboxState.PAUSED, SandboxState.PARKED)


@command(
    "stats", examples=["hutch stats", "hutch stats --watch 1s web", "hutch stats --host --json"]
)
@click.option("--watch", type=DURATION, metavar="TIME", help="Again each TIME, until ^C.")
@click.option("--host", is_flag=True, help="What the host has left, and has promised.")
@sandbox_argument("names", nargs=-1, metavar="[NAME]...")
@pass_app
def stats(app: App, /, names: tuple[str, ...], watch: float | None, host: bool) -> None:
    """Show the use of CPU, memory and disk.

    Once, unless --watch is given; of all sandboxes that run, are paused or parked where none is
    named. HOST MEMORY is what a VM takes of the host: what its guest alone has, its part of what
    clones share, and the engine. ON DISK is what it alone takes, and what it shares with others.
    """
    if host:
        if names or watch is not None:
            raise error("bad_request", "--host goes with neither names nor --watch")
        _show_host(app)
        return
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
        states = [state.value for state in _SHOWN]
        infos = app.client.call("GET", "/v1/sandboxes", {"state": states, "all": True})
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
    table(_HEADERS, rows)


_HEADERS = ("NAME", "CPU", "LOAD", "MEMORY", "DISK", "PROCESSES", "UP", "HOST MEMORY", "ON DISK")


def _row(s: SandboxStats) -> tuple[str, ...]:
    inside = s.uptime_seconds is not None
    state = s.state.value
    parts = (s.host_memory_private, s.host_memory_shared, s.host_memory_engine)
    memory = f"{size(s.host_memory)} ({' + '.join(map(size, parts))})"
    return (
        s.name,
        f"{s.cpu_percent:.1f} %",
        f"{s.load[0]:.2f}" if s.load else "-",
        f"{size(s.memory_used)} of {size(s.memory_total)}" if inside else state,
        f"{size(s.disk_used)} of {size(s.disk_total)}" if inside else state,
        "-" if s.processes is None else str(s.processes),
        "-" if s.uptime_seconds is None else duration(s.uptime_seconds),
        memory if s.host_memory else "-",
        f"{size(s.host_disk)} + {size(s.host_disk_shared)}",
    )


def _show_host(app: App) -> None:
    answer = app.client.call("GET", "/v1/usage")
    if app.json:
        print_json(answer)
        return
    usage = from_json(HostUsage, answer)
    pairs(
        [
            ("memory", f"{size(usage.memory_available)} of {size(usage.memory_total)} available"),
            ("kept in reserve", size(usage.memory_reserve)),
            ("for starts under way", size(usage.memory_pending)),
            (
                "promised to guests",
                f"{size(usage.memory_promised)} of at most {size(usage.memory_promise_limit)}",
            ),
            ("taken by VMs", size(sum(each.memory for each in usage.sandboxes))),
            ("held for clones", size(usage.template_memory)),
            ("disk", f"{size(usage.disk_free)} free, {size(usage.disk_reserve)} kept in reserve"),
            ("taken by sandboxes", size(sum(each.disk for each in usage.sandboxes))),
        ]
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
