"""A program in a sandbox that this process is attached to, through losses of the daemon.

Makes the connection, sets the terminal up, and, when the daemon dies, comes back to the same byte
with a new one within the grace that execs have. relay.py serves each connection.
"""

import contextlib
import select
import time
from collections.abc import Mapping
from typing import Any

from hutch.cli.app import App
from hutch.cli.client import sandbox_path
from hutch.cli.relay import Ended, Relay
from hutch.cli.signals import FORWARDED, Signals
from hutch.cli.sinks import Capture, Sink, standard_sinks
from hutch.cli.terminal import RawMode, is_tty
from hutch.errors import HutchError, error, from_json
from hutch.sdk.wire import WebSocket

CAPTURE_LIMIT = 64 << 20
"""The most bytes of each output channel that --json keeps."""
_RETRY = 0.2


def started_message(ws: WebSocket) -> dict[str, Any]:
    """Return the server's `started`. Raises the error that it sends instead."""
    message = ws.receive()
    if message is None:
        raise error(
            "daemon_unreachable", "the daemon closed the connection", details={"lost": True}
        )
    body = message.json()
    if "error" in body:
        raise from_json(body["error"])
    started = body["started"]
    assert isinstance(started, dict)
    return started


class Session:
    """One attachment from its first byte to its exit code."""

    def __init__(
        self, app: App, ref: str, exec_id: str, *, stdin: bool, tty: bool, owns: bool = True
    ) -> None:
        """Prepare. `owns`: closing our output ends the program, as it would end a local one."""
        self._app = app
        self._ref = ref
        self._id = exec_id
        self._stdin = stdin
        self._tty = tty
        self._owns = owns
        self._sinks: Mapping[int, Sink]
        if app.json:
            self._sinks = dict.fromkeys((1, 2), Capture(CAPTURE_LIMIT))
        else:
            self._sinks = standard_sinks()
        self.rest: list[dict[str, Any]] = []
        """Messages of the server that do not belong to the exec's protocol."""
        self.captured: Capture | None = None
        """What the program wrote, with --json."""

    def run(self, ws: WebSocket, started: Mapping[str, Any]) -> Ended:
        """Relay until the end and return it. `ws` is closed then."""
        with contextlib.ExitStack() as stack:
            signals = stack.enter_context(Signals())
            raw = None
            if self._tty and self._stdin and is_tty(0):
                raw = stack.enter_context(RawMode(0))
            relay = Relay(
                self._sinks, signals, stdin=self._stdin, tty=self._tty, raw=raw, owns=self._owns
            )
            ended = self._serve(relay, signals, ws, started)
            self.rest = relay.rest
        first = self._sinks[1]
        self.captured = first if isinstance(first, Capture) else None
        return ended

    def _serve(
        self, relay: Relay, signals: Signals, ws: WebSocket, started: Mapping[str, Any]
    ) -> Ended:
        while True:
            try:
                ended = relay.serve(ws, started)
            except HutchError as failure:
                ws.close()
                if not failure.details.get("lost"):
                    raise
                relay.lost()
                if relay.unconfirmed and not self._tty:
                    raise error(
                        "daemon_unreachable",
                        f"the daemon was lost with {relay.unconfirmed} bytes of input under way, "
                        "which the program may not have",
                        hint="run it again",
                    ) from failure
                again = self._reconnect(relay, signals, failure)
                if isinstance(again, Ended):
                    return again
                ws, started = again
            else:
                # `run` has more to read from it; otherwise both sides are done.
                if not self.keep_open:
                    ws.close(1000)
                return ended

    keep_open = False
    """Leave the connection open at the end: the caller reads on."""

    def _reconnect(
        self, relay: Relay, signals: Signals, lost: HutchError
    ) -> tuple[WebSocket, dict[str, Any]] | Ended:
        """Attach again where the output ended. A signal that asks to end gives up."""
        deadline = time.monotonic() + self._app.settings.exec_orphan_grace
        self.keep_open = False  # what `run` would read further died with the first connection
        while True:
            self._app.client.close()
            try:
                ws = self._app.client.websocket(sandbox_path(self._ref, "exec"))
                offsets = {str(channel): offset for channel, offset in relay.offsets.items()}
                ws.send_json({"attach": self._id, "offsets": offsets or None})
                return ws, started_message(ws)
            except HutchError as failure:
                if failure.code != "daemon_unreachable" or time.monotonic() >= deadline:
                    raise error(
                        failure.code,
                        f"{lost.message}; coming back to the program failed: {failure.message}",
                        hint=failure.hint,
                    ) from failure
            select.select([signals], [], [], _RETRY)
            for number in signals.take():
                if number in FORWARDED:
                    return Ended(128 + number)


def result_json(ended: Ended, captured: Capture) -> dict[str, Any]:
    """Return what --json prints of a program: its output as text (or base64) and its outcome."""
    body: dict[str, Any] = {"exit_code": ended.exit_code}
    for channel, name in ((1, "stdout"), (2, "stderr")):
        data = bytes(captured.data[channel])
        try:
            body[name] = data.decode()
        except UnicodeDecodeError:
            import base64

            body[f"{name}_base64"] = base64.b64encode(data).decode()
        if captured.dropped[channel]:
            body[f"{name}_dropped"] = captured.dropped[channel]
    body["outcome"] = ended.outcome
    return body
