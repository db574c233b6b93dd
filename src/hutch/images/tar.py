"""Tar streams, read and written within bounds: ustar, GNU long names, pax with binary xattrs,
base-256 numbers.

The standard library's module takes damage for the end of an archive, loses binary xattrs' bytes on
the way, and is several times slower; a root image must not be made from half a layer. Names are
bytes throughout.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import IO

from hutch.images.compression import Decompressed
from hutch.images.config import bad_image

BLOCK = 512
XATTR = b"SCHILY.xattr."
_EXTENSION_LIMIT = 1 << 20
_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_ID_LIMIT = (1 << 32) - 1
_TIME_LIMIT = (1 << 32) - 1
_OCTAL_ID_LIMIT = 0o7777777
_OCTAL_SIZE_LIMIT = 0o77777777777
_DECIMAL_LIMIT = 20  # digits; bounds what int() may chew on

FILE, HARDLINK, SYMLINK, CHAR, BLOCKDEV, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_KINDS = (FILE, HARDLINK, SYMLINK, CHAR, BLOCKDEV, DIRECTORY, FIFO)
_FILE_ALIASES = (b"\0", b"7")


@dataclass(slots=True)
class Member:
    """One entry: times are whole seconds ≥ 0, `size` that of the content of a file."""

    name: bytes
    kind: bytes
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


def read_members(stream: Decompressed) -> Iterator[Member]:
    """Yield the entries of an archive; the consumer may read a file's content before it asks for
    the next.

    Raises ImageError (bad_image) for anything that is not a whole, sound archive.
    """
    extensions: dict[bytes, bytes] = {}
    while (header := _next_header(stream)) is not None:
        member = _parse(header)
        if member.kind in b"xgLK":
            if not 0 <= member.size <= _EXTENSION_LIMIT:
                raise bad_image(f"a tar header extension of {member.size} bytes")
            body = _exactly(stream, member.size)
            _exactly(stream, -member.size % BLOCK)
            if member.kind == b"x":
                extensions |= _pax(body)
            elif member.kind == b"L":
                extensions[b"path"] = body.partition(b"\0")[0]
            elif member.kind == b"K":
                extensions[b"linkpath"] = body.partition(b"\0")[0]
            continue
        member = _extended(member, extensions)
        extensions = {}
        end = stream.consumed + member.size
        yield member
        left = end - stream.consumed
        _skip(stream, left + -member.size % BLOCK)
    if extensions:
        raise bad_image("a tar archive ends after a header extension")


def _next_header(stream: Decompressed) -> bytes | None:
    header = stream.read(BLOCK)
    if not header:
        return None
    if len(header) < BLOCK:
        raise bad_image("a tar archive ends in the middle of a header")
    if header.count(0) == BLOCK:
        second = stream.read(BLOCK)
        if second.count(0) != len(second):
            raise bad_image("a tar archive has data after an empty block")
        return None
    return header


def _parse(header: bytes) -> Member:
    fields = _FIELDS.unpack(header)
    name, mode, uid, gid, size, mtime, checksum, kind, link, magic, _, _, major, minor, prefix = (
        fields
    )
    if _number(checksum) != sum(header) - sum(checksum) + 8 * 0x20:
        raise bad_image("a tar header has a wrong checksum")
    name = name.partition(b"\0")[0]
    if magic.startswith(b"ustar\0") and (prefix := prefix.partition(b"\0")[0]):
        name = prefix + b"/" + name
    if kind in _FILE_ALIASES:
        kind = FILE
    if kind == FILE and name.endswith(b"/"):
        kind = DIRECTORY  # as archives from before POSIX say it
    device = kind in (CHAR, BLOCKDEV)
    return Member(
        name,
        kind,
        _number(mode) & 0o7777,
        _number(uid),
        _number(gid),
        _number(mtime),
        _number(size),
        link.partition(b"\0")[0],
        _number(major) if device else 0,
        _number(minor) if device else 0,
    )


def _extended(member: Member, extensions: dict[bytes, bytes]) -> Member:
    """Return the member with its extensions applied, and every value checked."""
    for key, value in extensions.items():
        if key == b"path":
            member.name = value
            if member.kind == FILE and value.endswith(b"/"):
                member.kind = DIRECTORY
        elif key == b"linkpath":
            member.link = value
        elif key == b"size":
            member.size = _decimal(value)
        elif key == b"uid":
            member.uid = _decimal(value)
        elif key == b"gid":
            member.gid = _decimal(value)
        elif key == b"mtime":
            member.mtime = _decimal(value)
        elif key.startswith(XATTR):
            member.xattrs[key[len(XATTR) :]] = value
        elif key.startswith(b"GNU.sparse."):
            raise bad_image(
                f"{show_name(member.name)} is a sparse tar entry, which images may not have"
            )
    if member.kind not in _KINDS:
        raise bad_image(f"{show_name(member.name)} is of an unknown tar type {member.kind!r}")
    if member.kind != FILE:
        member.size = 0
    if b"\0" in member.name or b"\0" in member.link:
        raise bad_image(f"{show_name(member.name)} has a NUL byte in its name")
    if not (0 <= member.uid <= _ID_LIMIT and 0 <= member.gid <= _ID_LIMIT):
        raise bad_image(f"{show_name(member.name)} has an owner that cannot be")
    if member.size < 0 or not (0 <= member.major < 1 << 12 and 0 <= member.minor < 1 << 20):
        raise bad_image(f"{show_name(member.name)} has a size or device number that cannot be")
    # File system images hold whole seconds since 1970 in 32 bits.
    member.mtime = min(max(member.mtime, 0), _TIME_LIMIT)
    return member


def _number(text: bytes) -> int:
    if text[0] & 0x80:
        value = int.from_bytes(text, "big", signed=False) & ~(0x80 << 8 * (len(text) - 1))
        return value if text[0] != 0xFF else value - (1 << (8 * len(text) - 1))
    try:
        return int(text.strip(b" \0") or b"0", 8)
    except ValueError as cause:
        raise bad_image(f"a tar header has the number {text!r}") from cause


def _decimal(text: bytes) -> int:
    whole, _, fraction = text.partition(b".")
    if len(whole) > _DECIMAL_LIMIT or not whole.removeprefix(b"-").isdigit():
        raise bad_image(f"a tar header extension has the number {text[:40]!r}")
    if fraction and not fraction.isdigit():
        raise bad_image(f"a tar header extension has the number {text[:40]!r}")
    return int(whole)


def _pax(body: bytes) -> dict[bytes, bytes]:
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + _DECIMAL_LIMIT)
        length = int(body[at:space]) if space > at and body[at:space].isdigit() else 0
        record = body[space + 1 : at + length]
        key, equals, value = record[:-1].partition(b"=")
        if not record.endswith(b"\n") or not equals or at + length > len(body):
            raise bad_image("a tar header extension is malformed")
        records[key] = value
        at += length
    return records


def _exactly(stream: Decompressed, size: int) -> bytes:
    body = stream.read(size)
    if len(body) != size:
        raise bad_image("a tar archive ends in the middle of an entry")
    return body


def _skip(stream: Decompressed, size: int) -> None:
    while size:
        chunk = stream.read(min(size, 256 << 10))
        if not chunk:
            raise bad_image("a tar archive ends in the middle of a file")
        size -= len(chunk)


def show_name(name: bytes) -> str:
    """Return a name for a message."""
    return repr(name.decode(errors="backslashreplace")[:200])


# writing


def header(member: Member) -> bytes:
    """Return the header blocks of an entry, with a pax extension where ustar is too narrow."""
    narrow = len(member.name) <= 100 and len(member.link) <= 100 and not member.xattrs
    if narrow and max(member.uid, member.gid, member.size) <= _OCTAL_ID_LIMIT:
        return _ustar(member)
    records: dict[bytes, bytes] = {XATTR + key: value for key, value in member.xattrs.items()}
    short = replace(member)
    if len(member.name) > 100:
        records[b"path"], short.name = member.name, member.name[:100]
    if len(member.link) > 100:
        records[b"linkpath"], short.link = member.link, member.link[:100]
    for key in ("uid", "gid"):
        if (value := getattr(member, key)) > _OCTAL_ID_LIMIT:
            records[key.encode()] = b"%d" % value
            setattr(short, key, 0)
    if member.size > _OCTAL_SIZE_LIMIT:
        records[b"size"], short.size = b"%d" % member.size, 0
    if not records:
        return _ustar(short)
    body = b"".join(_record(key, value) for key, value in records.items())
    extension = Member(b"pax", b"x", 0o644, size=len(body))
    return _ustar(extension) + body + bytes(-len(body) % BLOCK) + _ustar(short)


def finish(out: IO[bytes]) -> None:
    """Write the end of an archive."""
    out.write(bytes(2 * BLOCK))


def padding(size: int) -> bytes:
    """Return the zeros that follow `size` bytes of content."""
    return bytes(-size % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _ustar(member: Member) -> bytes:
    device = b"%07o\0%07o\0" % (member.major, member.minor)
    block = b"".join(
        (
            member.name.ljust(100, b"\0"),
            b"%07o\0%07o\0%07o\0" % (member.mode, member.uid, member.gid),
            b"%011o\0%011o\0" % (member.size, min(member.mtime, _OCTAL_SIZE_LIMIT)),
            b"        ",
            member.kind,
            member.link.ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(64),
            device,
        )
    ).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
