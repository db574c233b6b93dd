"""Finding the daemon of a home, and starting it when there is none.

The fast path reads the lock file and connects. Otherwise one starter at a time (a lock of their
own) runs `python -m hutch.api.daemon` and reads from a pipe whether it is ready, or why not. It
blocks, and must stay light to import, as wire.py.
"""

import fcntl
import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hutch import __version__
from hutch.api.runtime import (
    LOCK_NAME,
    LOG_NAME,
    DaemonRecord,
    is_locked,
    read_record,
)
from hutch.errors import HutchError, error, from_json
from hutch.sdk.wire import Connection
from hutch.settings import Settings

START_TIMEOUT = 20.0
"""Seconds in which a daemon must say that it is ready."""
STOP_TIMEOUT = 60.0
"""Seconds in which a daemon must end when asked to; stopping sandboxes may take a while."""
_POLL = 0.01


def ensure_daemon(settings: Settings) -> str:
    """Return the socket's path of a daemon of our version that answers, starting one if needed.

    Raises DaemonError: daemon_unreachable with the reason when it cannot be started, daemon_version
    when one of another version has running sandboxes, forbidden when it is not ours.
    """
    found = _answering(settings)
    if found is not None and found.version == __version__:
        return found.socket
    with _starter(settings):
        found = _answering(settings)  # another starter may have won
        if found is not None and found.version != __version__:
            _retire(settings, found)
            found = None
        return found.socket if found is not None else _start(settings)


def find_daemon(settings: Settings) -> str | None:
    """Return the socket's path when a daemon, of whatever version, answers; else None."""
    found = _answering(settings)
    return None if found is None else found.socket


def stop_daemon(
    settings: Settings, *, stop_sandboxes: bool = False, timeout: float = STOP_TIMEOUT
) -> bool:
    """End the daemon and wait until it is gone; its VMs go on, unless `stop_sandboxes`.

    Returns False when there was none. Raises DaemonError (daemon_unreachable) when it is still
    there after `timeout` seconds.
    """
    found = _answering(settings)
    if found is None:
        return False
    with Connection.connect(found.socket) as connection:
        answer = connection.request(
            "POST", "/v1/daemon/stop", json={"stop_sandboxes": stop_sandboxes}, timeout=timeout
        )
        answer.read()
    lock = settings.home / LOCK_NAME
    if not _wait(lambda: not is_locked(lock), timeout):
        raise error(
            "daemon_unreachable",
            f"the daemon (pid {found.pid}) has not ended within {timeout:g} s",
            hint="look at `hutch daemon logs`",
        )
    return True


def _answering(settings: Settings) -> DaemonRecord | None:
    record = read_record(settings.home / LOCK_NAME)
    if record is None:
        return None
    try:
        Connection.connect(record.socket).close()
    except HutchError as failure:
        if failure.code == "daemon_unreachable":
            return None  # it was killed: its record and its socket are stale
        raise
    return record


def _retire(settings: Settings, found: DaemonRecord) -> None:
    """End an idle daemon of another version. Raises DaemonError (daemon_version) if it is not."""
    with Connection.connect(found.socket) as connection:
        running = int(connection.request("GET", "/v1/daemon", timeout=10).json()["running"])
    if running:
        raise error(
            "daemon_version",
            f"the daemon is of version {found.version}, this is {__version__}, "
            f"and {running} of its sandboxes run",
            hint="stop them, or take them over with `hutch daemon restart`",
            details={"daemon": found.version, "client": __version__, "running": running},
        )
    stop_daemon(settings)


@contextmanager
def _starter(settings: Settings) -> Iterator[None]:
    """Be the only one who starts this home's daemon."""
    try:
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(settings.home / "daemon.start", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as cause:
        raise error(
            "forbidden",
            f"cannot write to {settings.home}: {cause.strerror}",
            hint="set HUTCH_HOME to a directory of your own",
        ) from cause

    def take() -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    try:
        if not _wait(take, START_TIMEOUT + STOP_TIMEOUT):
            raise error(
                "daemon_unreachable", f"another process has been starting {settings.home}'s daemon"
            )
        yield
    finally:
        os.close(fd)


def _start(settings: Settings) -> str:
    """Start a daemon and return its socket once it is ready."""
    argv = [sys.executable, "-m", "hutch.api.daemon", "--detach", "--ready-fd", "1"]
    # A key is for the request that it comes with, not for the daemon to have for all its life.
    own = {name: value for name, value in os.environ.items() if name != "HUTCH_SNAPSHOT_KEY"}
    env = own | {
        "HUTCH_HOME": str(settings.home.absolute()),
        "HUTCH_RUNTIME_DIR": str(settings.runtime_dir.absolute()),
    }
    read, write = os.pipe()
    try:
        # Its stdout is the pipe, and so is its stderr until it is ready: whatever it says while it
        # fails reaches us. posix_spawn, as subprocess costs 5 ms to import.
        pid = os.posix_spawn(
            sys.executable,
            argv,
            env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, write, 1),
                (os.POSIX_SPAWN_DUP2, write, 2),
            ],
            setsid=True,
        )
    except OSError as cause:
        os.close(read)
        raise error("daemon_unreachable", f"cannot start {sys.executable}: {cause}") from cause
    finally:
        os.close(write)
    try:
        said = _read_ready(read)
    finally:
        os.close(read)
        os.waitpid(pid, 0)  # the first of two forks, which ends at once
    return _judge(settings, said)


def _read_ready(fd: int) -> bytes:
    """Return what the daemon says until it is ready, ends, or runs out of time."""
    said = bytearray()
    deadline = time.monotonic() + START_TIMEOUT
    while b'{"ready"' not in said or not said.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            break
        data = os.read(fd, 65536)
        if not data:
            break
        said += data
    return bytes(said)


def _judge(settings: Settings, said: bytes) -> str:
    for line in said.splitlines():
        try:
            body = json.loads(line)
        except ValueError:
            continue
        if isinstance(body, dict) and "ready" in body:
            return str(body["ready"])
        if isinstance(body, dict) and "error" in body:
            raise from_json(body["error"])
    log = settings.home / LOG_NAME
    last = said.decode("utf-8", "replace").strip() or _last_lines(log)
    reason = last.splitlines()[-1] if last else "it said nothing"
    raise error(
        "daemon_unreachable",
        f"the daemon did not start: {reason}",
        hint=f"its log is {log}",
        details={"log": last[-4000:]},
    )


def _last_lines(path: Path, count: int = 10) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-count:])
    except OSError:
        return ""


def _wait(condition: Callable[[], bool], timeout: float) -> bool:
    """Poll a condition that has no event to wait for (a lock); False when time runs out."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True
