"""Where a daemon lives: its runtime directory, its socket, the lock that it holds for life.

Shared by the daemon and by those who look for it (sdk/start.py), so it must stay light to import.
There is one daemon for each `$HUTCH_HOME`; the lock file there says who it is.
"""

import fcntl
import hashlib
import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from hutch.errors import error
from hutch.settings import Settings

SOCKET_PATH_LIMIT = 100
"""Bytes that a socket's path may have (the kernel's limit is 107)."""
SOCKET_NAME = "api.sock"
LOCK_NAME = "daemon.lock"
LOG_NAME = "daemon.log"


@dataclass(frozen=True, slots=True)
class DaemonRecord:
    """What a daemon that is ready writes into its lock file."""

    pid: int
    version: str
    socket: str


def socket_directory(settings: Settings) -> Path:
    """Return the runtime directory of this home's daemon: the base, and a hash of the home.

    Raises InvalidInput (bad_path) when the paths of sockets in it would be too long.
    """
    home = os.fsencode(settings.home.absolute())
    directory = settings.runtime_dir.absolute() / hashlib.sha256(home).hexdigest()[:12]
    if len(os.fsencode(directory / SOCKET_NAME)) > SOCKET_PATH_LIMIT:
        raise error(
            "bad_path",
            f"the runtime directory {settings.runtime_dir} is too long for sockets "
            f"({SOCKET_PATH_LIMIT} bytes with their names)",
            hint="set HUTCH_RUNTIME_DIR to a shorter one",
        )
    return directory


def make_private(directory: Path) -> None:
    """Make a directory with mode 0700, or make sure that an existing one is ours alone.

    Raises DaemonError (forbidden) when it is a link, another user's, or open to others.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        above = directory.parent.stat()
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
    except OSError as cause:
        raise error("forbidden", f"cannot make {directory}: {cause.strerror}") from cause
    shared = above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX
    if above.st_uid not in (0, os.geteuid()) or shared:
        raise error(
            "forbidden",
            f"other users can replace what is in {directory.parent}",
            hint="remove it, or set HUTCH_RUNTIME_DIR to a directory of your own",
        )
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise error(
            "forbidden",
            f"{directory} is not a directory of the user {os.geteuid()}",
            hint="remove it, or set HUTCH_RUNTIME_DIR to a directory of your own",
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise error(
            "forbidden",
            f"{directory} is open to other users (mode {stat.S_IMODE(found.st_mode):03o})",
            hint=f"chmod 700 {directory}, after a look at what is in it",
        )


class LifeLock:
    """The lock of a home's daemon, held by an open descriptor until the process ends.

    Invariant: the record is in the file only while its daemon accepts connections, or died by a
    signal that gave it no time to clear it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def acquire(self) -> bool:
        """Take the lock without waiting; False when another process has it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        os.ftruncate(fd, 0)
        self._fd = fd
        return True

    def publish(self, record: DaemonRecord) -> None:
        """Say that the daemon is ready, and where."""
        os.pwrite(self._fd, json.dumps(asdict(record)).encode(), 0)

    def clear(self) -> None:
        """Say that the daemon takes no more connections; the lock stays held."""
        os.ftruncate(self._fd, 0)

    def release(self) -> None:
        """Clear the record and let the lock go."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1


def is_locked(path: Path) -> bool:
    """Tell whether a process holds the life lock at `path`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def read_record(path: Path) -> DaemonRecord | None:
    """Return what the lock file at `path` says, or None; its daemon may be dead by now.

    Raises DaemonError (forbidden) for a file of another user than us and root: it could name any
    socket.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise error(
            "forbidden",
            f"{path} cannot be read: {cause.strerror}",
            hint="set HUTCH_HOME to a directory of your own",
        ) from cause
    try:
        owner = os.fstat(fd).st_uid
        if owner not in (0, os.geteuid()):
            raise error(
                "forbidden",
                f"{path} belongs to the user {owner}",
                hint="set HUTCH_HOME to a directory of your own",
            )
        text = os.read(fd, 4096)
    finally:
        os.close(fd)
    try:
        body = json.loads(text)
        return DaemonRecord(int(body["pid"]), str(body["version"]), str(body["socket"]))
    except (ValueError, KeyError, TypeError):
        return None
