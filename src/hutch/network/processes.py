"""A process of the network: found or started, watched, and started again when it dies.

It outlives the daemon. The daemon binds its socket and hands it over, so that there is nothing to
wait for; who it is stands in a file beside, so that also one that does not answer can be ended.
Knows nothing of what the process does.
"""

import asyncio
import contextlib
import json
import logging
import os
import resource
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import hutch
from hutch import process
from hutch.errors import HutchError, error
from hutch.network import channel
from hutch.network.channel import Channel, Handler, Values
from hutch.process import Child, ProcessId
from hutch.tasks import Scope, in_thread

log = logging.getLogger(__name__)

NAMESPACE: Final = "ns"
NETD_SOCKET, NETD_ID = "netd.sock", "netd.id"
GATEWAY_SOCKET, GATEWAY_ID = "gateway.sock", "gateway.id"

HELLO_TIME: Final = 20.0
"""Seconds in which a process answers at first: it may have to load its modules from a slow disk."""
FOUND_TIME: Final = 3.0
"""Seconds in which one that runs already answers; then it is killed, and replaced."""
SLOW_TIME: Final = 5.0
"""Seconds after which one that does not answer a call is asked whether it answers at all."""
UP_TIME: Final = 30.0
"""Seconds that a caller waits for a process that is being started."""
END_TIME: Final = 5.0
LOG_LIMIT: Final = 4 << 20
LOG_INTERVAL: Final = 60.0
FILE_LIMIT: Final = 256 << 20
_PAUSES: Final = (0.0, 0.1, 0.5, 2.0, 5.0)
"""Seconds before each new start, if those before failed."""
PATIENCE: Final = 4
"""Failed starts in a row until those who wait are told: one may fail when the host is short of
something for a moment."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a process: its arguments, what it reads, and what it inherits, which is closed
    here then.
    """

    argv: Sequence[str]
    stdin: bytes = b""
    fds: Sequence[int] = ()
    env: Mapping[str, str] = field(default_factory=dict)


Greeting: TypeAlias = tuple[Channel, Values, list[int]]
Met: TypeAlias = Callable[[Channel, Values, list[int]], Awaitable[None]]


def remember(path: Path, identity: ProcessId) -> None:
    """Write down who a process is. Raises OSError."""
    made = path.with_suffix(".new")
    made.write_text(json.dumps([identity.pid, identity.start_time]), "ascii")
    made.replace(path)


def recall(path: Path) -> ProcessId | None:
    """Return who was written down, if he still lives."""
    try:
        pid, start_time = json.loads(path.read_text("ascii"))
        identity = ProcessId(int(pid), int(start_time))
    except (OSError, ValueError, TypeError):
        return None
    return identity if identity.alive() else None


def dismiss(socket: Path, identity: Path) -> None:
    """Ask a process to end that nobody needs; nothing happens when there is none.

    What it is found by goes first: whoever comes now starts another one.
    """
    found = recall(identity)
    socket.unlink(missing_ok=True)
    identity.unlink(missing_ok=True)
    if found is not None:
        found.kill(signal.SIGTERM)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


