"""The loop between a program in a sandbox and our stdin, stdout, stderr, terminal and signals.

One poll loop over the WebSocket of spec/api.md, without threads. Output is acknowledged only when
it has left this process, so that a reader who stalls stops the program and not our memory. Knows
how to serve one connection; session.py makes connections, also anew.
"""

import os
import select
import signal
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from hutch.cli.failures import EXIT_BROKEN_PIPE, warn
from hutch.cli.signals import FORWARDED, Repeats, Signals
from hutch.cli.sinks import Capture, OutputClosedError, Sink
from hutch.cli.terminal import DetachScanner, RawMode, window_size
from hutch.errors import error, from_json
from hutch.sdk.websocket import BINARY, Message
from hutch.sdk.wire import WebSocket

ACK_EVERY = 256 << 10  # well below the window of 1 MiB
_STDIN_STEP = 64 << 10
_CANCEL_WAIT = 5.0
_DETACH_WAIT = 5.0
_READ, _WRITE = select.POLLIN | select.POLLHUP | select.POLLERR | select.POLLNVAL, select.POLLOUT


class Ended(NamedTuple):
    """How an attachment ended: `outcome` is an ExecOutcome as JSON, None when nothing is known."""

    exit_code: int
    outcome: dict[str, Any] | None = None
    detached: bool = False


