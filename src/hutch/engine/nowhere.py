"""Where QEMU is, as far as the network goes: in a namespace with nothing in it.

Whoever breaks out of a VM finds no interface, no route and none of the host's abstract sockets.
What QEMU needs of the network it is handed, open. One thread goes there with the first start and
stays: what it starts is there from its first instruction on, without another program in between.
"""

import ctypes
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

_CLONE_NEWNET: Final = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Nowhere:
    """A namespace of its own, of a thread's. On a host that denies it, it is where everybody is."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._denied = False

    def start(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, which starts a process there. Raises what it raises."""
        if self._thread is None and not self._denied:
            self._enter()
        return work() if self._thread is None else self._thread.submit(work).result()

    def _enter(self) -> None:
        thread = ThreadPoolExecutor(1, thread_name_prefix="nowhere")
        try:
            thread.submit(_leave_network).result()
        except OSError as cause:
            thread.shutdown()
            self._denied = True
            log.info("VMs run in the host's network namespace: %s", cause.strerror)
        else:
            self._thread = thread


def _leave_network() -> None:
    """Move the calling thread, and it alone. Raises OSError."""
    if _libc.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


NOWHERE: Final = Nowhere()
"""That of this process: all its VMs share it, and it lives as long as one of them."""
