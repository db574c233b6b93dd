"""The programs of the fake agent: sessions with rings and offsets, and a few commands in memory.

Commands: true, false, echo, cat, sleep, seq, env, pwd, hostname, `head -c N /dev/zero`, and `sh -c`
with commands split by `;`, `exit N` and a trailing `>&2`. Everything else is not found.
"""

import asyncio
import shlex
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from hutch.guest.fake_files import FakeError, FakeFiles
from hutch.guest.frames import WINDOW

_HARMLESS: Final = frozenset({0, 17, 18, 28})
_PROGRAMS: Final = frozenset(
    {"true", "false", "echo", "cat", "sleep", "seq", "env", "pwd", "hostname", "head", "sh"}
)


class Sink(Protocol):
    """Where an attached session's output goes: a stream of the fake's connection."""

    def data(self, channel: int, part: bytes) -> None:
        """Send bytes."""

    def gap(self, channel: int, size: int) -> None:
        """Say that bytes were dropped."""

    def end(self, channel: int) -> None:
        """End a channel."""

    def result(self, message: dict[str, Any]) -> None:
        """End the stream well."""

    def error(self, message: dict[str, Any]) -> None:
        """End the stream with an error."""


class Ring:
    """Unacknowledged output of one channel, from offset `first` to `last`."""

    def __init__(self) -> None:
        self.first = 0
        self.kept = bytearray()
        self.ended = False
        self.sent = 0
        self.end_sent = False
        self._flying: deque[list[int]] = deque()
        self.in_flight = 0

    @property
    def last(self) -> int:
        """The offset after the newest byte."""
        return self.first + len(self.kept)

    def trim(self, offset: int) -> None:
        """Forget everything before `offset`."""
        size = max(0, min(offset, self.last) - self.first)
        del self.kept[:size]
        self.first += size

    def rewind(self, offset: int) -> None:
        """Begin to send at `offset`, to a new attachment."""
        self._flying.clear()
        self.in_flight = 0
        self.sent = min(offset, self.last)
        self.end_sent = False

    def take(self) -> bytes:
        """Return the next bytes to send, noting that they fly."""
        start = self.sent - self.first
        part = bytes(self.kept[start : start + min(64 << 10, WINDOW - self.in_flight)])
        if part:
            self._flying.append([self.sent, len(part)])
            self.in_flight += len(part)
            self.sent += len(part)
        return part

    def credit(self, size: int) -> None:
        """Note that `size` sent bytes were consumed, and forget them."""
        self.in_flight -= size
        while size and self._flying:
            run = self._flying[0]
            step = min(size, run[1])
            run[0], run[1], size = run[0] + step, run[1] - step, size - step
            self.trim(run[0])
            if not run[1]:
                self._flying.popleft()


