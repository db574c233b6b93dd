"""A host for the CLI's tests: sandboxes in memory, but real programs and a real directory of files.

Programs are child processes of the daemon, with pipes or a pseudo-terminal, so that signals, exit
codes, echo and end of file are the kernel's own. `$HUTCH_HOME/guest` is the guest's root directory.
The sandbox `box` always runs. `pattern N` is a program that survives the daemon: its output depends
on the offset only, so that attaching again can be checked to the byte.
"""

import asyncio
import fcntl
import os
import pty
import shutil
import signal
import struct
import subprocess
import tarfile
import termios
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from hutch.api.operations import Channel
from hutch.errors import error
from hutch.guest.base import FileEntry, FileType, Output, OutputEnd
from hutch.models import ExecInfo, ExecOutcome, ExecSpec, SandboxSpec, TtySize
from hutch.settings import Settings
from tests.unit.api.fake_operations import FakeExecs, FakeFileOperations, FakeOperations

WINDOW = 1 << 20
NOW = "2026-01-01T00:00:00.000Z"


def pattern(size: int, start: int = 0) -> bytes:
    """Bytes that differ with their offset, so that loss, doubling and disorder all show."""
    block = bytes(range(251))
    shift = start % 251
    return (block[shift:] + block * (size // 251 + 1))[:size]


class Session:
    """What all programs here share: events for the client, and its window."""

    def __init__(self, exec_id: str, spec: ExecSpec) -> None:
        self.spec = spec
        self.info = ExecInfo(
            exec_id, "sb_box", list(spec.argv), "root", spec.tty is not None, False, True, 1, NOW
        )
        self.offsets: Mapping[int, int] = {1: 0, 2: 0}
        self.sent = {1: 0, 2: 0}
        self.unacked = {1: 0, 2: 0}
        self.acked = asyncio.Event()
        self.cancelled = False

    def ack(self, channel: Channel, size: int) -> None:
        self.unacked[channel] -= size
        assert self.unacked[channel] >= 0, "more was acknowledged than sent"
        self.acked.set()

    async def room(self, channel: int) -> int:
        while self.unacked[channel] >= WINDOW:
            self.acked.clear()
            await self.acked.wait()
        return min(65536, WINDOW - self.unacked[channel])

    def output(self, channel: int, data: bytes) -> Output:
        offset = self.offsets[channel] + self.sent[channel]
        self.sent[channel] += len(data)
        self.unacked[channel] += len(data)
        return Output(Channel(channel), offset, data)

    async def write(self, data: bytes) -> None: ...
    async def close_stdin(self) -> None: ...
    async def signal(self, name: str) -> None: ...
    async def resize(self, size: TtySize) -> None: ...
    async def cancel(self) -> None: ...
    async def close(self, *, detach: bool) -> None: ...


class PatternSession(Session):
    """`pattern N`: the N bytes of `pattern`, from wherever the client wants them."""

    def __init__(self, exec_id: str, spec: ExecSpec, start: int) -> None:
        super().__init__(exec_id, spec)
        self.offsets = {1: start, 2: 0}

    async def __aiter__(self) -> AsyncIterator[Any]:
        at, total = self.offsets[1], int(self.spec.argv[1])
        while at < total:
            size = min(await self.room(1), total - at)
            yield self.output(1, pattern(size, at))
            at += size
        yield OutputEnd(Channel.STDOUT, total)
        yield ExecOutcome(0, 0)


class ProcessSession(Session):
    """A child process."""

    def __init__(self, exec_id: str, spec: ExecSpec, root: Path) -> None:
        super().__init__(exec_id, spec)
        env = os.environ | spec.env
        cwd = root / (spec.workdir or "/").lstrip("/")
        self.master = -1
        self.stdin = -1
        try:
            if spec.tty is not None:
                self.start_tty(spec, env, cwd)
            else:
                self.start_pipes(spec, env, cwd)
        except FileNotFoundError:
            raise error("command_not_found", f"{spec.argv[0]}: not found in box") from None
        except PermissionError:
            raise error("command_not_executable", f"{spec.argv[0]}: not executable") from None
        self.timed_out = False

    def start_tty(self, spec: ExecSpec, env: Mapping[str, str], cwd: Path) -> None:
        assert spec.tty is not None
        if shutil.which(spec.argv[0]) is None:
            raise FileNotFoundError
        self.master, slave = pty.openpty()
        set_size(slave, spec.tty)
        self.child = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *spec.argv],
            stdin=slave, stdout=slave, stderr=slave, env=env, cwd=cwd, preexec_fn=default_signals,  # noqa: PLW1509 - a test
        )  # fmt: skip
        os.close(slave)
        self.readers = {1: self.master}
        self.stdin = self.master

    def start_pipes(self, spec: ExecSpec, env: Mapping[str, str], cwd: Path) -> None:
        self.child = subprocess.Popen(
            spec.argv,
            stdin=subprocess.PIPE if spec.stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=env, cwd=cwd, start_new_session=True, bufsize=0, preexec_fn=default_signals,  # noqa: PLW1509 - a test
        )  # fmt: skip
        assert self.child.stdout is not None
        assert self.child.stderr is not None
        self.readers = {1: self.child.stdout.fileno(), 2: self.child.stderr.fileno()}
        self.stdin = -1 if self.child.stdin is None else self.child.stdin.fileno()

    async def __aiter__(self) -> AsyncIterator[Any]:
        events: asyncio.Queue[Any] = asyncio.Queue(4)
        timeout = self.spec.timeout or None
        async with asyncio.TaskGroup() as group:
            pumps = [group.create_task(self.pump(c, fd, events)) for c, fd in self.readers.items()]
            clock = group.create_task(self.watch(timeout))
            left = len(pumps)
            while left:
                event = await events.get()
                left -= isinstance(event, OutputEnd)
                yield event
            code = await asyncio.to_thread(self.child.wait)
            clock.cancel()
        if self.timed_out:
            yield ExecOutcome(124, None, 15, timed_out=True)
        elif code < 0:
            yield ExecOutcome(128 - code, None, -code)
        else:
            yield ExecOutcome(code, code)

    async def watch(self, timeout: float | None) -> None:
        if timeout is not None:
            await asyncio.sleep(timeout)
            self.timed_out = True
            self.send_signal(signal.SIGTERM)

    async def pump(self, channel: int, fd: int, events: "asyncio.Queue[Any]") -> None:
        while True:
            size = await self.room(channel)
            try:
                data = await asyncio.to_thread(os.read, fd, size)
            except OSError:  # a terminal whose last user is gone
                data = b""
            if not data:
                await events.put(OutputEnd(Channel(channel), self.sent[channel]))
                return
            await events.put(self.output(channel, data))

    async def write(self, data: bytes) -> None:
        while data and self.stdin >= 0:
            try:
                data = data[await asyncio.to_thread(os.write, self.stdin, data) :]
            except BrokenPipeError:
                return

    async def close_stdin(self) -> None:
        if self.master >= 0:
            await self.write(b"\x04")
        elif self.child.stdin is not None:
            self.child.stdin.close()
            self.stdin = -1

    def send_signal(self, number: int) -> None:
        if self.child.poll() is None:
            group = self.child.pid
            if self.master >= 0:
                raw = fcntl.ioctl(self.master, termios.TIOCGPGRP, bytes(4))
                group = struct.unpack("i", raw)[0] or group
            os.killpg(group, number)

    async def signal(self, name: str) -> None:
        self.send_signal(signal.Signals[f"SIG{name.removeprefix('SIG')}"])

    async def resize(self, size: TtySize) -> None:
        if self.master >= 0:
            set_size(self.master, size)

    async def cancel(self) -> None:
        self.cancelled = True
        self.send_signal(signal.SIGKILL)

    async def close(self, *, detach: bool) -> None:
        if not detach and self.child.poll() is None:
            self.send_signal(signal.SIGKILL)


