"""Programs that are Python coroutines, and sessions of them with a real guest's windows."""

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from hutch.api.operations import Channel
from hutch.errors import error
from hutch.guest.base import Output, OutputEnd
from hutch.models import ExecInfo, ExecOutcome, ExecSpec, TtySize
from hutch.tasks import Scope

NOW = "2026-01-01T00:00:00.000Z"
WINDOW = 1 << 20
SIGNALS = {"INT": 2, "TERM": 15, "KILL": 9, "HUP": 1, "QUIT": 3}


def pattern(size: int, start: int = 0) -> bytes:
    """Bytes that differ with their offset, so that loss, doubling and disorder all show."""
    block = bytes(range(251))
    shift = start % 251
    return (block[shift:] + block * (size // 251 + 1))[:size]


class Program:
    """What a fake program sees of its world."""

    def __init__(self, spec: ExecSpec) -> None:
        self.spec = spec
        self.events: deque[Any] = deque()
        self.offsets = {Channel.STDOUT: 0, Channel.STDERR: 0}
        self.unacked = {Channel.STDOUT: 0, Channel.STDERR: 0}
        self.stdin: deque[bytes] = deque()
        self.stdin_held = 0
        self.eof = not spec.stdin
        self.sizes: list[TtySize] = [spec.tty] if spec.tty else []
        self.signals: list[int] = []
        self.changed = asyncio.Condition()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(condition)

    async def touch(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def write(self, data: bytes, channel: Channel = Channel.STDOUT) -> None:
        if self.unacked[channel] + len(data) > WINDOW:
            await self.until(lambda: self.unacked[channel] + len(data) <= WINDOW)
        self.unacked[channel] += len(data)
        self.events.append(Output(channel, self.offsets[channel], data))
        self.offsets[channel] += len(data)
        await self.touch()

    async def read(self) -> bytes:
        await self.until(lambda: bool(self.stdin) or self.eof)
        data = self.stdin.popleft() if self.stdin else b""
        self.stdin_held -= len(data)
        await self.touch()
        return data


async def _run(program: Program) -> int:
    name, *words = program.spec.argv
    handler = PROGRAMS.get(name)
    if handler is None:
        raise AssertionError(name)
    return await handler(program, words) or 0


async def _exit(program: Program, words: list[str]) -> int:
    return int(words[0])


async def _echo(program: Program, words: list[str]) -> int:
    await program.write(" ".join(words).encode() + b"\n")
    return 0


async def _err(program: Program, words: list[str]) -> int:
    await program.write(" ".join(words).encode() + b"\n", Channel.STDERR)
    return 3


async def _cat(program: Program, words: list[str]) -> int:
    while data := await program.read():
        await program.write(data)
    return 0


async def _count(program: Program, words: list[str]) -> int:
    total, digest = 0, hashlib.sha256()
    while data := await program.read():
        total += len(data)
        digest.update(data)
    await program.write(f"{total} {digest.hexdigest()}\n".encode())
    return 0


async def _bytes(program: Program, words: list[str]) -> int:
    left, at = int(words[0]), 0
    whole = pattern(65536 + 251)
    while left:
        size = min(left, 65536)
        await program.write(whole[at % 251 : at % 251 + size])
        left, at = left - size, at + size
    return 0


async def _flood(program: Program, words: list[str]) -> int:
    for _ in range(int(words[0]) // 65536):
        await program.write(b"o" * 65536)
        await program.write(b"e" * 65536, Channel.STDERR)
    return 0


async def _hang(program: Program, words: list[str]) -> int:
    await program.write(b"ready\n")
    await program.until(lambda: bool(program.signals))
    return 128 + program.signals[0]


async def _size(program: Program, words: list[str]) -> int:
    seen = 0
    while True:
        await program.until(lambda at=seen: len(program.sizes) > at or bool(program.signals))
        if program.signals:
            return 128 + program.signals[0]
        size = program.sizes[seen]
        seen += 1
        await program.write(f"{size.rows}x{size.cols}\n".encode())


async def _env(program: Program, words: list[str]) -> int:
    for key, value in sorted(program.spec.env.items()):
        await program.write(f"{key}={value}\n".encode())
    await program.write(f"cwd={program.spec.workdir} user={program.spec.user}\n".encode())
    return 0


PROGRAMS: dict[str, Callable[[Program, list[str]], Awaitable[int]]] = {
    "true": lambda program, words: _exit(program, ["0"]),
    "false": lambda program, words: _exit(program, ["1"]),
    "exit": _exit,
    "echo": _echo,
    "err": _err,
    "cat": _cat,
    "count": _count,
    "bytes": _bytes,
    "flood": _flood,
    "hang": _hang,
    "size": _size,
    "env": _env,
}


class FakeExec:
    """A program under way and what became of it."""

    def __init__(self, exec_id: str, spec: ExecSpec, scope: Scope) -> None:
        self.program = Program(spec)
        self.info = ExecInfo(
            id=exec_id,
            sandbox_id="sb_fake",
            argv=list(spec.argv),
            user=spec.user or "root",
            tty=spec.tty is not None,
            detached=spec.detached,
            running=True,
            pid=100,
            started_at=NOW,
        )
        self.task = scope.start(exec_id, self._live())
        self.cancelled = False
        self.closes: list[bool] = []

    async def _live(self) -> None:
        code = await _run(self.program)
        for channel in (Channel.STDOUT, Channel.STDERR):
            self.program.events.append(OutputEnd(channel, self.program.offsets[channel]))
        await self.finish(code)

    async def finish(self, code: int) -> None:
        signal = code - 128 if code > 128 else None
        outcome = ExecOutcome(code, None if signal else code, signal)
        self.info = replace(self.info, running=False, outcome=outcome)
        self.program.events.append(outcome)
        await self.program.touch()

    async def kill(self) -> None:
        self.cancelled = True
        if self.info.running:
            self.task.cancel()
            await self.finish(137)


class FakeSession:
    """An attachment to a FakeExec."""

    def __init__(self, running: FakeExec) -> None:
        self.running = running
        self.info = running.info
        self.offsets: Mapping[int, int] = {1: 0, 2: 0}

    async def __aiter__(self) -> AsyncIterator[Any]:
        program = self.running.program
        while True:
            if not program.events:
                await program.until(lambda: bool(program.events))
            event = program.events.popleft()
            yield event
            if isinstance(event, ExecOutcome):
                return

    def ack(self, channel: Channel, size: int) -> None:
        self.running.program.unacked[channel] -= size
        assert self.running.program.unacked[channel] >= 0
        self.touching = asyncio.ensure_future(self.running.program.touch())

    async def write(self, data: bytes) -> None:
        program = self.running.program
        await program.until(lambda: program.stdin_held < 65536)
        program.stdin.append(data)
        program.stdin_held += len(data)
        await program.touch()

    async def close_stdin(self) -> None:
        self.running.program.eof = True
        await self.running.program.touch()

    async def signal(self, name: str) -> None:
        short = name.removeprefix("SIG")
        if short not in SIGNALS:
            raise error("bad_request", f"no signal {name!r}")
        self.running.program.signals.append(SIGNALS[short])
        await self.running.program.touch()

    async def resize(self, size: TtySize) -> None:
        self.running.program.sizes.append(size)
        await self.running.program.touch()

    async def cancel(self) -> None:
        await self.running.kill()

    async def close(self, *, detach: bool) -> None:
        self.running.closes.append(detach)
        await self.running.program.touch()