class FakeSession:
    """One program, from its start until it is released."""

    def __init__(self, request: dict[str, Any], pid: int, files: FakeFiles) -> None:
        self.request = request
        self.id: str = request["id"]
        self.pid = pid
        self.files = files
        self.tty = request.get("tty") is not None
        self.size: dict[str, int] | None = request.get("tty")
        self.overflow: str = request.get("overflow", "block")
        self.started_ns = time.time_ns()
        self.result: dict[str, Any] | None = None
        self.signals: list[int] = []
        self.rings = {1: Ring(), 2: Ring()}
        self.sink: Sink | None = None
        self.task: asyncio.Task[None] | None = None
        self._stdin = bytearray()
        self._stdin_ended = not request.get("stdin")
        self._changed = asyncio.Event()
        self.consumed: Callable[[int], None] = lambda size: None

    # ---- the program's side

    async def write(self, channel: int, data: bytes) -> None:
        """Put output into the ring: waits for room, or drops the oldest."""
        ring = self.rings[1 if self.tty else channel]
        while data:
            if self.overflow == "drop":
                ring.trim(ring.last + len(data) - WINDOW)
                room = WINDOW
            else:
                room = WINDOW - len(ring.kept)
            ring.kept += data[:room]
            data = data[room:]
            self.pump()
            if data:
                await self._wait()

    async def read(self) -> bytes:
        """Return the next bytes of stdin, or b"" at its end."""
        while not self._stdin and not self._stdin_ended:
            await self._wait()
        data = bytes(self._stdin)
        self._stdin.clear()
        if data:
            self.consumed(len(data))
        return data

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    # ---- the connection's side

    def feed(self, data: bytes) -> None:
        """Take bytes for stdin."""
        if self._stdin_ended or self.result is not None:
            self.consumed(len(data))
            return
        self._stdin += data
        self._changed.set()

    def feed_end(self) -> None:
        """Take the end of stdin."""
        self._stdin_ended = True
        self._changed.set()

    def credit(self, channel: int, size: int) -> None:
        """Take the acknowledgement of output."""
        self.rings[channel].credit(size)
        self._changed.set()
        self.pump()

    def signal(self, number: int) -> None:
        """Take a signal: the default action of most is to end."""
        if self.result is None and number not in _HARMLESS:
            self.signals.append(number)
            if self.task is not None:
                self.task.cancel()

    def control(self, message: dict[str, Any]) -> None:
        """Take a CONTROL frame."""
        if "signal" in message:
            self.signal(message["signal"])
        if "resize" in message:
            self.size = message["resize"]
        if "overflow" in message:
            self.overflow = message["overflow"]
            self._changed.set()

    def attach(self, sink: Sink, offsets: dict[int, int] | None) -> dict[str, int]:
        """Send output to `sink` from now on; returns the offsets at which it begins."""
        self.detach({"code": "busy", "message": "another client has attached", "errno": None})
        starts = {}
        for channel, ring in self.rings.items():
            at = ring.first if offsets is None else min(offsets.get(channel, 0), ring.last)
            ring.trim(at)
            ring.rewind(at)
            starts[str(channel)] = at
        self.sink = sink
        return starts

    def detach(self, error: dict[str, Any] | None = None) -> None:
        """Send no more; with an error, tell the attached one why."""
        sink, self.sink = self.sink, None
        self.consumed = lambda size: None
        if sink is not None and error is not None:
            sink.error(error)

    def pump(self) -> None:
        """Send what may be sent."""
        sink = self.sink
        if sink is None:
            return
        for channel, ring in self.rings.items():
            while True:
                if ring.sent < ring.first:
                    sink.gap(channel, ring.first - ring.sent)
                    ring.sent = ring.first
                part = ring.take()
                if not part:
                    break
                sink.data(channel, part)
            if ring.ended and ring.sent == ring.last and not ring.end_sent:
                ring.end_sent = True
                if channel == 1 or not self.tty:
                    sink.end(channel)
        if self.result is not None and all(ring.end_sent for ring in self.rings.values()):
            self.sink = None
            sink.result(self.result)

    def finish(self, code: int | None, signal: int | None, *, timed_out: bool) -> None:
        """Note how the program ended."""
        self.result = {
            "code": code,
            "signal": signal,
            "timed_out": timed_out,
            "oom": False,
            "started_ns": self.started_ns,
            "ended_ns": time.time_ns(),
            "cpu_ns": 1_000_000,
        }
        for ring in self.rings.values():
            ring.ended = True
        self.pump()

    def listed(self) -> dict[str, Any]:
        """Return its row in exec.list."""
        return {
            "id": self.id,
            "pid": self.pid,
            "argv": self.request["argv"],
            "user": self.request.get("user", ""),
            "tty": self.tty,
            "detached": bool(self.request.get("detached")),
            "main": bool(self.request.get("main")),
            "running": self.result is None,
            "started_ns": self.started_ns,
            "result": self.result,
            "offsets": {str(c): [ring.first, ring.last] for c, ring in self.rings.items()},
        }


