"""`hutch logs`: what the main process, a detached exec or the guest's console has written."""

import sys
import time
from codecs import getincrementaldecoder
from datetime import UTC, datetime
from typing import Any

import click

from hutch.cli.app import App
from hutch.cli.client import sandbox_path
from hutch.cli.escape import escape
from hutch.cli.failures import warn
from hutch.cli.options import command, pass_app, sandbox_argument
from hutch.cli.render import print_json_line
from hutch.errors import InvalidInput, error, from_json
from hutch.models import parse_timestamp, timestamp
from hutch.sdk.websocket import BINARY
from hutch.settings import parse_duration

_NAMES = {1: "stdout", 2: "stderr", 3: "console"}


def parse_moment(text: str, flag: str) -> str:
    """Return the RFC 3339 time of a timestamp, or of a duration ago.

    Raises InvalidInput (bad_request).
    """
    try:
        return timestamp(time.time() - parse_duration(text))
    except InvalidInput:
        pass  # not a duration: then a timestamp
    try:
        return timestamp(parse_timestamp(text))
    except ValueError:
        raise error(
            "bad_request",
            f"{flag}: {text!r} is neither a duration nor a time",
            hint="write it like 10m or 2026-01-31T12:00:00Z",
        ) from None


@command(
    "logs",
    examples=["hutch logs -f web", "hutch logs -n 20 --since 10m web", "hutch logs --boot web"],
)
@click.option("-f", "--follow", is_flag=True, help="Go on as more is written.")
@click.option(
    "-n", "--tail", type=click.IntRange(min=0), metavar="N", help="The last N lines only."
)
@click.option("--since", metavar="TIME", help="From TIME on: 10m (ago), or a timestamp.")
@click.option("--until", metavar="TIME", help="Up to TIME.")
@click.option("--boot", is_flag=True, help="The console of the guest instead.")
@click.option("-t", "--timestamps", is_flag=True, help="Begin each line with its time.")
@click.option("--exec", "exec_id", metavar="ID", help="The output of a detached exec.")
@sandbox_argument()
@pass_app
def logs(
    app: App,
    /,
    name: str,
    follow: bool,
    tail: int | None,
    since: str | None,
    until: str | None,
    boot: bool,
    timestamps: bool,
    exec_id: str | None,
) -> None:
    """Show the output of a sandbox's main process.

    What it wrote to stderr goes to stderr. The console (--boot) is shown with control characters
    escaped. With --json, a line for each piece: {channel, time, text}.
    """
    query: dict[str, Any] = {"follow": follow, "tail": tail, "boot": boot, "exec": exec_id}
    query["since"] = parse_moment(since, "--since") if since else None
    query["until"] = parse_moment(until, "--until") if until else None
    ws = app.client.websocket(sandbox_path(name, "logs"), query)
    printer = Printer(timestamps=timestamps)
    while (message := ws.receive()) is not None:
        if message.kind == BINARY:
            channel = message.data[0]
            moment = int.from_bytes(message.data[1:9], "little")
            if app.json:
                print_json_line(
                    {
                        "channel": _NAMES.get(channel, str(channel)),
                        "time": _time(moment),
                        "text": message.data[9:].decode("utf-8", "backslashreplace"),
                    }
                )
            else:
                printer.write(channel, moment, message.data[9:])
            continue
        body = message.json()
        if "error" in body:
            raise from_json(body["error"])
        if app.json:
            print_json_line(body)
        elif "gap" in body:
            printer.gap(int(body["gap"]["size"]))


def _time(nanoseconds: int) -> str:
    moment = datetime.fromtimestamp(nanoseconds // 10**9, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds % 10**9:09d}Z"


class Printer:
    """Writes pieces of a log to our stdout and stderr, byte for byte unless told otherwise."""

    def __init__(self, *, timestamps: bool) -> None:
        self._timestamps = timestamps
        self._console = ConsoleEscape()
        self._inside: dict[int, bool] = {}  # the channel's last piece did not end its line

    def write(self, channel: int, moment: int, data: bytes) -> None:
        """Write a piece of a channel."""
        if channel == 3:
            data = self._console(data)
        if self._timestamps:
            data = self._stamp(channel, moment, data)
        out = sys.stderr.buffer if channel == 2 else sys.stdout.buffer
        out.write(data)
        out.flush()

    def _stamp(self, channel: int, moment: int, data: bytes) -> bytes:
        mark = _time(moment).encode() + b" "
        lines = data.splitlines(keepends=True) if data else []
        inside = self._inside.get(channel, False)
        self._inside[channel] = bool(data) and not data.endswith((b"\n", b"\r"))
        return b"".join((b"" if inside and not i else mark) + line for i, line in enumerate(lines))

    def gap(self, size: int) -> None:
        """Say that bytes are missing here."""
        sys.stdout.flush()
        warn(f"{size} bytes were lost here")


class ConsoleEscape:
    """Makes a guest's console harmless for a terminal, but for newlines and tabs."""

    def __init__(self) -> None:
        # Pieces end anywhere, also inside a character.
        self._decoder = getincrementaldecoder("utf-8")("surrogateescape")

    def __call__(self, piece: bytes) -> bytes:
        """Return a piece with control characters and broken UTF-8 as visible escapes."""
        text = self._decoder.decode(piece).replace("\r\n", "\n")
        return "".join(c if c in "\n\t" else escape(c) for c in text).encode()
