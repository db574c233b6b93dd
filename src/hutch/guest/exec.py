"""Programs in the guest: starting, attaching, output and input, and the sessions they leave."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Self, TypeVar

from hutch.guest import fields
from hutch.guest.base import (
    DEFAULT_TIMEOUT,
    Channel,
    ExecEvent,
    ExecResult,
    ExecState,
    GuestExec,
    Output,
    OutputEnd,
    OutputGap,
    TerminalSize,
)
from hutch.guest.link import Link
from hutch.guest.messages import GuestProtocolError
from hutch.guest.streams import Chunk, End, Gap, Stream

T = TypeVar("T")

_NOFILE: Final = 1_048_576
_LAST_OFFSET: Final = (1 << 63) - 1


class ExecAttachment:
    """An attachment to an exec session: `base.ExecStream` over one stream.

    One task iterates; input and control may come from another.
    """

    def __init__(
        self,
        link: Link,
        stream: Stream,
        exec_id: str,
        pid: int,
        tty: bool,
        offsets: Mapping[int, int],
    ) -> None:
        self.id = exec_id
        self.pid = pid
        self.tty = tty
        self._link = link
        self._stream = stream
        self._offsets = {1: 0, 2: 0, **offsets}
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ExecEvent:
        """Return the next item; the ExecResult is the last.

        Raises exec_taken when another client attaches, sandbox_died and guest_protocol.
        """
        if self._ended:
            raise StopAsyncIteration
        item = await self._stream.next()
        match item:
            case Chunk(channel, data):
                return Output(Channel(channel), self._pass(channel, len(data)), data)
            case Gap(channel, size):
                return OutputGap(Channel(channel), self._pass(channel, size), size)
            case End(channel):
                return OutputEnd(Channel(channel), self._offsets[channel])
        self._ended = True
        with self._link.strict():
            return parse_result(item.message)

    def _pass(self, channel: int, size: int) -> int:
        offset = self._offsets[channel]
        with self._link.strict():
            if offset + size > _LAST_OFFSET:
                raise GuestProtocolError("an output offset beyond all bounds")
        self._offsets[channel] = offset + size
        return offset

    def ack(self, channel: Channel, size: int) -> None:
        """Say that `size` more bytes were consumed. Raises ValueError for more than came."""
        self._stream.ack(int(channel), size)

    async def write(self, data: bytes) -> None:
        """Send bytes to the program's stdin; waits while the window is full."""
        await self._stream.write(data)

    async def close_stdin(self) -> None:
        """End the program's stdin (EOT on a terminal)."""
        await self._stream.end()

    async def signal(self, number: int) -> None:
        """Send a signal to the program's process group."""
        await self._stream.control({"signal": number})

    async def resize(self, size: TerminalSize) -> None:
        """Tell the terminal's new size."""
        await self._stream.control({"resize": {"rows": size.rows, "cols": size.cols}})

    async def set_overflow(self, mode: str) -> None:
        """Choose what a full ring does from now on: `block` or `drop`."""
        await self._stream.control({"overflow": mode})

    async def close(self) -> None:
        """Detach. The program goes on."""
        self._stream.close()


class Execs:
    """The programs' part of `base.Guest`."""

    _link: Link

    async def start_exec(self, request: GuestExec) -> ExecAttachment:
        """Start and attach in one round trip.

        Raises command_not_found, command_not_executable, no_such_user, guest_refused (cwd, id in
        use, limit).
        """
        stream = await self._start(request, attach=True)
        pid = await self._replied(stream, _parse_pid)
        return ExecAttachment(self._link, stream, request.id, pid, request.tty is not None, {})

    async def spawn_exec(self, request: GuestExec) -> int:
        """Start without attaching; returns the pid. Raises as `start_exec`."""
        stream = await self._start(request, attach=False)
        pid = await self._replied(stream, _parse_pid)
        try:
            with self._link.strict():
                await stream.result(DEFAULT_TIMEOUT)
        finally:
            stream.close()
        return pid

    async def attach_exec(
        self, exec_id: str, offsets: Mapping[int, int] | None = None
    ) -> ExecAttachment:
        """Attach to a session from `offsets` (by channel), or from the oldest byte kept.

        A former attachment ends with exec_taken. Raises exec_not_found.
        """
        wanted = None if offsets is None else {str(int(c)): offsets[c] for c in offsets}
        request = {"id": exec_id, "from": wanted}
        stream = await self._link.open(
            "exec.attach", f"exec {exec_id}", request, seconds=DEFAULT_TIMEOUT
        )

        def parse(reply: Mapping[str, Any]) -> ExecAttachment:
            starts = fields.table(reply, "offsets")
            at = {c: fields.integer(starts, str(c), 0, high=_LAST_OFFSET) for c in (1, 2)}
            pid = fields.integer(reply, "pid")
            tty = fields.flag(reply, "tty")
            return ExecAttachment(self._link, stream, exec_id, pid, tty, at)

        return await self._replied(stream, parse)

    async def list_execs(self) -> Sequence[ExecState]:
        """Return every session that the guest knows, running or ended."""
        return await self._link.call(
            "exec.list", "the list of execs", {}, _parse_list, seconds=DEFAULT_TIMEOUT
        )

    async def signal_exec(self, exec_id: str, number: int, *, everything: bool = False) -> None:
        """Signal the process group, or everything that the exec started. Raises exec_not_found."""
        request = {"id": exec_id, "signal": number, "all": everything}
        await self._link.call(
            "exec.signal", f"exec {exec_id}", request, lambda _: None, seconds=DEFAULT_TIMEOUT
        )

    async def release_exec(self, exec_id: str) -> None:
        """Forget an ended session and what is left of its output. Raises exec_not_found."""
        await self._link.call(
            "exec.release",
            f"exec {exec_id}",
            {"id": exec_id},
            lambda _: None,
            seconds=DEFAULT_TIMEOUT,
        )

    async def _start(self, request: GuestExec, *, attach: bool) -> Stream:
        subject = request.argv[0] if request.argv else f"exec {request.id}"
        return await self._link.open(
            "exec.start", subject, encode_exec(request, attach=attach), seconds=DEFAULT_TIMEOUT
        )

    async def _replied(self, stream: Stream, parse: Callable[[Mapping[str, Any]], T]) -> T:
        try:
            reply = await stream.reply(DEFAULT_TIMEOUT)
            with self._link.strict():
                return parse(reply)
        except BaseException:
            stream.close()
            raise


