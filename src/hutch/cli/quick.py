"""Finding a daemon that runs without the settings module, which costs `hutch exec` 15 ms to import.

Covers the usual case only: a daemon of this version that answers, and a home that no file names.
Everything else is None here and hutch.sdk.start's business; a test holds both to the same answer.
"""

import json
import os

from hutch import __version__
from hutch.errors import HutchError
from hutch.sdk.wire import Connection

LOCK_NAME = "daemon.lock"


def running_daemon(home: str | None) -> Connection | None:
    """Return a connection to the daemon of `home` (None: the default one), or None."""
    home = home or os.environ.get("HUTCH_HOME") or _default_home()
    if home is None:
        return None
    path = _socket_path(os.path.join(home, LOCK_NAME))
    if path is None:
        return None
    try:
        return Connection.connect(path)
    except HutchError:
        return None  # stale, or somebody else's: to be looked into with care, and reported


def _default_home() -> str | None:
    """Return the home that hutch.settings has as its default, None where a file may name one."""
    get = os.environ.get
    root = os.geteuid() == 0
    user = get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    config = "/etc/hutch/config.toml" if root else f"{user}/hutch/config.toml"
    if os.path.exists(get("HUTCH_CONFIG") or config):
        return None
    if root:
        return "/var/lib/hutch"
    return os.path.join(get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share"), "hutch")


def _socket_path(lock: str) -> str | None:
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.fstat(fd).st_uid not in (0, os.geteuid()):
            return None
        record = json.loads(os.read(fd, 4096) or b"null")
    except ValueError:
        return None
    finally:
        os.close(fd)
    if not isinstance(record, dict) or record.get("version") != __version__:
        return None
    path = record.get("socket")
    return path if isinstance(path, str) else None