def check_program(request: dict[str, Any], files: FakeFiles) -> None:
    """Raise the ERROR that starting this program gives."""
    if not request.get("argv"):
        raise FakeError("bad_request", "no program")
    user = request.get("user", "")
    if user.split(":")[0] not in ("", "root", "nobody", "www") and not user.split(":")[0].isdigit():
        raise FakeError("no_such_user", f"no user {user}")
    try:
        files.directory(request.get("cwd", b"/"))
    except FakeError as failure:
        raise FakeError("bad_cwd", "no such working directory") from failure
    program = request["argv"][0].decode("utf-8", "surrogateescape")
    if "/" in program and program in files.nodes:
        if not files.nodes[program].mode & 0o111 or files.nodes[program].type == "dir":
            raise FakeError("not_executable", "Permission denied")
    elif program.rpartition("/")[2] not in _PROGRAMS:
        raise FakeError("not_found", "No such file or directory")


async def run_program(session: FakeSession) -> int:
    """Play the session's program; return its exit code."""
    argv = [word.decode("utf-8", "surrogateescape") for word in session.request["argv"]]
    return await _run(session, argv, 1)


async def _run(session: FakeSession, argv: list[str], out: int) -> int:
    name, args = argv[0].rpartition("/")[2], argv[1:]
    if name == "sh":
        return await _shell(session, args)
    if name not in _COMMANDS:
        await session.write(2, f"sh: {name}: not found\n".encode())
        return 127

    async def write(data: bytes) -> None:
        await session.write(out, data)

    return await _COMMANDS[name](session, args, write)


async def _shell(session: FakeSession, args: list[str]) -> int:
    code = 0
    for line in (args[1] if args[:1] == ["-c"] and len(args) > 1 else "").split(";"):
        words = shlex.split(line)
        out = 1
        if words and words[-1] in (">&2", "1>&2"):
            out = 2
            words.pop()
        if words[:1] == ["exit"]:
            return int(words[1]) if len(words) > 1 else code
        if words:
            code = await _run(session, words, out)
    return code


Write = Callable[[bytes], Awaitable[None]]


async def _true(session: FakeSession, args: list[str], write: Write) -> int:
    return 0


async def _false(session: FakeSession, args: list[str], write: Write) -> int:
    return 1


async def _echo(session: FakeSession, args: list[str], write: Write) -> int:
    bare = args[:1] == ["-n"]
    text = " ".join(args[1:] if bare else args) + ("" if bare else "\n")
    await write(text.encode("utf-8", "surrogateescape"))
    return 0


async def _cat(session: FakeSession, args: list[str], write: Write) -> int:
    for path in args:
        try:
            _, data = session.files.read({"path": path})
        except FakeError:
            await session.write(2, f"cat: can't open '{path}': No such file\n".encode())
            return 1
        await write(data)
    while not args and (data := await session.read()):
        await write(data)
    return 0


async def _sleep(session: FakeSession, args: list[str], write: Write) -> int:
    await asyncio.sleep(float(args[0]))
    return 0


async def _seq(session: FakeSession, args: list[str], write: Write) -> int:
    for start in range(1, int(args[-1]) + 1, 1000):
        numbers = range(start, min(start + 1000, int(args[-1]) + 1))
        await write("".join(f"{number}\n" for number in numbers).encode())
    return 0


async def _env(session: FakeSession, args: list[str], write: Write) -> int:
    await write(b"".join(entry + b"\n" for entry in session.request.get("env", [])))
    return 0


async def _pwd(session: FakeSession, args: list[str], write: Write) -> int:
    await write(bytes(session.request.get("cwd", b"/")) + b"\n")
    return 0


async def _hostname(session: FakeSession, args: list[str], write: Write) -> int:
    await write(session.files.nodes["/etc/hostname"].data)
    return 0


async def _head(session: FakeSession, args: list[str], write: Write) -> int:
    left = int(args[1])
    while left:
        size = min(left, 64 << 10)
        await write(bytes(size))
        left -= size
    return 0


_COMMANDS: Final = {
    "true": _true,
    "false": _false,
    "echo": _echo,
    "cat": _cat,
    "sleep": _sleep,
    "seq": _seq,
    "env": _env,
    "pwd": _pwd,
    "hostname": _hostname,
    "head": _head,
}
