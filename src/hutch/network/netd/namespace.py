"""The network namespace of all TAPs: made, entered and kept by a mount, so that it can be found.

As root it is bound to a path, and stays there whoever dies. Without root it comes with a user
namespace, and is found through the descriptors that the daemon keeps of both.
"""

import ctypes
import logging
import os
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_NEW_USER, _NEW_NET = 0x10000000, 0x40000000
_BIND: Final = 0x1000
_DETACH: Final = 2
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def make(*, user: bool) -> None:
    """Put this process, which must have one thread only, into a new network namespace.

    With `user` it gets a user namespace, too, in which it is root. Raises OSError.
    """
    uid, gid = os.geteuid(), os.getegid()
    _checked(_libc.unshare(_NEW_NET | (_NEW_USER if user else 0)), "no network namespace")
    if user:
        # Bytes, as from here on not even a codec may be there to be loaded: rights to read that
        # were lent to this process end at the user namespace.
        Path("/proc/self/setgroups").write_bytes(b"deny")
        Path("/proc/self/uid_map").write_bytes(b"0 %d 1" % uid)
        Path("/proc/self/gid_map").write_bytes(b"0 %d 1" % gid)


def enter(net: int, user: int | None = None) -> None:
    """Put this process, of one thread, into the namespaces behind descriptors. Raises OSError."""
    if user is not None:
        _checked(_libc.setns(user, _NEW_USER), "the user namespace cannot be entered")
    _checked(_libc.setns(net, _NEW_NET), "the network namespace cannot be entered")


def pin(path: Path) -> None:
    """Keep the network namespace of this process at `path`. Raises OSError."""
    unpin(path)
    path.touch(mode=0o600)
    try:
        _checked(
            _libc.mount(b"/proc/self/ns/net", bytes(path), None, _BIND, None),
            f"the namespace cannot be mounted at {path}",
        )
    except OSError:
        path.unlink()
        raise


def unpin(path: Path) -> None:
    """Undo `pin`; nothing happens when nothing is there. The namespace ends with its last user.

    Raises OSError.
    """
    while pinned(path):
        _checked(_libc.umount2(bytes(path), _DETACH), f"{path} cannot be unmounted")
    path.unlink(missing_ok=True)


def pinned(path: Path) -> bool:
    """Tell whether a namespace is kept at `path`."""
    try:
        # What a namespace's file is of is a file system of its own.
        return os.stat(path).st_dev == os.stat("/proc/self/ns/net").st_dev
    except FileNotFoundError:
        return False
