"""A tree of this host as a tar stream, piece by piece and in constant memory.

Reads files as it goes; a file that shrinks meanwhile is an error, one that grows is cut at the size
it had. Counterpart of extract.py.
"""

import os
import stat
import tarfile
from collections.abc import Callable, Iterator

from hutch.errors import error

PIECE = 1 << 20
_BLOCK = 512
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


class Packer:
    """Makes the archive of one path; iterate `pieces`."""

    def __init__(
        self,
        path: str,
        name: str | None,
        *,
        follow: bool = False,
        count: Callable[[int], None] | None = None,
    ) -> None:
        """Prepare to pack `path`, whose entry is called `name`; None: its contents only.

        `follow` packs what symlinks point to; `count` is told of the bytes of files as they pass.
        """
        self._path = path
        self._name = name
        self._stat = os.stat if follow else os.lstat
        self._follow = follow
        self._count = count or (lambda _size: None)
        self._links: dict[tuple[int, int], str] = {}
        self._above: set[tuple[int, int]] = set()  # directories around the current one

    def pieces(self) -> Iterator[bytes]:
        """Yield the archive. Raises InvalidInput (bad_path) for what cannot be read."""
        try:
            if self._name is None:
                yield from self._children(self._path, "")
            else:
                yield from self._entry(self._path, self._name)
        except OSError as cause:
            raise error("bad_path", f"{cause.filename or self._path}: {cause.strerror}") from cause
        yield bytes(2 * _BLOCK)

    def _entry(self, path: str, name: str) -> Iterator[bytes]:
        found = self._stat(path)
        kind = stat.S_IFMT(found.st_mode)
        if kind not in _TYPES:
            return  # a socket means nothing elsewhere
        info = self._header(path, name, found)
        if info.isdir():
            key = (found.st_dev, found.st_ino)
            if key in self._above:
                raise error("bad_path", f"{path}: its symlinks form a circle")
            yield _encoded(info)
            self._above.add(key)
            yield from self._children(path, name)
            self._above.discard(key)
        elif info.isreg():
            yield from self._file(path, info)
        else:
            yield _encoded(info)

    def _children(self, path: str, name: str) -> Iterator[bytes]:
        for child in sorted(os.listdir(path)):
            inner = f"{name}/{child}" if name else child
            yield from self._entry(os.path.join(path, child), inner)

    def _header(self, path: str, name: str, found: os.stat_result) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type = _TYPES[stat.S_IFMT(found.st_mode)]
        info.mode = stat.S_IMODE(found.st_mode)
        info.uid, info.gid = found.st_uid, found.st_gid
        # As a float, the time would not be exact; pax headers of every file would be the price.
        info.mtime = int(found.st_mtime)
        if info.issym():
            info.linkname = os.readlink(path)
        elif info.isdev() and not info.isfifo():
            info.devmajor, info.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
        elif info.isreg():
            info.size = found.st_size
            if found.st_nlink > 1 and not self._follow:
                first = self._links.setdefault((found.st_dev, found.st_ino), name)
                if first != name:
                    info.type, info.linkname, info.size = tarfile.LNKTYPE, first, 0
        return info

    def _file(self, path: str, info: tarfile.TarInfo) -> Iterator[bytes]:
        with open(path, "rb", buffering=0) as file:
            yield _encoded(info)
            left = info.size
            while left:
                piece = file.read(min(PIECE, left))
                if not piece:
                    raise error("bad_path", f"{path}: it became shorter while it was read")
                left -= len(piece)
                self._count(len(piece))
                yield piece
        if info.size % _BLOCK:
            yield bytes(_BLOCK - info.size % _BLOCK)


def _encoded(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
