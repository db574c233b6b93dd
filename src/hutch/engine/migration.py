"""The state of a machine's devices and CPUs, out of one QEMU process and into another.

Knows QMP alone. The guest's memory is not part of it: that is a file, and what it takes of another
process is up to whoever starts that. QEMU writes the state into a file that it is handed, and reads
it from a socket: the ways that its jail leaves open and every version knows.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from hutch.engine.failures import os_failure, template_failure
from hutch.engine.qmp import Qmp
from hutch.errors import EngineError, error

STATE_LIMIT = 64 << 20
"""Bytes of a state. The largest seen is 0.3 MB; what QEMU writes is its guest's to say."""
TIMEOUT = 30.0
_POLL = 0.001
_NAME = "state"


class StateFile:
    """A file in memory that a QEMU process can write its state to."""

    def __init__(self, qmp: Qmp, fd: int, number: int) -> None:
        """`number` is what QEMU knows the file `fd` by."""
        self._qmp = qmp
        self._fd = fd
        self._number = number

    @classmethod
    @asynccontextmanager
    async def of(cls, qmp: Qmp) -> "AsyncIterator[StateFile]":
        """Hand a new file to QEMU, for the length of the block. Raises EngineError."""
        try:
            fd = os.memfd_create("hutch-state", os.MFD_CLOEXEC)
        except OSError as cause:
            raise os_failure("a file for the VM's state cannot be made", cause) from cause
        try:
            # QEMU finds no file that is open for reading, too, when it wants one to write to.
            theirs = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                number = await qmp.add_fd(theirs)
            finally:
                os.close(theirs)
            try:
                yield cls(qmp, fd, number)
            finally:
                await qmp.remove_fd(number)
        finally:
            os.close(fd)

    async def save(self) -> None:
        """Have QEMU write the state of a machine that it has stopped.

        Raises EngineError: engine_failed when it refuses or takes too long, sandbox_died.
        """
        # Not `live`: that would take the disks away from the machine, which is to go on.
        where = {"filename": f"/dev/fdset/{self._number}", "live": False}
        await self._qmp.execute("xen-save-devices-state", where, timeout=TIMEOUT)

    def read(self) -> bytes:
        """Return what was written. Blocking. Raises engine_failed."""
        size = os.fstat(self._fd).st_size
        if size > STATE_LIMIT:
            raise error("engine_failed", f"the VM's state is larger than {STATE_LIMIT} bytes")
        state = os.pread(self._fd, size, 0)
        if not state:
            raise error("engine_failed", "QEMU wrote no state of the VM")
        return state


async def save(qmp: Qmp) -> bytes:
    """Stop a machine and return its state. Raises EngineError: engine_failed, sandbox_died."""
    async with StateFile.of(qmp) as file:
        await qmp.execute("stop")
        await file.save()
        return file.read()


async def load(qmp: Qmp, state: bytes) -> None:
    """Give a state to a QEMU process that was started to receive one; it is stopped afterwards.

    Raises EngineError with the detail `template`: what does not load now never will.
    """
    try:
        async with asyncio.timeout(TIMEOUT):
            with _pair() as (ours, theirs):
                await qmp.send_fd(_NAME, theirs.fileno())
                theirs.close()
                await qmp.execute("migrate-incoming", {"uri": f"fd:{_NAME}"})
                await asyncio.get_running_loop().sock_sendall(ours, state)
                ours.shutdown(socket.SHUT_WR)
                status = await _loaded(qmp)
    except TimeoutError:
        raise template_failure(f"the state did not load within {TIMEOUT:g} s") from None
    except OSError as cause:
        raise _gone(f"QEMU does not take the state: {cause.strerror}") from cause
    except EngineError as cause:
        raise (_gone if cause.code == "sandbox_died" else template_failure)(
            cause.message
        ) from cause
    if status != "paused":
        raise template_failure(f"the VM is {status!r} after its state was loaded")


def _gone(message: str) -> EngineError:
    # QEMU ends when a state does not load, and its last words say why.
    return EngineError("sandbox_died", message, details={"template": True})


async def _loaded(qmp: Qmp) -> str:
    """Return the run state once it is no longer that of a process which receives."""
    while True:
        status = await qmp.ask("query-status", "status", str)
        if status != "inmigrate":
            return status
        # QEMU answers nothing while it loads, so this asks again once or twice.
        await asyncio.sleep(_POLL)


@contextmanager
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs
