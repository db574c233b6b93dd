"""`hutch events`: what happens on this host, as it happens."""

import sys

import click

from hutch.cli.app import App
from hutch.cli.escape import escape
from hutch.cli.options import command, pass_app
from hutch.cli.render import print_json_line
from hutch.models import from_json
from hutch.reports import Event


@command("events", examples=["hutch events -f", "hutch events --since 120 --json"])
@click.option("-f", "--follow", is_flag=True, help="Go on with new ones.")
@click.option("--since", type=int, metavar="SEQ", help="From that sequence number on.")
@pass_app
def events(app: App, /, follow: bool, since: int | None) -> None:
    """Show what happened: recent events, and with -f new ones.

    With --json, one object a line.
    """
    for line in app.client.lines("/v1/events", {"since": since, "follow": follow}):
        if "event" not in line:
            continue
        if app.json:
            print_json_line(line["event"])
            sys.stdout.flush()
            continue
        event = from_json(Event, line["event"])
        fields = " ".join(f"{key}={value}" for key, value in event.fields.items())
        text = f"{event.seq} {event.time} {event.kind} {event.name or event.subject} {fields}"
        click.echo(escape(text.rstrip()))
        sys.stdout.flush()
