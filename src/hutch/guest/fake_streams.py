"""The streaming operations of the fake agent: one class for each."""

from typing import Any, Final

from hutch.guest import frames
from hutch.guest.fake_exec import FakeSession
from hutch.guest.fake_files import FakeError
from hutch.guest.fake_wire import FakeStream
from hutch.guest.frames import WINDOW
from hutch.guest.messages import encode_map


class _Download(FakeStream):
    """Sends bytes that are known from the start."""

    _bytes = b""
    _sent = 0
    _acked = 0

    def begin(self, reply: dict[str, Any], data: bytes, result: dict[str, Any]) -> None:
        """Send the reply and as much data as the window takes."""
        self._bytes = data
        self._result = result
        self.reply(reply)
        self.credit(1, 0)

    def credit(self, channel: int, size: int) -> None:
        """Go on sending; after the last byte, end."""
        self._acked += size
        while self._sent < min(len(self._bytes), self._acked + WINDOW):
            end = min(self._sent + frames.DATA_SIZE, self._acked + WINDOW)
            self.send(1, self._bytes[self._sent : end])
            self._sent = min(end, len(self._bytes))
        if self._sent == len(self._bytes) and not self.over:
            self.send_end(1)
            self.finish(self._result)


class FileRead(_Download):
    """fs.read."""

    def open(self, request: dict[str, Any]) -> None:
        """Send the file."""
        reply, data = self.agent.ready_files().read(request)
        self.begin(reply, data, {"bytes": len(data)})


class FileList(_Download):
    """fs.list."""

    def open(self, request: dict[str, Any]) -> None:
        """Send the entries."""
        files = self.agent.ready_files()
        entries = [files.entry(path) for path in files.children(files.directory(request["path"]))]
        data = b"".join(encode_map(entry) for entry in entries)
        self.begin({}, data, {"entries": len(entries)})


class TarRead(_Download):
    """tar.read."""

    def open(self, request: dict[str, Any]) -> None:
        """Send the archive."""
        reply, data, entries = self.agent.ready_files().read_tar(request)
        self.begin(reply, data, {"entries": entries, "bytes": len(data)})


class FileWrite(FakeStream):
    """fs.write: the bytes take effect at the end, all of them or none."""

    def open(self, request: dict[str, Any]) -> None:
        """Check that the file can be written."""
        self._request = request
        self._taken = bytearray()
        self._path = self.agent.ready_files().check_write(request)
        self.reply({})

    def data(self, part: bytes) -> None:
        """Keep the bytes."""
        self._taken += part
        self.give(len(part))

    def end(self) -> None:
        """Put the file in place."""
        self.agent.ready_files().write(self._path, self._request, bytes(self._taken))
        self.finish({"bytes": len(self._taken)})


class TarWrite(FileWrite):
    """tar.write."""

    def open(self, request: dict[str, Any]) -> None:
        """Check that the directory is there."""
        self._request = request
        self._taken = bytearray()
        files = self.agent.ready_files()
        if request.get("parents"):
            files.make_parents(request["path"] + b"/x")
        files.directory(request["path"])
        self.reply({})

    def end(self) -> None:
        """Unpack."""
        try:
            entries = self.agent.ready_files().write_tar(self._request, bytes(self._taken))
        except FakeError as failure:
            self.connection.error(self.number, failure.message)
            return
        self.finish({"entries": entries, "bytes": len(self._taken)})


class ExecStart(FakeStream):
    """exec.start, and what an attachment does."""

    session: FakeSession | None = None

    def open(self, request: dict[str, Any]) -> None:
        """Start the program."""
        session = self.agent.start_program(request)
        self.reply({"pid": session.pid, "started_ns": session.started_ns})
        if not request.get("attach", True):
            self.finish({})
            return
        self.bind(session, None)
        session.pump()

    def bind(self, session: FakeSession, offsets: dict[int, int] | None) -> dict[str, int]:
        """Become the session's one attachment."""
        starts = session.attach(_ExecSink(self), offsets)
        session.consumed = self.give
        self.session = session
        return starts

    def data(self, part: bytes) -> None:
        """Pass stdin on."""
        if self.session is not None:
            self.session.feed(part)

    def end(self) -> None:
        """Pass the end of stdin on."""
        if self.session is not None:
            self.session.feed_end()

    def credit(self, channel: int, size: int) -> None:
        """Pass an acknowledgement on."""
        if self.session is not None:
            self.session.credit(channel, size)

    def control(self, message: dict[str, Any]) -> None:
        """Pass a signal, size or mode on."""
        if self.session is not None:
            self.session.control(message)

    def close(self) -> None:
        """Detach; the program goes on."""
        if self.session is not None and self.session.sink is not None:
            self.session.detach()


class ExecAttach(ExecStart):
    """exec.attach."""

    def open(self, request: dict[str, Any]) -> None:
        """Attach to a session."""
        self.agent.ready_files()
        session = self.agent.session(request["id"])
        wanted = request.get("from")
        offsets = None if wanted is None else {int(key): at for key, at in wanted.items()}
        starts = self.bind(session, offsets)
        self.reply(
            {
                "pid": session.pid,
                "running": session.result is None,
                "tty": session.tty,
                "offsets": starts,
            }
        )
        session.pump()


class _ExecSink:
    """`fake_exec.Sink` over a stream."""

    def __init__(self, stream: ExecStart) -> None:
        self._stream = stream

    def data(self, channel: int, part: bytes) -> None:
        self._stream.send(channel, part)

    def gap(self, channel: int, size: int) -> None:
        self._stream.connection.write(frames.encode_gap(self._stream.number, channel, size))

    def end(self, channel: int) -> None:
        self._stream.send_end(channel)

    def result(self, message: dict[str, Any]) -> None:
        self._stream.session = None
        self._stream.finish(message)

    def error(self, message: dict[str, Any]) -> None:
        self._stream.session = None
        self._stream.connection.error(self._stream.number, message)


class Tunnel(FakeStream):
    """tunnel: the agent's `services` say a greeting, then echo."""

    def open(self, request: dict[str, Any]) -> None:
        """Connect to a service."""
        greeting = self.agent.services.get(request["port"])
        if greeting is None:
            raise FakeError("refused", "Connection refused")
        self._window = WINDOW
        self._waiting = bytearray(greeting)
        # A greeting was not sent by the host, so nothing of it is given back.
        self._unasked = len(greeting)
        self._ended = False
        self.reply({})
        self._flush()

    def data(self, part: bytes) -> None:
        """Echo."""
        self._waiting += part
        self._flush()

    def end(self) -> None:
        """Echo the half-close."""
        self._ended = True
        self._flush()

    def credit(self, channel: int, size: int) -> None:
        """Go on echoing."""
        self._window += size
        self._flush()

    def _flush(self) -> None:
        while self._waiting and self._window:
            part = bytes(self._waiting[: min(frames.DATA_SIZE, self._window)])
            del self._waiting[: len(part)]
            self._window -= len(part)
            self.send(1, part)
            unasked = min(self._unasked, len(part))
            self._unasked -= unasked
            if len(part) > unasked:
                self.give(len(part) - unasked)
        if self._ended and not self._waiting and not self.over:
            self.send_end(1)
            self.finish({})


STREAMS: Final[dict[str, type[FakeStream]]] = {
    "exec.start": ExecStart,
    "exec.attach": ExecAttach,
    "fs.list": FileList,
    "fs.read": FileRead,
    "fs.write": FileWrite,
    "tar.read": TarRead,
    "tar.write": TarWrite,
    "tunnel": Tunnel,
}
