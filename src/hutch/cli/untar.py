"""A tar stream, entry by entry, in bounded memory whatever the stream says.

The stream comes from a guest and may be hostile: every length is checked before anything is kept.
Reads ustar, pax and GNU long names. Knows nothing of files; extract.py writes them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from hutch.errors import HutchError, error

BLOCK = 512
EXTENSION_LIMIT = 1 << 20
"""The most bytes that an entry's long name or pax header may take."""
PATH_LIMIT = 4096
_SIZE_LIMIT = 1 << 62


class EntryType(StrEnum):
    """The kinds of entries that are told apart."""

    FILE = "file"
    DIR = "dir"
    SYMLINK = "symlink"
    LINK = "link"
    FIFO = "fifo"
    CHAR = "char"
    BLOCK = "block"


_TYPES = {
    b"0": EntryType.FILE,
    b"\0": EntryType.FILE,
    b"7": EntryType.FILE,
    b"1": EntryType.LINK,
    b"2": EntryType.SYMLINK,
    b"3": EntryType.CHAR,
    b"4": EntryType.BLOCK,
    b"5": EntryType.DIR,
    b"6": EntryType.FIFO,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A member of an archive; names are bytes, as the guest has them."""

    type: EntryType
    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: bytes
    device: tuple[int, int]


def _bad(message: str) -> HutchError:
    return error("bad_image", f"the archive from the sandbox is broken: {message}")


class TarReader:
    """Reads entries from pieces of bytes; take an entry's `data` before the next entry."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._buffer = memoryview(b"")
        self._left = 0  # of the current entry's data
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        extended: dict[str, bytes] = {}
        while True:
            self._skip_data()
            header = self._take(BLOCK)
            if header == bytes(BLOCK):
                for _rest in self._pieces:  # to its end, so that the connection stays usable
                    continue
                return
            _check(header)
            kind = header[156:157]
            size = _number(header[124:136])
            if not 0 <= size < _SIZE_LIMIT:
                raise _bad("an entry has an impossible size")
            if kind in b"xgLK" and kind:
                extended |= self._extension(kind, size)
                continue
            if kind not in _TYPES:
                raise _bad(f"an entry is of the unknown type {kind!r}")
            entry = _entry(header, _TYPES[kind], size, extended)
            extended = {}
            self._left = entry.size
            self._padding = -entry.size % BLOCK
            yield entry

    def data(self) -> Iterator[memoryview]:
        """Yield the bytes of the current entry."""
        while self._left:
            self._fill()
            piece = self._buffer[: self._left]
            self._buffer = self._buffer[len(piece) :]
            self._left -= len(piece)
            yield piece

    def _skip_data(self) -> None:
        for _piece in self.data():
            continue
        self._take(self._padding)
        self._padding = 0

    def _fill(self) -> None:
        while not len(self._buffer):
            piece = next(self._pieces, None)
            if piece is None:
                raise _bad("it ends in the middle")
            self._buffer = memoryview(piece)

    def _take(self, size: int) -> bytes:
        out = b""
        while len(out) < size:
            self._fill()
            part = self._buffer[: size - len(out)]
            self._buffer = self._buffer[len(part) :]
            out += bytes(part)
        return out

    def _extension(self, kind: bytes, size: int) -> dict[str, bytes]:
        if size > EXTENSION_LIMIT:
            raise _bad("an entry's header is too long")
        body = self._take(size)
        self._take(-size % BLOCK)
        if kind == b"L":
            return {"path": body.rstrip(b"\0")}
        if kind == b"K":
            return {"linkpath": body.rstrip(b"\0")}
        return _pax(body) if kind == b"x" else {}


def _check(header: bytes) -> None:
    total = sum(header[:148]) + 8 * 32 + sum(header[156:])
    if _number(header[148:156]) != total:
        raise _bad("a checksum is wrong")


def _number(field: bytes) -> int:
    """Return an octal or base-256 number. Raises ImageError (bad_image)."""
    if field[0] & 0x80:
        return int.from_bytes(bytes((field[0] & 0x7F, *field[1:])), "big")
    text = field.strip(b" \0")
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise _bad("a number is none") from None


def _pax(body: bytes) -> dict[str, bytes]:
    out: dict[str, bytes] = {}
    at = 0
    while at < len(body):
        digits, _, _ = body[at : at + 8].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = body[at + len(digits) + 1 : at + length]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n") or at + length > len(body):
            raise _bad("a pax header is malformed")
        out[key.decode("utf-8", "replace")] = value[:-1]
        at += length
    return out


def _decimal(value: bytes, what: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not -(2.0**62) < number < 2.0**62:
        raise _bad(f"the {what} of an entry is no number")
    return number


def _entry(header: bytes, kind: EntryType, size: int, pax: dict[str, bytes]) -> Entry:
    name = header[:100].split(b"\0")[0]
    if header[257:262] == b"ustar" and header[262:263] == b"\0":
        prefix = header[345:500].split(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    name = pax.get("path", name)
    target = pax.get("linkpath", header[157:257].split(b"\0")[0])
    if len(name) > PATH_LIMIT or len(target) > PATH_LIMIT or b"\0" in name + target:
        raise _bad("a name is too long or has a NUL")
    if "size" in pax:
        size = int(_decimal(pax["size"], "size"))
    if kind is not EntryType.FILE:
        size = 0
    mtime = _decimal(pax["mtime"], "time") if "mtime" in pax else _number(header[136:148])
    return Entry(
        type=kind,
        name=name,
        mode=_number(header[100:108]) & 0o7777,
        uid=int(_decimal(pax["uid"], "uid")) if "uid" in pax else _number(header[108:116]),
        gid=int(_decimal(pax["gid"], "gid")) if "gid" in pax else _number(header[116:124]),
        size=max(0, size),
        mtime_ns=min(max(0, int(mtime * 10**9)), 1 << 62),
        target=target,
        device=(_number(header[329:337]), _number(header[337:345])),
    )
