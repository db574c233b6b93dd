"""The memory of frozen machines: sealed memfds that their clones map, with copies at rest.

QEMU opens its memory for writing even where it only reads it. The seals are what keeps a clone's
process, whatever its guest has made of it, from writing into the memory of all others; they are set
once the process that filled it is dead. Knows files and descriptors, not machines.
"""

import asyncio
import errno
import fcntl
import functools
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from hutch.engine.atrest import load, read_state, remove, store
from hutch.engine.base import Frozen
from hutch.engine.failures import os_failure
from hutch.errors import error
from hutch.tasks import in_thread, settle_in_thread

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_SEAL_PATIENCE = 5.0
_SEAL_PAUSE = 0.002


def create_memory(size: int) -> int:
    """Return a new memfd of `size` bytes that a QEMU process of any user can open by descriptor."""
    try:
        fd = os.memfd_create("hutch-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as cause:
        raise os_failure("memory cannot be made", cause) from cause
    try:
        os.ftruncate(fd, size)
        # Nobody finds it by a path; a descriptor is what it takes.
        os.fchmod(fd, 0o666)
    except OSError as cause:
        os.close(fd)
        raise os_failure(f"memory of {size} bytes cannot be made", cause) from cause
    return fd


async def seal(fd: int) -> None:
    """Make a memfd unchangeable for ever. Raises engine_failed while someone can write to it."""
    deadline = time.monotonic() + _SEAL_PATIENCE
    while not await settle_in_thread(_sealed, fd):  # which looks at each page
        if time.monotonic() > deadline:
            raise error("engine_failed", "the memory of a VM that has ended is still mapped")
        # A reader of /proc/PID/smaps keeps the mappings of a dead process for a moment.
        await asyncio.sleep(_SEAL_PAUSE)


def _sealed(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as cause:
        if cause.errno != errno.EBUSY:
            raise os_failure("memory cannot be sealed", cause) from cause
        return False
    return True


class _Entry:
    """The memory of one frozen machine, or its absence; `lock` is held while it is loaded.

    `state` is that of a machine that is nowhere else yet; `expected` is done when there is one.
    `read` is the state that was read from disk beside the memory, for the next clones.
    """

    def __init__(self, fd: int | None = None, state: bytes | None = None) -> None:
        self.fd = fd
        self.state = state
        self.read: bytes | None = None
        self.lock = asyncio.Lock()
        self.expected: asyncio.Future[None] | None = None


class Memories:
    """The memories in use, by directory. Invariant: no state is handed out before its memory is
    sealed, and so no guest ever runs in a process that can write to it.

    After a restart of the daemon they are loaded from disk again, although a clone that lives on
    holds the same memory: its word for what it holds is its guest's by now, and would be believed
    by every later clone.
    """

    def __init__(self) -> None:
        self._entries: dict[Path, _Entry] = {}

    def add(self, frozen: Frozen, fd: int, state: bytes | None = None) -> None:
        """Take over the sealed memory of a machine, and its state unless that is on disk."""
        entry, expected = self._entries.get(frozen.directory), None
        if entry is not None:
            expected, entry.expected = entry.expected, None
        self.drop(frozen)
        self._entries[frozen.directory] = _Entry(fd, state)
        if expected is not None:
            expected.set_result(None)

    def expect(self, frozen: Frozen) -> None:
        """Make the memory of a machine that is to be captured. Raises engine_failed."""
        self.drop(frozen)
        entry = self._entries[frozen.directory] = _Entry(create_memory(frozen.memory))
        entry.expected = asyncio.get_running_loop().create_future()

    def expected(self, directory: Path) -> int | None:
        """Return a descriptor of what is expected there, to be filled; None: nothing is."""
        entry = self._entries.get(directory)
        if entry is None or entry.fd is None or entry.expected is None:
            return None
        return os.dup(entry.fd)

    def state(self, frozen: Frozen) -> Callable[[], Awaitable[bytes]]:
        """Return what returns the state of a machine, or of the one that is expected by now.

        Raises engine_failed: with `template` unless it was expected in vain.
        """
        entry = self._entries.get(frozen.directory)
        return functools.partial(self._state, frozen, None if entry is None else entry.expected)

    async def _state(self, frozen: Frozen, expected: "asyncio.Future[None] | None") -> bytes:
        if expected is not None:
            await asyncio.shield(expected)
        entry = self._entries.get(frozen.directory)
        if entry is not None and entry.state is not None:
            return entry.state
        if entry is not None and entry.read is not None:
            return entry.read
        state = (await in_thread(read_state, frozen)).state
        if entry is not None and entry.fd is not None:
            entry.read = state
        return state

    async def keep(
        self, frozen: Frozen, over: Sequence[Frozen] = (), *, lasting: bool = True
    ) -> None:
        """Write a machine to its directory that is only here: see `store`.

        Raises disk_full, engine_failed.
        """
        entry = self._entries.get(frozen.directory, _Entry())
        async with entry.lock:
            if entry.fd is None:
                raise error("engine_failed", f"nothing is held for {frozen.directory}")
            if entry.state is None:
                return
            fd = os.dup(entry.fd)  # it may be dropped meanwhile
            try:
                await settle_in_thread(
                    store, frozen, entry.state, fd, verified=True, over=over, lasting=lasting
                )
            except asyncio.CancelledError:
                remove(frozen)  # the thread may have been done, and is now
                raise
            finally:
                os.close(fd)
            entry.state = None

    def lend(self, frozen: Frozen) -> tuple[bytes, int]:
        """Return the state and a descriptor of the memory of a machine that is only here.

        The descriptor is the caller's to close. Raises engine_failed.
        """
        entry = self._entries.get(frozen.directory)
        if entry is None or entry.fd is None or entry.state is None:
            raise error("engine_failed", f"nothing is held for {frozen.directory}")
        return entry.state, os.dup(entry.fd)

    async def of(self, frozen: Frozen) -> int:
        """Return a descriptor of its memory, the caller's to close; loads it if need be, once.

        One that is expected is empty yet. Raises engine_failed: with `template` when the file is
        missing or of another size.
        """
        entry = self._entries.setdefault(frozen.directory, _Entry())
        async with entry.lock:
            if entry.fd is None:
                fd = await _load(frozen)
                if self._entries.get(frozen.directory) is not entry:
                    return fd  # dropped meanwhile: this caller has the only one
                entry.fd = fd
            return os.dup(entry.fd)

    def drop(self, frozen: Frozen) -> None:
        """Forget a memory; it is freed with its last clone. Idempotent."""
        entry = self._entries.pop(frozen.directory, None)
        if entry is not None and entry.fd is not None:
            os.close(entry.fd)
            entry.fd = None
        if entry is not None and entry.expected is not None:
            entry.expected.set_exception(
                error("engine_failed", "what it was to go on from was not captured")
            )
            entry.expected.exception()  # there may be nobody who waits

    def held(self, frozen: Frozen) -> int:
        """Return the bytes of host memory that it takes, 0 when it is not loaded."""
        entry = self._entries.get(frozen.directory)
        if entry is None or entry.fd is None:
            return 0
        return os.fstat(entry.fd).st_blocks * 512


async def _load(frozen: Frozen) -> int:
    fd = create_memory(frozen.memory)
    try:
        await settle_in_thread(load, frozen, fd)
        await seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd
