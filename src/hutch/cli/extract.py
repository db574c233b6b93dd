"""Entries of a hostile archive, written below one directory of this host and nowhere else.

Every directory is entered by descriptor without following symlinks, every file is made new beside
its name and renamed over it. So neither `..`, absolute names, symlinks that the archive makes nor
ones that were there before lead outside.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hutch.cli.escape import escape
from hutch.cli.untar import Entry, EntryType, TarReader
from hutch.errors import HutchError, error

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_ID = (1 << 32) - 2


class Extractor:
    """Writes one archive, whose topmost entry becomes `name` in `directory`."""

    def __init__(
        self,
        directory: str,
        name: str,
        *,
        archive: bool = False,
        count: Callable[[int], None] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare. `archive` keeps owners, setuid bits and, as root, device nodes."""
        self._directory = directory
        self._name = os.fsencode(name)
        self._archive = archive
        self._owner = archive and os.geteuid() == 0
        self._count = count or (lambda _size: None)
        self._warn = warn or (lambda _text: None)
        self._root = -1
        self._made: list[tuple[list[bytes], int, int]] = []  # directories: path, mode, mtime
        self._top: bytes | None = None

    def run(self, reader: TarReader) -> int:
        """Write all entries and return their number.

        Raises ImageError (bad_image) for what an honest archive does not hold, and InvalidInput
        (bad_path) where this host's files stand in the way.
        """
        count = 0
        try:
            self._root = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as cause:
            raise error("bad_path", f"{self._directory}: {cause.strerror}") from cause
        try:
            for entry in reader:
                path = self._place(entry.name)
                try:
                    self._write(entry, path, reader)
                except OSError as cause:
                    raise self._refused(path, cause) from cause
                count += 1
            self._finish_directories()
        finally:
            os.close(self._root)
        return count

    def _refused(self, path: list[bytes], cause: OSError) -> HutchError:
        shown = escape(os.path.join(self._directory, *map(os.fsdecode, path)))
        if cause.errno in (errno.ENOTDIR, errno.ELOOP):
            return error("bad_path", f"{shown}: the way there is a symlink or a file, not followed")
        code = "disk_full" if cause.errno in (errno.ENOSPC, errno.EDQUOT) else "bad_path"
        return error(code, f"{shown}: {cause.strerror}")

    def _place(self, raw: bytes) -> list[bytes]:
        """Return the path of an entry below the root. Raises ImageError (bad_image)."""
        parts = [part for part in raw.rstrip(b"/").split(b"/") if part != b"."]
        if raw.startswith(b"/") or b".." in parts or b"" in parts:
            shown = escape(os.fsdecode(raw[:200]))
            raise error("bad_image", f"the archive from the sandbox names the path {shown!r}")
        if self._top is None:
            self._top = parts[0] if parts else b""
        # A top called "." (the root of the guest) has its children at the first level.
        if self._top and parts[:1] != [self._top]:
            raise error("bad_image", "the archive from the sandbox has more than one top")
        inner = parts[1:] if self._top else parts
        return [self._name, *inner] if self._name != b"." else inner

    @contextmanager
    def _parent(self, path: list[bytes]) -> Iterator[int]:
        """Open the directory that holds `path`, one name at a time."""
        fd = os.dup(self._root)
        try:
            for part in path[:-1]:
                inner = os.open(part, _DIR, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)

    def _write(self, entry: Entry, path: list[bytes], reader: TarReader) -> None:
        if not path:
            return  # the destination itself, which exists
        name = path[-1]
        with self._parent(path) as parent:
            if entry.type is EntryType.DIR:
                self._make_directory(entry, path, parent)
            elif entry.type is EntryType.FILE:
                self._make_file(entry, name, parent, reader)
            elif entry.type is EntryType.SYMLINK:
                temporary = _temporary(name)
                os.symlink(entry.target, temporary, dir_fd=parent)
                self._settle(entry, temporary, name, parent)
            elif entry.type is EntryType.LINK:
                self._make_link(entry, name, parent)
            else:
                self._make_special(entry, name, parent)

    def _make_directory(self, entry: Entry, path: list[bytes], parent: int) -> None:
        try:
            os.mkdir(path[-1], 0o700, dir_fd=parent)
        except FileExistsError:
            os.close(os.open(path[-1], _DIR, dir_fd=parent))  # raises unless it is a directory
            return
        self._made.append((path, self._mode(entry), entry.mtime_ns))
        if self._owner:
            _chown(path[-1], entry, parent)

    def _mode(self, entry: Entry) -> int:
        return entry.mode if self._archive else entry.mode & 0o777

    def _make_file(self, entry: Entry, name: bytes, parent: int, reader: TarReader) -> None:
        temporary = _temporary(name)
        fd = os.open(temporary, _NEW, 0o600, dir_fd=parent)
        try:
            try:
                for piece in reader.data():
                    while len(piece):
                        written = os.write(fd, piece)
                        piece = piece[written:]
                        self._count(written)
                if self._owner:
                    os.chown(fd, _owner_id(entry.uid), _owner_id(entry.gid))
                os.fchmod(fd, self._mode(entry))  # after chown, which drops setuid
                os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            os.unlink(temporary, dir_fd=parent)
            raise

    def _make_link(self, entry: Entry, name: bytes, parent: int) -> None:
        source = self._place(entry.target)
        temporary = _temporary(name)
        with self._parent(source) as holder:
            found = os.stat(source[-1], dir_fd=holder, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                raise error("bad_image", "the archive from the sandbox links to a directory")
            os.link(
                source[-1], temporary, src_dir_fd=holder, dst_dir_fd=parent, follow_symlinks=False
            )
        try:
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            # rename does nothing when both are links to one file already.
            os.unlink(temporary, dir_fd=parent)
        except FileNotFoundError:
            return

    def _make_special(self, entry: Entry, name: bytes, parent: int) -> None:
        device = entry.type is not EntryType.FIFO
        if not self._archive or (device and os.geteuid() != 0):
            self._warn(f"{os.fsdecode(entry.name)}: a {entry.type} node is left out")
            return
        kinds = {EntryType.FIFO: stat.S_IFIFO, EntryType.CHAR: stat.S_IFCHR}
        temporary = _temporary(name)
        number = os.makedev(*entry.device) if device else 0
        kind = kinds.get(entry.type, stat.S_IFBLK)
        os.mknod(temporary, kind | (entry.mode & 0o777), number, dir_fd=parent)
        self._settle(entry, temporary, name, parent)

    def _settle(self, entry: Entry, temporary: bytes, name: bytes, parent: int) -> None:
        """Give a new entry its owner, its time and its name."""
        try:
            if self._owner:
                _chown(temporary, entry, parent)
            times = (entry.mtime_ns, entry.mtime_ns)
            os.utime(temporary, ns=times, dir_fd=parent, follow_symlinks=False)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            os.unlink(temporary, dir_fd=parent)
            raise

    def _finish_directories(self) -> None:
        """Set modes and times, innermost first: a directory may not let us write in it after."""
        for path, mode, mtime in reversed(self._made):
            try:
                with self._parent(path) as parent:
                    fd = os.open(path[-1], _DIR, dir_fd=parent)
            except OSError as cause:
                raise self._refused(path, cause) from cause
            try:
                os.fchmod(fd, mode)
                os.utime(fd, ns=(mtime, mtime))
            finally:
                os.close(fd)


def _temporary(name: bytes) -> bytes:
    # Random, so that an archive cannot hold an entry of that name; short, as names have limits.
    return b"." + name[:100] + b".hutch-" + os.urandom(6).hex().encode()


def _owner_id(number: int) -> int:
    if not 0 <= number <= _MAX_ID:
        raise error("bad_image", f"the archive from the sandbox has the owner {number}")
    return number


def _chown(name: bytes, entry: Entry, parent: int) -> None:
    os.chown(name, _owner_id(entry.uid), _owner_id(entry.gid), dir_fd=parent, follow_symlinks=False)
