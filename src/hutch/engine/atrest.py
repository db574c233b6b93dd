"""The files of machines at rest: written, checked, and read into a memory again.

Where another machine's memory is much the same, only what differs is written: the rest are links
to that one's files, which nobody ever changes. So each directory has all that it needs whatever
becomes of the others, and the file system counts who uses what. Knows files and descriptors, not
machines. Blocking throughout.
"""

import contextlib
import functools
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Final

from hutch.engine.base import Frozen
from hutch.engine.differences import (
    FILES_MAX,
    PAGE,
    Extents,
    copy_sparse,
    differing,
    digest_of_parts,
    extents,
    length_of,
)
from hutch.engine.failures import os_failure, template_failure
from hutch.errors import HutchError

_WHOLE: Final = b"hutch-state 2\n"
_PARTLY: Final = b"hutch-state 3\n"
"""How the state's file begins: the memory is in one file, or over others."""
_LENGTH: Final = struct.Struct(">I")

SMALL: Final = 4 << 20
"""A file with less than this is no ground for others: they have what is in it themselves."""
_WORTH: Final = 0.75
"""The share of a memory from which on all of it is written: others can be over that then."""


@dataclass(frozen=True, slots=True)
class Below:
    """A file that a memory is over: the parts of it that count, and their digest."""

    extents: Extents
    digest: str


@dataclass(frozen=True, slots=True)
class AtRest:
    """What the state's file of a machine says: its state, and what is in the memory's files.

    Without a digest the memory's file is believed as it is, which takes no time. `below` are the
    files that it is over, the lowest first.
    """

    state: bytes
    extents: Extents | None = None
    digest: str | None = None
    below: Sequence[Below] = ()

    def pack(self) -> bytes:
        """Return the file's content."""
        about: dict[str, Any] = {"extents": self.extents, "digest": self.digest}
        if self.below:
            about["below"] = [{"extents": x.extents, "digest": x.digest} for x in self.below]
        text = json.dumps(about).encode()
        body = _LENGTH.pack(len(text)) + text + self.state
        return (_PARTLY if self.below else _WHOLE) + sha256(body).digest() + body

    @classmethod
    def unpack(cls, data: bytes) -> "AtRest":
        """Return what `pack` was given. Raises ValueError for anything else."""
        magic, head = data[: len(_WHOLE)], len(_WHOLE) + sha256().digest_size
        body = data[head:]
        if magic not in (_WHOLE, _PARTLY) or data[:head] != magic + sha256(body).digest():
            raise ValueError("damaged")
        try:
            (length,) = _LENGTH.unpack_from(body)
            about = json.loads(body[_LENGTH.size : _LENGTH.size + length])
            below = tuple(Below(x["extents"], x["digest"]) for x in about.get("below", ()))
            state = body[_LENGTH.size + length :]
            return cls(state, about["extents"], about["digest"], below)
        except (struct.error, KeyError, TypeError, AttributeError) as cause:
            raise ValueError("damaged") from cause


# ---- writing


def store(
    frozen: Frozen,
    state: bytes,
    memory: int,
    *,
    verified: bool = False,
    over: Sequence[Frozen] = (),
    lasting: bool = True,
) -> None:
    """Write the files of a frozen machine, each beside its place, and make them last.

    A `verified` memory is compared with its digest when it is loaded: it is to be kept for long.
    Only such a one is written over the memory of another machine at rest, the first of `over` that
    there is. What is not `lasting` outlives this process; a host that loses its power may lose it,
    which its digests then show. Raises disk_full, engine_failed; leaves nothing then.
    """
    try:
        frozen.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        content, parts = AtRest(state), None
        if verified:
            below, parts = _compared(frozen, memory, over)
            parts = list(extents(memory, frozen.memory)) if parts is None else parts
            content = AtRest(state, parts, digest_of_parts(memory, parts), below)
        _write(
            frozen.image,
            lambda file: copy_sparse(memory, file.fileno(), frozen.memory, parts),
            lasting=lasting,
        )
        _write(frozen.state, lambda file: file.write(content.pack()), lasting=lasting)
        if lasting:
            _sync_directory(frozen.directory)
    except OSError as cause:
        remove(frozen)
        raise os_failure(f"{frozen.directory} cannot be written", cause) from cause


def remove(frozen: Frozen) -> None:
    """Remove all files. The directory stays its owner's."""
    with contextlib.suppress(OSError):
        for path in (frozen.state, frozen.image, *frozen.below()):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _compared(
    frozen: Frozen, memory: int, over: Sequence[Frozen]
) -> tuple[Sequence[Below], Extents | None]:
    """Link the files of another machine that a memory is to be over; return what differs.

    None where it is over none: there is nothing to be used, or too little of it.
    """
    for other in over:
        if other.memory != frozen.memory:
            continue
        with contextlib.suppress(OSError, HutchError):  # it may be removed in this moment
            ground = _ground(other)
            try:
                parts = _over(frozen, memory, ground)
            except BaseException:
                _unlink(frozen)
                raise
            if parts is not None:
                return [below for _, below in ground], parts
            _unlink(frozen)
    return (), None


def _ground(other: Frozen) -> list[tuple[Path, Below]]:
    """Return the files of a machine at rest that others are put over, the lowest first.

    Those that are small are left to be written anew, and so are those that are not twice as large
    as what comes over them: there are never many. Raises OSError, engine_failed.
    """
    content = read_state(other)
    for known in (*(below.extents for below in content.below), content.extents or ()):
        if not _fitting(known, other.memory):  # it may have been imported
            raise template_failure(f"{other.state} cannot be what it is said to be")
    ground = [(other.over(n), below) for n, below in enumerate(content.below, 1)]
    if content.extents is None or content.digest is None:  # as templates are kept
        with _opened(other.image, other.memory) as image:
            parts = list(extents(image, other.memory))
            own = Below(parts, _digest_of(_File.of(image, parts)))
    else:
        own = Below(content.extents, content.digest)
    size, count = length_of(own.extents), len(ground)
    if ground and size < SMALL:
        return ground
    while len(ground) > 1 and length_of(ground[-1][1].extents) < 2 * size:
        size += length_of(ground.pop()[1].extents)
    if len(ground) == count < FILES_MAX:
        ground.append((other.image, own))
    return ground


@dataclass(frozen=True, slots=True)
class _File:
    """Parts of an open file, equal to themselves as long as nobody changes it.

    Which parts of one and the same file hold anything, some file systems tell differently later.
    """

    stamp: tuple[int, int, int]
    parts: tuple[tuple[int, int], ...]
    fd: int = field(compare=False)

    @classmethod
    def of(cls, fd: int, parts: Extents) -> "_File":
        found = os.fstat(fd)
        stamp = (found.st_dev, found.st_ino, found.st_mtime_ns)
        return cls(stamp, tuple((start, length) for start, length in parts), fd)


@functools.lru_cache(maxsize=64)
def _digest_of(file: _File) -> str:
    """Return what is read only once of a file that many are put over. Raises OSError."""
    return digest_of_parts(file.fd, file.parts)


def _over(frozen: Frozen, memory: int, ground: Sequence[tuple[Path, Below]]) -> Extents | None:
    with contextlib.ExitStack() as stack:
        below = []
        for number, (path, what) in enumerate(ground, 1):
            link = frozen.over(number)
            os.link(path, link)
            fd = stack.enter_context(_opened(link, frozen.memory))
            if _digest_of(_File.of(fd, what.extents)) != what.digest:
                return None  # nobody could load it
            below.append((fd, what.extents))
        parts = differing(memory, frozen.memory, below)
    whole = length_of(list(extents(memory, frozen.memory)))
    return parts if length_of(parts) < _WORTH * whole else None


def _unlink(frozen: Frozen) -> None:
    for path in frozen.below():
        path.unlink(missing_ok=True)


def _write(path: Path, fill: Callable[[BinaryIO], object], *, lasting: bool) -> None:
    part = path.with_suffix(".part")
    try:
        with open(part, "wb", opener=_private) as file:
            fill(file)
            file.flush()
            if lasting:
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


# ---- reading


def read_state(frozen: Frozen) -> AtRest:
    """Read the state's file of a frozen machine. Raises engine_failed (`template`)."""
    try:
        return AtRest.unpack(frozen.state.read_bytes())
    except OSError as cause:
        raise template_failure(f"{frozen.state} cannot be read: {cause.strerror}") from cause
    except ValueError as cause:
        raise template_failure(f"{frozen.state} is damaged") from cause


def load(frozen: Frozen, target: int) -> AtRest:
    """Read the memory of a frozen machine into an empty file; returns what its state's file says.

    Raises engine_failed (`template`) for one that is not what it was.
    """
    content = read_state(frozen)
    for number, below in enumerate(content.below, 1):
        _load(frozen.over(number), frozen.memory, target, below.extents, below.digest)
    _load(frozen.image, frozen.memory, target, content.extents, content.digest)
    return content


def _load(path: Path, size: int, target: int, parts: Extents | None, digest: str | None) -> None:
    if parts is not None and not _fitting(parts, size):
        raise template_failure(f"{path} cannot be what it is said to be")
    try:
        with _opened(path, size) as image:
            copy_sparse(image, target, size, parts)
        # Of what was read: the next file may hide some of it.
        if digest is not None and digest_of_parts(target, parts or ()) != digest:
            raise template_failure(f"{path} is damaged")
    except OSError as cause:
        raise template_failure(f"{path} cannot be read: {cause.strerror}") from cause


def _fitting(parts: object, size: int) -> bool:
    """Tell whether these are whole pages of that many bytes, whoever has written them."""
    try:
        return all(
            type(start) is type(length) is int
            and 0 <= start <= size - length
            and length >= 0
            and start % PAGE == length % PAGE == 0
            for start, length in parts  # type: ignore[attr-defined]
        )
    except (TypeError, ValueError):
        return False


@contextlib.contextmanager
def _opened(path: Path, size: int) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        found = os.fstat(fd).st_size
        if found != size:
            raise template_failure(f"{path} has {found} bytes instead of {size}")
        yield fd
    finally:
        os.close(fd)


def join(frozen: Frozen, target: Frozen) -> None:
    """Write a machine at rest once more, with its memory in one file, into a directory that is.

    Raises engine_failed (`template`) for one that is not what it was, disk_full.
    """
    try:
        with open(target.image, "x+b", opener=_private) as file:
            content = load(frozen, file.fileno())
            known = [*(below.extents for below in content.below), content.extents or ()]
            parts = _union(known)
            whole = AtRest(content.state, parts, digest_of_parts(file.fileno(), parts))
        _write(target.state, lambda file: file.write(whole.pack()), lasting=False)
    except OSError as cause:
        raise os_failure(f"{target.directory} cannot be written", cause) from cause


def _union(all_parts: Sequence[Extents]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, length in sorted((start, length) for parts in all_parts for start, length in parts):
        if found and start <= sum(found[-1]):
            before, size = found.pop()
            start, length = before, max(before + size, start + length) - before
        found.append((start, length))
    return found
