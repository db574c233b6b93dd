"""The memory of frozen machines: sealed memfds that their clones map, with copies at rest.

QEMU opens its memory for writing even where it only reads it. The seals are what keeps a clone's
process, whatever its guest has made of it, from writing into the memory of all others; they are set
once the process that filled it is dead. Knows files and descriptors, not machines.
"""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from hutch.engine.base import Frozen
from hutch.engine.failures import os_failure, template_failure
from hutch.errors import error
from hutch.tasks import settle_in_thread

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_SEAL_PATIENCE = 5.0
_SEAL_PAUSE = 0.002
_CHUNK = 16 << 20
_MAGIC = b"hutch-state 1\n"
_DIGEST = hashlib.sha256


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
    while not _sealed(fd):
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


def store(frozen: Frozen, state: bytes, memory: int) -> None:
    """Write both files of a frozen machine, each beside its place, and make them last.

    Blocking. Raises disk_full, engine_failed; leaves neither then.
    """
    try:
        frozen.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(frozen.image, lambda file: copy_sparse(memory, file.fileno(), frozen.memory))
        _write(frozen.state, lambda file: file.write(_MAGIC + _DIGEST(state).digest() + state))
        _sync_directory(frozen.directory)
    except OSError as cause:
        remove(frozen)
        raise os_failure(f"{frozen.directory} cannot be written", cause) from cause


def remove(frozen: Frozen) -> None:
    """Remove both files. The directory stays its owner's."""
    for path in (frozen.state, frozen.image):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    part = path.with_suffix(".part")
    try:
        with open(part, "wb", opener=_private) as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_state(frozen: Frozen) -> bytes:
    """Return the state of a frozen machine. Blocking. Raises engine_failed (`template`)."""
    try:
        data = frozen.state.read_bytes()
    except OSError as cause:
        raise template_failure(f"{frozen.state} cannot be read: {cause.strerror}") from cause
    head = len(_MAGIC) + _DIGEST().digest_size
    if data[:head] != _MAGIC + _DIGEST(data[head:]).digest():
        raise template_failure(f"{frozen.state} is damaged")
    return data[head:]


def copy_sparse(source: int, target: int, size: int) -> None:
    """Copy what is not a hole of `size` bytes into an empty file. Blocking. Raises OSError."""
    os.ftruncate(target, size)
    end = 0
    while True:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError as cause:
            if cause.errno == errno.ENXIO:  # no data is left
                return
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        os.lseek(target, start, os.SEEK_SET)
        while start < end:
            sent = os.sendfile(target, source, start, min(end - start, _CHUNK))
            if sent == 0:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            start += sent


class _Entry:
    """The memory of one frozen machine, or its absence; `lock` is held while it is loaded."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = fd
        self.lock = asyncio.Lock()


class Memories:
    """The sealed memories in use, by directory. Invariant: each descriptor here is sealed.

    After a restart of the daemon they are loaded from disk again, although a clone that lives on
    holds the same memory: its word for what it holds is its guest's by now, and would be believed
    by every later clone.
    """

    def __init__(self) -> None:
        self._entries: dict[Path, _Entry] = {}

    def add(self, frozen: Frozen, fd: int) -> None:
        """Take over the sealed memory of a machine that was frozen just now."""
        self.drop(frozen)
        self._entries[frozen.directory] = _Entry(fd)

    async def of(self, frozen: Frozen) -> int:
        """Return a descriptor of its memory, the caller's to close; loads it if need be, once.

        Raises engine_failed: with `template` when the file is missing or of another size.
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

    def held(self, frozen: Frozen) -> int:
        """Return the bytes of host memory that it takes, 0 when it is not loaded."""
        entry = self._entries.get(frozen.directory)
        if entry is None or entry.fd is None:
            return 0
        return os.fstat(entry.fd).st_blocks * 512


async def _load(frozen: Frozen) -> int:
    fd = create_memory(frozen.memory)
    try:
        await settle_in_thread(_fill, fd, frozen)
        await seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _fill(fd: int, frozen: Frozen) -> None:
    try:
        with open(frozen.image, "rb") as image:
            size = os.fstat(image.fileno()).st_size
            if size != frozen.memory:
                raise template_failure(
                    f"{frozen.image} has {size} bytes instead of {frozen.memory}"
                )
            copy_sparse(image.fileno(), fd, size)
    except OSError as cause:
        raise template_failure(f"{frozen.image} cannot be read: {cause.strerror}") from cause