def encode_exec(request: GuestExec, *, attach: bool) -> dict[str, Any]:
    """Return the fields of `exec.start`. Raises bad_request, bad_path for what cannot be sent."""
    tty = request.tty
    return {
        "id": request.id,
        "argv": [fields.to_bytes(word) for word in request.argv],
        "env": [fields.to_bytes(entry) for entry in request.env],
        "cwd": fields.path_bytes(request.cwd),
        "user": request.user,
        "tty": None if tty is None else {"rows": tty.rows, "cols": tty.cols},
        "stdin": request.stdin,
        "detached": request.detached,
        "main": request.main,
        "init": request.init,
        "overflow": request.overflow,
        "timeout_ms": _milliseconds(request.timeout),
        "kill_after_ms": _milliseconds(request.kill_after),
        "attach": attach,
        "nofile": _NOFILE,
        "stop_signal": request.stop_signal,
    }


def _milliseconds(seconds: float) -> int:
    # A tiny limit must not become 0, which means none.
    return max(1, round(seconds * 1000)) if seconds > 0 else 0


def parse_result(message: Mapping[str, Any]) -> ExecResult:
    """Return how a program ended. Raises GuestProtocolError unless code or signal is given."""
    code = None if message.get("code") is None else fields.integer(message, "code", high=255)
    signal = fields.optional(message, "signal", high=127)
    if (code is None) == (signal is None):
        raise GuestProtocolError("a program ended neither with a code nor with a signal")
    return ExecResult(
        code=code,
        signal=signal,
        timed_out=fields.flag(message, "timed_out"),
        oom=fields.flag(message, "oom"),
        started_ns=fields.integer(message, "started_ns", 0),
        ended_ns=fields.integer(message, "ended_ns", 0),
        cpu_ns=fields.integer(message, "cpu_ns", 0),
    )


def _parse_pid(reply: Mapping[str, Any]) -> int:
    return fields.integer(reply, "pid")


def _parse_list(reply: Mapping[str, Any]) -> list[ExecState]:
    return [_parse_state(row) for row in fields.tables(reply, "execs")]


def _parse_state(row: Mapping[str, Any]) -> ExecState:
    argv = fields.items(row, "argv")
    result = row.get("result")
    return ExecState(
        id=fields.text(row, "id"),
        pid=fields.integer(row, "pid"),
        argv=[fields.to_text(fields.octets({"argv": word}, "argv")) for word in argv],
        user=fields.text(row, "user", ""),
        tty=fields.flag(row, "tty"),
        detached=fields.flag(row, "detached"),
        main=fields.flag(row, "main"),
        running=fields.flag(row, "running"),
        started_ns=fields.integer(row, "started_ns"),
        result=None if result is None else parse_result(fields.table(row, "result")),
        offsets=_parse_offsets(fields.table(row, "offsets")),
    )


def _parse_offsets(kept: Mapping[str, Any]) -> dict[int, tuple[int, int]]:
    offsets = {}
    for channel in (1, 2):
        if str(channel) in kept:
            pair = fields.items(kept, str(channel))
            if len(pair) != 2:
                raise GuestProtocolError("the offsets of a channel are not a pair")
            first, last = (fields.integer({"o": o}, "o", high=_LAST_OFFSET) for o in pair)
            offsets[channel] = (first, last)
    return offsets
