"""`hutch checkpoint`, `checkpoints`, `undo` and `diff`: a sandbox's own past."""

import shlex

import click

from hutch.cli.app import App
from hutch.cli.client import sandbox_path
from hutch.cli.options import command, pass_app, sandbox_argument
from hutch.cli.render import print_json, size, table
from hutch.cli.snapshots import snapshot_path
from hutch.errors import error
from hutch.models import from_json
from hutch.reports import Checkpoint, Difference

_SHOWN = 60
_DIFFERENT = 1
_SIGNS = {"added": "+", "removed": "-", "modified": "~", "gone": "-"}


@command("checkpoint", examples=["hutch checkpoint web", "hutch checkpoint -m 'tests pass' web"])
@click.option("-m", "--message", default="", metavar="TEXT", help="What to remember it by.")
@sandbox_argument()
@pass_app
def checkpoint(app: App, /, name: str, message: str) -> None:
    """Take a checkpoint of a sandbox, which goes on; print its name.

    `hutch undo` puts the sandbox back to it. `hutch exec --checkpoint` takes one before a command.
    The oldest go when there are more than the setting checkpoint_keep.
    """
    info = app.client.call("POST", sandbox_path(name, "checkpoints"), json={"message": message})
    if app.json:
        print_json(info)
    else:
        click.echo(info["name"])


@command("checkpoints", examples=["hutch checkpoints web"])
@sandbox_argument()
@pass_app
def list_checkpoints(app: App, /, name: str) -> None:
    """List the checkpoints of a sandbox, the newest first.

    Those without a number are of what was undone: `hutch undo --to ID` goes there, until the next
    checkpoint is taken.
    """
    answer = app.client.call("GET", sandbox_path(name, "checkpoints"))
    if app.json:
        print_json(answer)
        return
    table(
        ["NUMBER", "ID", "NAME", "CREATED", "DISK USE", "SHARED", "BEFORE"],
        [_row(from_json(Checkpoint, item)) for item in answer],
    )


def _row(found: Checkpoint) -> tuple[str, ...]:
    info = found.snapshot
    why = shlex.join(info.command) if info.command else info.message
    shown = _plain(why)
    return (
        "-" if found.number is None else str(found.number),
        info.id,
        info.name,
        info.created_at[:19].replace("T", " "),
        size(info.disk_bytes),
        size(info.shared_bytes),
        shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}...",
    )


@command("undo", examples=["hutch undo web", "hutch undo web 3", "hutch undo --to web-cp-2 web"])
@click.option("--to", metavar="CHECKPOINT", help="The one with this id or name.")
@sandbox_argument()
@click.argument("number", type=click.IntRange(1), required=False, metavar="[N]")
@pass_app
def undo(app: App, /, name: str, number: int | None, to: str | None) -> None:
    """Put a sandbox back to a checkpoint; print its name.

    That is the last one, the Nth last, or the one that --to names. The sandbox is the same, with
    the memory, programs and disk of then. What is attached to it ends. When this fails it is as it
    was.
    """
    if number is not None and to is not None:
        raise error("bad_request", "N and --to exclude each other")
    body = {"number": 1 if number is None else number, "to": to}
    info = app.client.call("POST", sandbox_path(name, "undo"), json=body)
    if app.json:
        print_json(info)
    else:
        click.echo(app.client.call("GET", snapshot_path(info["undone_to"]))["name"])


@command("diff", examples=["hutch diff web", "hutch diff web@2 web@1", "hutch diff web-1 web"])
@click.argument("before", metavar="A")
@click.argument("after", required=False, metavar="[B]")
@pass_app
def diff(app: App, /, before: str, after: str | None) -> int:
    """Show what differs between two moments: files and processes.

    A moment is a sandbox as it is now, NAME@N for its Nth last checkpoint, or a snapshot of a
    sandbox. `hutch diff NAME` compares the last checkpoint with now. The exit code is 0 when
    nothing differs, and 1 when something does. Looked at is what the disk has of files, not a
    tmpfs or a volume; one with the same size, owner, mode and time counts as the same.
    """
    answer = app.client.call("GET", "/v1/diff", {"before": before, "after": after})
    found = from_json(Difference, answer)
    if app.json:
        print_json(answer)
    else:
        for file in found.files:
            slash = "/" if file.type == "dir" else ""
            click.echo(f"{_SIGNS.get(file.change, '?')} {_plain(file.path)}{slash}")
        if not found.complete:
            click.echo("... and more files", err=True)
        for process in found.processes:
            sign = _SIGNS.get(process.change, "?")
            click.echo(f"{sign} process {process.pid} ({process.user}): {_plain(process.command)}")
    return 0 if found.empty else _DIFFERENT


def _plain(text: str) -> str:
    """Return a guest's text as a terminal may show it."""
    return "".join(each if each.isprintable() else "?" for each in text)
