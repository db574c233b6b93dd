"""Base disks: an empty ext4 file system per size, which every sandbox's writable overlay has as its
backing file.

Made once per size with e2fsprogs, as a sparse file, and never written again.
"""

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hutch import process
from hutch.errors import HutchError, error
from hutch.images.rootfs import disk_full
from hutch.tasks import in_thread

MIN_SIZE = 64 << 20
MAX_SIZE = 16 << 40
_BLOCK = 4096
_MKFS_TIMEOUT = 300.0

# The journal stays: a VM dies by kill -9 as a matter of course, and without one the next start
# would need a full fsck and could still lose files that were written long before. 64-byte group
# descriptors and resize_inode let a running guest grow the disk. Metadata checksums, whose worth is
# in catching bad media, would cost the emulated CPU a crc32c per metadata block.
_FEATURES = "has_journal,extent,64bit,resize_inode,sparse_super2,uninit_bg,^metadata_csum"
# On a file, discarding punches holes, after which mkfs marks the inode tables as zeroed: they take
# no space here, and no guest starts a thread to zero them.
_OPTIONS = "lazy_itable_init=1,lazy_journal_init=1,discard,root_owner=0:0"
_JOURNAL_MIB = 16
_INODE_RATIO = 16384


async def base_disk(home: Path, size: int) -> Path:
    """Return the empty ext4 disk of `size` bytes (a multiple of 4096), made on first use.

    Raises InvalidInput (bad_size), Missing (tool_missing), NoCapacity (disk_full).
    """
    size -= size % _BLOCK
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise error(
            "bad_size",
            f"a disk of {size} bytes cannot be",
            hint=f"choose from {MIN_SIZE >> 20} MiB to {MAX_SIZE >> 40} TiB",
        )
    directory = home / "disks"
    path = directory / f"base-{size}.ext4"
    if await in_thread(path.exists):
        return path
    program = process.require("mkfs.ext4", "e2fsprogs")
    part, lock = await in_thread(_begin, directory, size)
    try:
        await process.run(
            [
                program, "-q", "-F", "-b", str(_BLOCK), "-m", "0", "-i", str(_INODE_RATIO),
                "-L", "hutch", "-J", f"size={_JOURNAL_MIB}",
                "-O", _FEATURES, "-E", _OPTIONS, str(part),
            ],
            timeout=_MKFS_TIMEOUT,
        )  # fmt: skip
        await in_thread(_finish, part, path)
    except HutchError as cause:
        if "No space left" in cause.message:
            raise disk_full(directory) from cause
        raise
    finally:
        part.unlink(missing_ok=True)
        os.close(lock)
    return path


def _begin(directory: Path, size: int) -> tuple[Path, int]:
    """Return a new file and the descriptor whose lock says that somebody is at work on it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _alone(directory):
            for leftover in directory.glob(".new-*"):
                if not _is_locked(leftover):  # its maker was killed
                    leftover.unlink(missing_ok=True)
            fd, name = tempfile.mkstemp(dir=directory, prefix=".new-")
            fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            os.truncate(fd, size)
            os.fchmod(fd, 0o644)
        except BaseException:
            os.close(fd)
            os.unlink(name)
            raise
    except OSError as cause:
        if cause.errno in (errno.ENOSPC, errno.EFBIG):
            raise disk_full(directory) from cause
        raise
    return Path(name), fd


def _finish(part: Path, path: Path) -> None:
    """Put a new disk in its place, unless another has come first.

    That one stays: a template may be based on it already, and no two are of the same content.
    """
    with _alone(path.parent):
        if not path.exists():
            os.replace(part, path)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep others out while a file of this directory has no lock yet."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _is_locked(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