def default_signals() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which the daemon ignores


def set_size(fd: int, size: TtySize) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.cols, 0, 0))


class LocalExecs(FakeExecs):
    """Real programs."""

    def __init__(self, owner: "LocalOperations") -> None:
        super().__init__(owner)
        self.local = owner
        self.count = 0

    def open(self, spec: ExecSpec, exec_id: str | None = None, start: int = 0) -> Session:
        self.count += 1
        name = exec_id or f"ex_{os.getpid()}_{self.count}"
        if spec.argv[0] == "pattern":
            return PatternSession(f"pattern-{spec.argv[1]}", spec, start)
        return ProcessSession(name, spec, self.local.root)

    async def start(self, ref: str, spec: ExecSpec) -> Any:
        self.owner.sandboxes.running(ref)
        return self.open(spec)

    async def attach(self, ref: str, exec_id: str, offsets: Mapping[int, int] | None = None) -> Any:
        self.owner.sandboxes.running(ref)
        if exec_id.startswith("pattern-"):
            spec = ExecSpec(["pattern", exec_id.removeprefix("pattern-")])
            return self.open(spec, exec_id, (offsets or {}).get(1, 0))
        return await super().attach(ref, exec_id, offsets)


class LocalFiles:
    """Files below a directory, which stands for the guest's root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    async def stat(self, path: str, *, follow: bool = True) -> FileEntry:
        at = self.at(path)
        try:
            found = at.stat() if follow else at.lstat()
        except (FileNotFoundError, NotADirectoryError):
            raise error("path_not_found", f"box:{path}: no such file or directory") from None
        kinds = {0o10: FileType.FILE, 0o04: FileType.DIR, 0o12: FileType.SYMLINK}
        kind = kinds.get(found.st_mode >> 12, FileType.FIFO)
        target = os.readlink(at) if kind is FileType.SYMLINK else None
        return FileEntry(
            at.name, kind, found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_size,
            found.st_mtime_ns, target=target,
        )  # fmt: skip

    async def mkdir(self, path: str, *, mode: int, parents: bool, **owner: Any) -> None:
        self.at(path).mkdir(parents=parents, exist_ok=parents)

    async def read_tar(
        self, path: str, *, name: str | None = None, follow: bool = False
    ) -> AsyncIterator[bytes]:
        await self.stat(path, follow=follow)
        hostile = self.at(path)
        if hostile.suffix == ".hostile":  # an archive that the guest has made up
            yield hostile.read_bytes()
            return
        with open(self.root.parent / "out.tar", "w+b") as file:
            with tarfile.open(fileobj=file, mode="w", dereference=follow) as tar:
                tar.add(self.at(path), name or Path(path).name or ".")
            file.seek(0)
            while data := file.read(256 << 10):
                yield data

    async def write_tar(
        self,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        uid: int | None = None,
        gid: int | None = None,
        parents: bool = False,
    ) -> int:
        at = self.at(path)
        if not at.is_dir():
            raise error("path_not_found", f"box:{path}: no such directory")
        with open(self.root.parent / "in.tar", "w+b") as file:
            async for chunk in chunks:
                file.write(chunk)
            file.seek(0)
            with tarfile.open(fileobj=file) as tar:
                members = tar.getmembers()
                for member in members:
                    if uid is not None:
                        member.uid = uid
                # Debian 12's Python knows no filters yet, later ones want one.
                known = hasattr(tarfile, "fully_trusted_filter")
                how: dict[str, Any] = {"filter": "fully_trusted"} if known else {}
                tar.extractall(at, numeric_owner=True, **how)
        return len(members)


class LocalFileOperations(FakeFileOperations):
    """One directory for all sandboxes."""

    def __init__(self, owner: FakeOperations, root: Path) -> None:
        super().__init__(owner)
        self.local = LocalFiles(root)

    async def of(self, ref: str) -> Any:
        self.owner.sandboxes.running(ref)
        return self.local


class LocalOperations(FakeOperations):
    """Operations whose programs and files are real."""

    def __init__(self, home: Path) -> None:
        self.root = home / "guest"
        self.root.mkdir(exist_ok=True)
        super().__init__(str(home))
        self.execs = LocalExecs(self)
        self.files = LocalFileOperations(self, self.root)


@asynccontextmanager
async def open_local_host(settings: Settings) -> AsyncIterator[LocalOperations]:
    """Stand in for hutch.service.host.open_host."""
    async with LocalOperations(settings.home) as operations:
        spec = SandboxSpec("busybox", name="box", idle=True)
        await operations.sandboxes.create(spec, lambda step: None)
        await operations.sandboxes.start("box")
        yield operations
