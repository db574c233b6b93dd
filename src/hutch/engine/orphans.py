"""Which processes hold a machine's sockets: how an unrecorded QEMU process is found.

A daemon killed in the middle of a boot leaves such a process. It was handed sockets bound in the
machine's own directory, and those name it whatever else is lost.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from hutch.process import ProcessId


def socket_holders(paths: Sequence[Path]) -> list[ProcessId]:
    """Return the processes, less ourselves, that hold a socket listening at one of `paths`.

    Blocking: reads the descriptor table of every process that we may look into.
    """
    inodes = _inodes({os.fspath(path) for path in paths})
    if not inodes:
        return []
    wanted = {f"socket:[{inode}]" for inode in inodes}
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        identity = ProcessId.of(int(entry))
        if identity is not None and _holds(identity.pid, wanted):
            found.append(identity)
    return found


def _inodes(paths: set[str]) -> set[str]:
    found = set()
    with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            # Num RefCount Protocol Flags Type St Inode Path; __SO_ACCEPTCON marks a listening
            # socket.
            fields = line.rstrip("\n").split(maxsplit=7)
            if len(fields) == 8 and fields[7] in paths and int(fields[3], 16) & 0x10000:
                found.add(fields[6])
    return found


def _holds(pid: int, wanted: set[str]) -> bool:
    # PermissionError: not ours, and then not our QEMU either. Other errors: it went away meanwhile.
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{fd}") in wanted:
                    return True
    return False
