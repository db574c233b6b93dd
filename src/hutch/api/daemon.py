"""The daemon's process: `python -m hutch.api.daemon`, from lock to readiness to a graceful end.

One for each `$HUTCH_HOME`, by a lock that it holds for life. A starter (sdk/start.py) hears through
a pipe that it is ready, or why not; systemd through its own socket. Heavy modules are imported only
once the lock is ours. VMs are not its children to end: they go on without it.
"""

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hutch import __version__
from hutch.api.runtime import (
    LOCK_NAME,
    LOG_NAME,
    SOCKET_NAME,
    DaemonRecord,
    LifeLock,
    make_private,
    read_record,
    socket_directory,
)
from hutch.errors import HutchError, error
from hutch.settings import Settings, load_settings

if TYPE_CHECKING:
    from hutch.api.daemonlog import DaemonLogHandler
    from hutch.api.operations import Operations
    from hutch.api.server import ApiServer

log = logging.getLogger(__name__)

LOCK_TIMEOUT = 15.0
"""Seconds to wait for a predecessor that is ending, or a rival that is starting."""
_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE_BUFFER = 128 << 10
USAGE = "usage: python -m hutch.api.daemon [--detach] [--ready-fd FD]"


@dataclass(frozen=True, slots=True)
class Options:
    """How the process is run: detached from its starter, and where to say that it is ready."""

    detach: bool = False
    ready_fd: int | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon as its command line says; returns the exit code."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    if options is None:
        print(USAGE, file=sys.stderr)
        return 2
    try:
        return run_daemon(load_settings(), options)
    except HutchError as failure:
        _tell(options, {"error": failure.to_json()})
        print(f"hutch daemon: {failure}", file=sys.stderr)
        return failure.exit_code


def _parse(argv: Sequence[str]) -> Options | None:
    options, rest = Options(), list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--detach":
            options = replace(options, detach=True)
        elif word == "--ready-fd" and rest and rest[0].isdigit():
            options = replace(options, ready_fd=int(rest.pop(0)))
        else:
            return None
    return options


def run_daemon(settings: Settings, options: Options | None = None) -> int:
    """Be the daemon of `settings.home` until asked to end.

    When another one already answers there, it is reported as ready, and this returns 0 at once.
    Raises HutchError when it cannot start.
    """
    options = options or Options()
    if options.detach:
        # The second fork: the starter's child ends at once, and the daemon, no leader of its
        # session, can never get a terminal.
        if os.fork():
            os._exit(0)
        os.chdir("/")
    os.umask(0o077)
    directory = socket_directory(settings)
    try:
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = LifeLock(settings.home / LOCK_NAME)
        rival = _acquire(lock, settings.home / LOCK_NAME)
    except OSError as cause:
        raise error("forbidden", f"cannot write to {settings.home}: {cause.strerror}") from cause
    if rival is not None:
        _tell(options, {"ready": rival.socket})
        return 0
    try:
        make_private(directory)
        _serve(replace(settings, runtime_dir=directory), lock, options)
    finally:
        lock.release()
    return 0


def _acquire(lock: LifeLock, path: Path) -> DaemonRecord | None:
    """Take the lock (None), or return the record of the daemon that has it and answers."""
    deadline = time.monotonic() + LOCK_TIMEOUT
    while not lock.acquire():
        record = read_record(path)
        if record is not None and _answers(record.socket):
            return record
        if time.monotonic() > deadline:
            raise error(
                "daemon_unreachable",
                f"another daemon holds {path} and does not answer",
                hint="look at its log, or end the process that `fuser` names for that file",
            )
        time.sleep(0.02)  # flock has no timeout, and its holder no event to wait for
    return None


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(path) == 0


def _return_large_buffers() -> None:
    """Have the C library give large buffers back as they are freed: see mallopt(3).

    glibc would keep up to 32 MiB of them in each thread's arena once one of that size was freed.
    Copies of memories and disks go through such buffers, in threads.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has no mallopt
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BUFFER)


def _take_descriptors() -> None:
    """Have as many descriptors as this process may: each connection to a port takes one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # the system's own limit is below it by now
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _serve(settings: Settings, lock: LifeLock, options: Options) -> None:
    # What is imported and built from here on stays for good: to look through it for garbage, again
    # and again, would be a tenth of the start.
    gc.disable()
    _return_large_buffers()
    _take_descriptors()
    # Here, not above: these cost most of the start, and a process that loses the race needs none.
    from hutch.api.daemonlog import open_log

    handler = open_log(
        settings.home / LOG_NAME, settings.log_size, settings.log_files, settings.log_level
    )
    began = time.monotonic()
    log.info("daemon %s starts, pid %d, home %s", __version__, os.getpid(), settings.home)
    try:
        asyncio.run(_live(settings, lock, options, handler, began))
    except Exception:
        log.exception("the daemon failed")
        raise
    log.info("daemon ended")


async def _live(
    settings: Settings,
    lock: LifeLock,
    options: Options,
    handler: "DaemonLogHandler",
    began: float,
) -> None:
    from hutch.api.app import create_app
    from hutch.api.server import ApiServer, listen
    from hutch.service.host import open_host

    path = settings.runtime_dir / SOCKET_NAME
    loop = asyncio.get_running_loop()
    async with open_host(settings) as host:
        asked = asyncio.Event()
        server = ApiServer(create_app(host, on_stop=asked.set), asked)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        listener = listen(path)

        def ready() -> None:
            gc.freeze()
            gc.enable()
            log.info("daemon ready after %.0f ms", (time.monotonic() - began) * 1000)
            lock.publish(DaemonRecord(os.getpid(), __version__, os.fspath(path)))
            _tell(options, {"ready": os.fspath(path)})
            _tell_systemd("READY=1")
            if options.ready_fd is not None or options.detach:
                handler.take_output()

        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(_stop_when_idle(host, server, settings.idle_exit))
            try:
                await server.run_on(listener, ready)
            finally:
                # New clients wait for our end on the lock, and then start a successor.
                lock.clear()
                path.unlink(missing_ok=True)
                _tell_systemd("STOPPING=1")
                watcher.cancel()


async def _stop_when_idle(host: "Operations", server: "ApiServer", after: float) -> None:
    """End after `after` seconds (0: never) in which nobody was connected and nothing ran."""
    idle_since = time.monotonic()
    while after > 0:
        await asyncio.sleep(max(0.05, idle_since + after - time.monotonic()))
        if server.clients or await _has_work(host):
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since >= after:
            log.info("nothing to do for %g s", after)
            server.stop()
            return


async def _has_work(host: "Operations") -> bool:
    """Tell whether there are VMs, now or soon, or a parked sandbox that needs us.

    Its time may be limited, or somebody may connect to a port of it.
    """
    from hutch.api.operations import SandboxFilter
    from hutch.models import SandboxState

    if (await host.system.info()).running or await host.pools.list():
        return True
    parked = await host.sandboxes.list(SandboxFilter(states=(SandboxState.PARKED,)))
    return any(info.timeout_at or info.ports for info in parked)


def _tell(options: Options, message: dict[str, object]) -> None:
    """Tell the starter, once, through its pipe."""
    if options.ready_fd is not None:
        with contextlib.suppress(OSError):  # it does not wait any more
            os.write(options.ready_fd, json.dumps(message).encode() + b"\n")


def _tell_systemd(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            with contextlib.suppress(OSError):
                notify.sendto(state.encode(), address.replace("@", "\0", 1))


if __name__ == "__main__":
    raise SystemExit(main())
