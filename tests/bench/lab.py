"""Where the benchmark runs: a home of its own, the real command and daemon, and looks at processes.

Homes, daemon and clean-up are the test harness's, so that a benchmark too proves that nothing
remains.
"""

import asyncio
import compileall
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import hutch
from hutch.engine.base import BootFiles
from hutch.engine.qemu import QemuEngine
from hutch.models import SandboxInfo, SandboxSpec
from hutch.process import ProcessId
from hutch.sdk import AsyncClient, AsyncSandbox
from hutch.settings import Settings, load_settings
from tests.bench.agent import AgentClient
from tests.bench.bare import Recipe
from tests.harness.hutch import COMMAND, Hutch
from tests.harness.stores import SharedStore

T = TypeVar("T")

IMAGE = "busybox"
_SAMPLE_PAUSE = 0.02


@dataclass(frozen=True, slots=True)
class Usage:
    """What a finished process used: seconds, and its largest resident size in bytes."""

    wall: float
    cpu: float
    peak: int


class Session:
    """One connected client, and the loop it lives on: what a program that uses the SDK has."""

    def __init__(self, runner: asyncio.Runner, client: AsyncClient) -> None:
        self._runner = runner
        self._client = client

    def __call__(self, call: Callable[[AsyncClient], Awaitable[T]]) -> T:
        """Run something with the client."""

        async def run() -> T:
            return await call(self._client)

        return self._runner.run(run())


@dataclass(frozen=True, slots=True)
class Lab:
    """The surroundings of all parts of the benchmark."""

    hutch: Hutch
    store: SharedStore
    settings: Settings
    quick: bool

    def rounds(self, full: int, quick: int) -> int:
        """Return how many samples to take."""
        return quick if self.quick else full

    # ---- the daemon's side

    @contextmanager
    def sandbox(self, *, template: bool = False) -> Iterator[SandboxInfo]:
        """Have an idle sandbox for the length of the block."""
        info = self.with_client(lambda client: client.create(self.spec(template=template)))
        try:
            yield info
        finally:
            self.with_client(lambda client: client.remove(info.id, force=True))

    def spec(self, *, template: bool = False) -> SandboxSpec:
        """Return what every sandbox of the benchmark is: busybox, at the default sizes.

        It boots cold unless it is to be the clone of a `template`.
        """
        return SandboxSpec(image=IMAGE, idle=True, template=template)

    def with_client(self, call: Callable[[AsyncClient], Awaitable[T]]) -> T:
        """Run something with a client of this home's daemon."""

        async def run() -> T:
            async with AsyncClient(self.settings) as client:
                return await call(client)

        return asyncio.run(run())

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Have a client for the length of the block, which has its connection already."""
        with asyncio.Runner() as runner:
            client = AsyncClient(self.settings)
            try:
                runner.run(client.info())
                yield Session(runner, client)
            finally:
                runner.run(client.close())

    def put_marker(self, info: SandboxInfo) -> str:
        """Put a program that only this sandbox has into it; return its path.

        It is `true` under a name nobody can guess: who runs it with success has reached this VM.
        """
        path = _marker()

        async def put(client: AsyncClient) -> None:
            box = await AsyncSandbox.connect(info.id, client=client)
            made = await box.commands.run(f"mkdir {Path(path).parent} && ln -s /bin/busybox {path}")
            assert made.exit_code == 0, made
            absent = await box.commands.run(f"test -e {_marker()}")
            assert absent.exit_code == 1, "a marker that was never made is there"

        self.with_client(put)
        return path

    @property
    def daemon(self) -> ProcessId:
        """The daemon's process."""
        found = self.hutch.daemon
        assert found is not None, "no daemon runs"
        return found

    # ---- the bare side

    def recipe(self, like: SandboxInfo) -> Recipe:
        """Return what a bare boot with the sizes of `like` needs."""
        files = BootFiles(self.store.kernel.vmlinux, self.store.kernel.initramfs)
        # From the cache that the daemon has filled, so that the clock rates are equal.
        verdict = asyncio.run(QemuEngine(self.settings).probe(files))
        return Recipe(self.settings, self.store.kernel, self.store.busybox, verdict, like)

    @property
    def accelerator(self) -> str:
        """What the VMs of this run were emulated or virtualised by."""
        files = BootFiles(self.store.kernel.vmlinux, self.store.kernel.initramfs)
        verdict = asyncio.run(QemuEngine(self.settings).probe(files))
        return verdict.accelerator.value

    # ---- processes

    def command(self, *args: str) -> Usage:
        """Run `hutch ARGS`, which must succeed, and return what it used."""
        return measure([str(COMMAND), *args], env=self.hutch.env)


@contextmanager
def laboratory(*, quick: bool) -> Iterator[Lab]:
    """Have a home with a kernel and busybox, and a daemon as soon as something is asked of it."""
    # As in an installation, whatever the caller's environment says of bytecode.
    compileall.compile_dir(Path(hutch.__file__).parent, quiet=1)
    store = SharedStore()
    runtime = Path(tempfile.mkdtemp(prefix="hb-", dir="/tmp"))
    driven = Hutch(store.new_home(), runtime, {})
    settings = load_settings(env=driven.env)
    try:
        yield Lab(driven, store, settings, quick)
    finally:
        try:
            driven.close()
        finally:
            shutil.rmtree(runtime, ignore_errors=True)


def mark(agent: AgentClient) -> str:
    """Put a program that only this bare machine has into it; return its path."""
    path = _marker()
    agent.call("fs.mkdir", path=str(Path(path).parent).encode())
    agent.call("fs.symlink", path=path.encode(), target=b"/bin/busybox")
    return path


def measure(argv: Sequence[str], *, env: dict[str, str] | None = None) -> Usage:
    """Run a command, which must succeed, and return what it used."""
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        child = subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        assert child.returncode == 0, (argv, child.returncode, output.read())
    return Usage(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10)


def resident(pid: int, *, peak: bool = False) -> int:
    """Return a process's resident size in bytes, or the largest it has had; 0 when it is gone."""
    key = "VmHWM:" if peak else "VmRSS:"
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    sizes = [int(line.split()[1]) for line in text.splitlines() if line.startswith(key)]
    return sizes[0] << 10 if sizes else 0


def cpu_seconds(pid: int) -> float:
    """Return the processor time of all threads of a process, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def pause() -> None:
    """Wait for the next look at a process."""
    time.sleep(_SAMPLE_PAUSE)


def _marker() -> str:
    return f"/run/{secrets.token_hex(8)}/true"