class Companion:
    """One such process, seen from the daemon.

    `launch` returns what to start, given the descriptor of its listening socket; it may raise
    HutchError. `met` is awaited with each new channel, and what the process answered to `hello`
    (the descriptors are its to close), before anybody else gets the channel; what it raises ends
    the channel. `heir` takes the descriptors of one that is replaced for its version, to close
    them.
    """

    def __init__(
        self,
        name: str,
        socket: Path,
        identity: Path,
        log_file: Path,
        *,
        launch: Callable[[int], Launch],
        met: Met,
        heir: Callable[[list[int]], None] = _close,
        handlers: Mapping[str, Handler] | None = None,
    ) -> None:
        self.name = name
        self._socket = socket
        self._identity = identity
        self._log_file = log_file
        self._launch = launch
        self._met = met
        self._heir = heir
        self._handlers = handlers
        self._channel: Channel | None = None
        self._up = asyncio.Event()
        self._failure: HutchError | None = None
        self._failed = asyncio.Event()
        self._child: Child | None = None
        self._scope = Scope(name)
        self.starts = 0

    @property
    def up(self) -> bool:
        """Tell whether there is a channel to it now."""
        return self._channel is not None and self._channel.open

    def open(self) -> None:
        """Begin to find or start it, and to watch it."""
        self._scope.start("watch", self._watch())

    async def close(self) -> None:
        """Let go of it; it goes on."""
        await self._scope.close()
        await self._drop()
        if self._child is not None:
            # It outlives us by design: keep subprocess from warning about a child that nobody
            # waits for.
            self._child.returncode = self._child.poll() or 0
            self._child = None

    async def end(self) -> None:
        """End it for good, by its own means or without."""
        await self._scope.close()
        found = recall(self._identity)
        near = self._channel if self._channel is not None else await self._connected()
        if near is not None:
            with contextlib.suppress(HutchError):
                await near.call("end", timeout=END_TIME)
            await near.close()
        self._channel = None
        await self._gone(found)
        self._socket.unlink(missing_ok=True)
        self._identity.unlink(missing_ok=True)

    async def channel(self) -> Channel:
        """Return a channel to it, once it is up.

        Raises network_failed, or what `met` raised: after PATIENCE failures, or the first one that
        says network_missing, which will not pass.
        """
        try:
            async with asyncio.timeout(UP_TIME):
                while self._channel is None or not self._channel.open:
                    if self._failure is not None:
                        raise self._failure
                    await self._news()
        except TimeoutError:
            raise error("network_failed", f"{self.name} does not come up") from None
        return self._channel

    async def call(
        self, method: str, values: Values | None = None, fds: Sequence[int] = ()
    ) -> tuple[Values, list[int]]:
        """Have it do something that may be done twice: if it dies meanwhile, its successor does it.

        So it is with one that hangs. Raises network_failed, and what its handler or `met` raised.
        """
        near = await self.channel()
        loop = asyncio.get_running_loop()
        doubt = loop.call_later(SLOW_TIME, lambda: self._scope.start("doubt", self._doubt(near)))
        try:
            return await near.call(method, values, fds)
        except HutchError:
            if near.open:
                raise
        finally:
            doubt.cancel()
        return await (await self.channel()).call(method, values, fds)

    async def _doubt(self, near: Channel) -> None:
        """End the channel to one that hangs; that replaces it."""
        try:
            _, fds = await near.call("hello", timeout=FOUND_TIME)
        except HutchError as cause:
            log.error("%s: %s", self.name, cause.message)
            await near.close()
        else:
            _close(fds)

    async def _news(self) -> None:
        async with Scope(self.name) as scope:
            waits = [scope.start("up", self._up.wait()), scope.start("f", self._failed.wait())]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)

    async def _watch(self) -> None:
        failures = 0
        while True:
            await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
            try:
                near, answer, fds = await self._find() or await self._start()
                try:
                    await self._met(near, answer, fds)
                except BaseException:
                    await near.close()
                    raise
            except (HutchError, OSError) as cause:
                failures += 1
                log.error("%s: %s", self.name, cause)
                failure = cause if isinstance(cause, HutchError) else self._lost(cause)
                if failures >= PATIENCE or failure.code == "network_missing":
                    self._tell(failure)
                continue
            failures = 0
            self._failure = None
            self._failed.clear()
            self._channel = near
            self._up.set()
            await self._until_ended(near)
            self._up.clear()
            log.warning("%s is gone", self.name)
            await self._drop()

    async def _until_ended(self, near: Channel) -> None:
        while near.open:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOG_INTERVAL):
                    await near.ended()
            await in_thread(self._trim)

    def _tell(self, failure: HutchError) -> None:
        self._failure = failure
        self._failed.set()

    def _lost(self, cause: OSError) -> HutchError:
        return error("network_failed", f"{self.name} cannot be started: {cause}")

    async def _drop(self) -> None:
        if self._channel is not None:
            near, self._channel = self._channel, None
            await near.close()

    async def _connected(self) -> Channel | None:
        try:
            return await channel.connect(self._socket, self._handlers, name=self.name)
        except OSError:
            return None

    async def _find(self) -> Greeting | None:
        """Return a channel to the one that runs; one that is of no use to us is ended."""
        near = await self._connected()
        if near is not None:
            try:
                answer, fds = await near.call("hello", timeout=FOUND_TIME)
                if answer.get("version") == hutch.__version__:
                    return near, answer, fds
                self._heir(fds)
                log.info("%s is of version %s, and is replaced", self.name, answer.get("version"))
                # Not told to end, which would be for good: what it keeps is its successor's.
                if (found := recall(self._identity)) is not None:
                    found.kill(signal.SIGTERM)
            except HutchError as cause:
                log.error("%s: %s", self.name, cause.message)
                # One that still listens will not end by itself.
                if near.open and (found := recall(self._identity)) is not None:
                    found.kill()
            except asyncio.CancelledError:
                await near.close()
                raise
            await near.close()
        await self._gone(recall(self._identity))
        return None

    async def _gone(self, identity: ProcessId | None) -> None:
        """Wait until it has ended; kill it when that takes too long."""
        if identity is None and self._child is not None:
            identity = ProcessId.of(self._child.pid)
        if identity is not None:
            try:
                async with asyncio.timeout(END_TIME):
                    await identity.wait()
            except TimeoutError:
                log.warning("%s does not end, and is killed", self.name)
                identity.kill()
                await identity.wait()
        if self._child is not None:
            await in_thread(self._child.wait)
            self._child = None

    async def _start(self) -> Greeting:
        listener = channel.listen(self._socket)
        try:
            launch = self._launch(listener.fileno())
            try:
                self._child = self._spawned(launch, listener.fileno())
            finally:
                _close(launch.fds)
        finally:
            listener.close()
        self.starts += 1
        near = await channel.connect(self._socket, self._handlers, name=self.name)
        try:
            answer, fds = await near.call("hello", timeout=HELLO_TIME)
        except asyncio.CancelledError:
            await near.close()
            raise
        except HutchError as cause:
            await near.close()
            raise error(
                "network_failed",
                f"{self.name} cannot be started: {cause.message}",
                hint=f"{self._log_file} may tell why",
            ) from cause
        return near, answer, fds

    def _spawned(self, launch: Launch, listening: int) -> Child:
        self._log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._trim()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        output = os.open(self._log_file, flags, 0o600)
        reader, writer = os.pipe()
        try:
            os.write(writer, launch.stdin)  # less than a pipe holds
            os.close(writer)
            child = process.spawn(
                launch.argv,
                stdin=reader,
                stdout=output,
                stderr=output,
                env=launch.env,
                cwd="/",
                pass_fds=(listening, *launch.fds),
            )
        finally:
            os.close(output)
            os.close(reader)
        if (identity := ProcessId.of(child.pid)) is not None:
            remember(self._identity, identity)
            with contextlib.suppress(OSError):
                resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))
        return child

    def _trim(self) -> None:
        """Empty the log when it has become long; what was in it is kept, once."""
        with contextlib.suppress(FileNotFoundError):
            if self._log_file.stat().st_size > LOG_LIMIT:
                shutil.copyfile(self._log_file, self._log_file.with_suffix(".1.log"))
                os.truncate(self._log_file, 0)
