"""How urgent the work of a VM's process is: what is made ahead must not slow down what runs.

Only where the daemon may also make it urgent again, as root may. It must not know what a VM is for.
"""

import contextlib
import functools
import os
import resource
from pathlib import Path
from typing import Final

from hutch.process import ProcessId

LOW: Final = 10
"""The niceness of what is made ahead."""

_NORMAL: Final = 0
_CAP_SYS_NICE: Final = 23
_FREE_NICE: Final = 20
"""The soft limit RLIMIT_NICE from which on anybody may set the normal niceness."""


def lower(process: ProcessId) -> None:
    """Let a process's threads give way to others. Nothing happens where that is for good."""
    if _can_raise():
        _set(process, LOW)


def restore(process: ProcessId) -> None:
    """Give a process's threads their normal share again."""
    if _can_raise():
        # Twice: a thread that was just listed may have begun another, as nice as it was.
        _set(process, _NORMAL)
        _set(process, _NORMAL)


def _set(process: ProcessId, nice: int) -> None:
    if not process.alive():
        return
    with contextlib.suppress(OSError):  # it has ended
        for thread in os.listdir(f"/proc/{process.pid}/task"):
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, int(thread), nice)


@functools.cache
def _can_raise() -> bool:
    if resource.getrlimit(resource.RLIMIT_NICE)[0] >= _FREE_NICE and os.geteuid() != 0:
        return True
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_NICE & 1)
    return False
