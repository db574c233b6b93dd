"""Where `cp` puts what it copies: the rules of container tools, as pure functions.

The kinds of both ends come in, the directory and the name to write under come out. Touches neither
disk nor daemon; files.py asks both.
"""

import posixpath
from dataclasses import dataclass
from enum import StrEnum

from hutch.errors import error


class Kind(StrEnum):
    """What is at a path."""

    MISSING = "missing"
    FILE = "file"
    """Anything that is no directory."""
    DIR = "dir"


@dataclass(frozen=True, slots=True)
class Place:
    """One side of a copy; `sandbox` is None for this host."""

    sandbox: str | None
    path: str

    def __str__(self) -> str:
        return self.path if self.sandbox is None else f"{self.sandbox}:{self.path}"

    @property
    def contents_only(self) -> bool:
        """Tell whether the path ends in `/.`: the contents of a directory, not itself."""
        return self.path == "." or self.path.endswith("/.")

    @property
    def wants_directory(self) -> bool:
        """Tell whether the path is written like a directory's."""
        return self.path.endswith("/") or self.contents_only


@dataclass(frozen=True, slots=True)
class Target:
    """Where the copied entry goes: `name` in `directory`.

    `merges` means that the directory of that name exists already and takes the contents.
    """

    directory: str
    name: str
    merges: bool = False

    @property
    def path(self) -> str:
        """The path of the copied entry."""
        return posixpath.join(self.directory, self.name)


def parse_place(text: str) -> Place:
    """Return a side of a copy from `PATH` or `NAME:PATH`.

    What begins with `/` or `.` is always a path of this host. Paths in a sandbox begin at its
    root. Raises InvalidInput (bad_path).
    """
    name, colon, path = text.partition(":")
    if not colon or text.startswith(("/", ".")) or "/" in name or not name:
        if not text:
            raise error("bad_path", "a path is empty")
        return Place(None, text)
    if "\0" in path:
        raise error("bad_path", f"{text!r}: a path has no NUL")
    return Place(name, path if path.startswith("/") else f"/{path}")


def place_target(source: Place, source_kind: Kind, target: Place, target_kind: Kind) -> Target:
    """Return where `source` goes when it is copied to `target`.

    A trailing `/` demands a directory; `/.` after the source means its contents. Raises NotFound
    (path_not_found) and InvalidInput (bad_path) for what cannot be.
    """
    if source_kind is Kind.MISSING:
        raise error("path_not_found", f"{source}: no such file or directory")
    if source_kind is Kind.FILE and source.wants_directory:
        raise error("bad_path", f"{source}: it is not a directory")
    if target_kind is Kind.FILE:
        if source_kind is Kind.DIR:
            raise error("bad_path", f"{target}: a directory cannot be copied over a file")
        if target.wants_directory:
            raise error("bad_path", f"{target}: it is not a directory")
        return _split(target.path)
    if target_kind is Kind.DIR:
        if source.contents_only:
            return _whole(target.path)
        name = _base(source.path)
        return Target(trimmed(target.path), name) if name else _whole(target.path)
    if source_kind is Kind.FILE and target.wants_directory:
        raise error(
            "path_not_found",
            f"{target}: no such directory",
            hint="make it first, or leave the trailing slash out to name the copy",
        )
    return _split(target.path)


def _whole(path: str) -> Target:
    """Return the target that is a directory which exists."""
    split = _split(path)
    return Target(split.directory, split.name, merges=True)


def _split(path: str) -> Target:
    clean = trimmed(path)
    directory, name = posixpath.split(clean)
    return Target(directory or ".", name or ".")


def _base(path: str) -> str:
    """Return the last name of a path, or an empty text for `/` and the like."""
    name = posixpath.basename(trimmed(path))
    return "" if name in (".", "..") else name


def trimmed(path: str) -> str:
    """Return a path without slashes and `/.` at its end; `..` stays, as it may be a symlink's."""
    while len(path) > 1 and (path.endswith("/") or path.endswith("/.")):
        path = path[:-1] if path.endswith("/") else path[:-2] or "/"
    return path