class Relay:
    """The state of one attachment; it outlives a connection that is lost."""

    def __init__(
        self,
        sinks: Mapping[int, Sink],
        signals: Signals,
        *,
        stdin: bool = False,
        tty: bool = False,
        raw: RawMode | None = None,
        owns: bool = True,
    ) -> None:
        """Prepare. `owns`: the program ends with us when nobody reads its output any more."""
        self._sinks = dict(sinks)
        self._signals = signals
        self._tty = tty
        self._raw = raw
        self._owns = owns
        self._keys = DetachScanner() if raw is not None else None
        self._stdin_open = stdin
        self._eof_sent = False
        self._detaching = False
        self._credit = 0
        self._repeats = Repeats()
        self._ended: Ended | None = None
        self._given_up: int | None = None  # the exit code once we have cancelled
        self._deadline: float | None = None
        self._unacked: dict[int, int] = {}
        self._queued: dict[int, int] = {1: 0, 2: 0}  # received, and still in this process
        self._carried: dict[int, int] = {}  # of these, what an earlier connection brought
        self._ws: WebSocket | None = None
        self.offsets: dict[int, int] = {}
        """Per channel, the offset of the first byte that has not been received."""
        self.unconfirmed = 0
        """Bytes of stdin that the guest has not confirmed."""
        self.rest: list[dict[str, Any]] = []
        """Messages that are not of the exec's protocol, in order (`run` has some)."""

    def serve(self, ws: WebSocket, started: Mapping[str, Any]) -> Ended:
        """Relay until the program has ended or was let go.

        `started` is the server's message of that name. Raises DaemonError (daemon_unreachable) when
        the connection is lost, after which `serve` may be called with another one, and whatever
        error the server reports.
        """
        self._begin(ws, started)
        self._take(ws.poll())
        while not self._finished():
            self._step(ws)
        return self._result()

    def _begin(self, ws: WebSocket, started: Mapping[str, Any]) -> None:
        self._ws = ws
        self._credit = int(started.get("credit") or 0)
        self.unconfirmed = 0
        # This connection begins after what is queued here; it must not be acknowledged to it.
        self._unacked, self._carried = {}, dict(self._queued)
        for key, offset in (started.get("offsets") or {}).items():
            self.offsets.setdefault(int(key), int(offset))
        if self._eof_sent:
            ws.send_json({"eof": True})
        if self._tty:
            self._send_size()
        if self._given_up is not None:
            ws.send_json({"cancel": True})
        elif self._detaching:
            ws.send_json({"detach": True})

    def _finished(self) -> bool:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return True
        if self._ended is None:
            return False
        # Who has cancelled wants to be gone, not what is still queued for a reader that stalls.
        leaves = self._ended.detached or self._given_up is not None
        return leaves or not any(sink.pending for sink in self._sinks.values())

    def _result(self) -> Ended:
        ended = self._ended or Ended(0, detached=self._detaching)
        return ended if self._given_up is None else ended._replace(exit_code=self._given_up)

    def _step(self, ws: WebSocket) -> None:
        poller = select.poll()
        if self._ended is None:
            poller.register(ws.fileno(), select.POLLIN)
        poller.register(self._signals.fileno(), select.POLLIN)
        reads_stdin = self._stdin_open and self._credit > 0 and self._ended is None
        if reads_stdin:
            poller.register(0, select.POLLIN)
        for sink in self._sinks.values():
            if sink.pending:
                poller.register(sink.fd, select.POLLOUT)
        timeout = None
        if self._deadline is not None:
            timeout = max(0.0, self._deadline - time.monotonic()) * 1000
        ready = {fd for fd, _ in poller.poll(timeout)}
        if self._signals.fileno() in ready:
            for number in self._signals.take():
                self._on_signal(number)
        if ws.fileno() in ready:
            self._take(ws.poll())
        elif any(sink.fd in ready for sink in self._sinks.values()):
            self._flush()
        if reads_stdin and 0 in ready and self._ended is None:
            self._read_stdin()

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            if message.kind == BINARY:
                self._take_output(memoryview(message.data))
            else:
                self._take_text(message.json())
        self._flush()
        if self._ended is None and self._ws is not None and self._ws.close_code is not None:
            if self._detaching:
                self._ended = Ended(0, detached=True)
                return
            raise error(
                "daemon_unreachable",
                "the daemon ended the connection before the program had ended",
                hint="look at `hutch daemon logs`",
                details={"lost": True},
            )

    def _take_output(self, data: memoryview) -> None:
        channel, size = data[0], len(data) - 1
        self.offsets[channel] = self.offsets.get(channel, 0) + size
        self._queued[channel] += size
        self._sinks[channel].put(channel, data[1:])

    def _take_text(self, body: dict[str, Any]) -> None:
        if "credit" in body:
            self._credit += int(body["credit"])
            self.unconfirmed = max(0, self.unconfirmed - int(body["credit"]))
        elif "exit" in body:
            outcome = body["exit"]
            ended = Ended(int(outcome["exit_code"]), outcome)
            self._ended = Ended(0, detached=True) if self._detaching else ended
        elif "gap" in body:
            self._take_gap(body["gap"])
        elif "error" in body:
            raise from_json(body["error"])
        elif "end" not in body:
            self.rest.append(body)

    def _take_gap(self, gap: Mapping[str, Any]) -> None:
        channel, size = int(gap["channel"]), int(gap["size"])
        self.offsets[channel] = self.offsets.get(channel, 0) + size
        name = {1: "stdout", 2: "stderr"}.get(channel, "output")
        warn(f"{size} bytes of {name} were lost before this point")

    def _flush(self) -> None:
        for sink in set(self._sinks.values()):
            try:
                sink.flush()
            except OutputClosedError:
                self._on_closed()
                return
            for channel, size in sink.taken().items():
                self._queued[channel] -= size
                carried = min(size, self._carried.get(channel, 0))
                self._carried[channel] = self._carried.get(channel, 0) - carried
                self._unacked[channel] = self._unacked.get(channel, 0) + size - carried
        if any(size >= ACK_EVERY for size in self._unacked.values()):
            self.acknowledge()

    def acknowledge(self) -> None:
        """Tell the server what has left this process."""
        if self._ws is not None and self._ended is None:
            sizes = {str(channel): size for channel, size in self._unacked.items() if size}
            if sizes:
                self._ws.send_json({"ack": sizes})
            self._unacked = {}

    def _on_closed(self) -> None:
        """Nobody reads our output: end as other programs do, by SIGPIPE's exit code."""
        self._discard()
        if self._ended is not None:
            self._given_up = EXIT_BROKEN_PIPE
        elif self._owns:
            self.cancel(EXIT_BROKEN_PIPE)
        else:
            self._ended = Ended(EXIT_BROKEN_PIPE, detached=True)
            self._given_up = EXIT_BROKEN_PIPE

    def _discard(self) -> None:
        """Throw output away from now on, so that it does not hold up the program's end."""
        self._sinks = dict.fromkeys((1, 2), Capture(0))
        for channel, size in self._queued.items():
            rest = size - self._carried.get(channel, 0)
            self._unacked[channel] = self._unacked.get(channel, 0) + rest
        self._queued, self._carried = {1: 0, 2: 0}, {}

    def cancel(self, exit_code: int) -> None:
        """Have everything killed that the program started, and end with `exit_code`."""
        self._given_up = exit_code
        self._stdin_open = False
        self._discard()
        self._deadline = time.monotonic() + _CANCEL_WAIT
        if self._ws is not None and self._ended is None:
            self._ws.send_json({"cancel": True})
            self.acknowledge()

    def _on_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGCONT:
            if self._raw is not None:
                self._raw.renew()
                self._send_size()
        elif number == signal.SIGWINCH:
            if self._tty:
                self._send_size()
        elif self._ended is not None or self._given_up is not None:
            # The program is gone, and what is left of its output does not flow: leave.
            self._given_up = 128 + number
            self._deadline = time.monotonic()
        elif self._detaching:
            # The program is left alone, and whoever cannot wait leaves at once.
            self._deadline = time.monotonic()
        elif number in FORWARDED and self._ws is not None:
            if number != signal.SIGQUIT and self._repeats.is_final(time.monotonic()):
                self.cancel(128 + number)
            else:
                self._ws.send_json({"signal": number.name.removeprefix("SIG")})

    def _send_size(self) -> None:
        if self._ws is not None and self._ended is None:
            rows, cols = window_size()
            self._ws.send_json({"resize": {"rows": rows, "cols": cols}})

    def _read_stdin(self) -> None:
        assert self._ws is not None
        try:
            data = os.read(0, min(self._credit, _STDIN_STEP))
        except BlockingIOError:
            return
        except OSError:
            data = b""  # closed, or a terminal that has hung up: the end of input either way
        if not data:
            self._stdin_open = False
            self._eof_sent = True
            self._ws.send_json({"eof": True})
            return
        detach = False
        if self._keys is not None:
            data, detach = self._keys.feed(data)
        if data:
            self._ws.send_binary(b"\0", data)
            self._credit -= len(data)
            self.unconfirmed += len(data)
        if detach:
            self._detach()

    def _detach(self) -> None:
        """Let go of the program, which takes what was typed before, and stay until that is done.

        Were we gone at once, the daemon might notice that before our last words, and not hear them.
        """
        assert self._ws is not None
        self._detaching = True
        self._stdin_open = False
        self._discard()
        self.acknowledge()
        self._deadline = time.monotonic() + _DETACH_WAIT
        self._ws.send_json({"detach": True})

    def lost(self) -> None:
        """Note that the connection is gone: nothing can be sent until `serve` is called again."""
        self._ws = None
