"""What differs between the files of two moments of one sandbox, as the agents of both tell.

What programs wrote lies in the upper directory of the writable disk, which the agent holds open:
only directories that are in it are gone through, and those that differ there are compared as
programs see them. It must not know how the two are reached.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from hutch.errors import HutchError, error
from hutch.guest.base import FileEntry, FileType, GuestFiles
from hutch.reports import FileChange

T = TypeVar("T")

CHANGES_MAX: Final = 10_000
"""Changes that are told; of more only the first."""

ENTRIES_MAX: Final = 500_000
"""Entries that are looked at on each side: a guest may list any number."""

_OPEN_FILES: Final = "/proc/self/fd"
_DISK: Final = "/mnt/disk"
"""Where the agent has mounted the writable disk before it made it a part of the root."""

Listing = dict[str, FileEntry]
Pair = tuple[Listing | None, Listing | None]


class Tree:
    """The files of one moment."""

    def __init__(self, files: GuestFiles) -> None:
        self._files = files
        self._upper: str | None = None
        self._left = ENTRIES_MAX

    async def open(self) -> None:
        """Find the upper directory. Raises guest_failed."""
        async for entry in self._files.list(_OPEN_FILES):
            if entry.target == _DISK:
                self._upper = f"{_OPEN_FILES}/{entry.name}/upper"
                return
        raise error("guest_failed", "the agent does not tell which files were written")

    async def written(self, path: str) -> Listing | None:
        """Return what was written of a directory, None if nothing."""
        assert self._upper is not None
        return await self._list(self._upper + path)

    async def seen(self, path: str) -> Listing | None:
        """Return a directory as programs see it, None if there is none."""
        return await self._list(path or "/")

    async def _list(self, path: str) -> Listing | None:
        found: Listing = {}
        try:
            async for entry in self._files.list(path):
                self._left -= 1
                if self._left < 0:
                    raise error("no_capacity", f"more than {ENTRIES_MAX} files cannot be compared")
                found[entry.name] = entry
        except HutchError as failure:
            if failure.code in ("path_not_found", "guest_refused"):  # or it is no directory
                return None
            raise
        return found


@dataclass(frozen=True, slots=True)
class _Found:
    """The changes so far."""

    changes: list[FileChange]

    @property
    def full(self) -> bool:
        return len(self.changes) >= CHANGES_MAX

    def add(self, change: str, path: str, entry: FileEntry) -> None:
        if not self.full:
            self.changes.append(FileChange(change, path, entry.type.value, entry.size, entry.mode))


async def changed_files(before: Tree, after: Tree) -> tuple[list[FileChange], bool]:
    """Return what differs, by path, and whether that is all.

    A file counts as the same while type, size, mode, owner and time of its contents are. Raises
    guest_failed, no_capacity, and what losing a guest raises.
    """
    await _both(Tree.open, before, after)
    found = _Found([])
    waiting = [""]
    while waiting and not found.full:
        path = waiting.pop()
        written = await _both(functools.partial(Tree.written, path=path), before, after)
        if written == (None, None):
            continue
        if _alike(written):
            inner = {name for name, entry in (written[0] or {}).items() if _is_dir(entry)}
        else:
            inner = await _compare(path, written, before, after, found)
        waiting += [f"{path}/{name}" for name in inner]
    return sorted(found.changes, key=lambda each: each.path), not found.full


async def _compare(path: str, written: Pair, before: Tree, after: Tree, found: _Found) -> set[str]:
    """Compare a directory as it is seen; return which of those in it are to be gone through."""
    old, new = await _both(functools.partial(Tree.seen, path=path), before, after)
    old, new = old or {}, new or {}
    inner = set()
    for name in sorted(old.keys() | new.keys()):
        here, was, now = f"{path}/{name}", old.get(name), new.get(name)
        if was is None and now is not None:
            await _add_all("added", here, now, after, found)
        elif now is None and was is not None:
            await _add_all("removed", here, was, before, found)
        elif was is not None and now is not None:
            if _is_dir(was) and _is_dir(now):
                if any(name in (side or {}) for side in written):
                    inner.add(name)
            elif _is_dir(was) or _is_dir(now):
                await _add_all("removed", here, was, before, found)
                await _add_all("added", here, now, after, found)
                continue
            if not _same(was, now):
                found.add("modified", here, now)
    return inner


async def _add_all(change: str, path: str, entry: FileEntry, tree: Tree, found: _Found) -> None:
    """Note that a file was added or removed, and all that is in it if it is a directory."""
    waiting = [(path, entry)]
    while waiting and not found.full:
        here, each = waiting.pop()
        found.add(change, here, each)
        if _is_dir(each):
            listing = await tree.seen(here) or {}
            waiting += [(f"{here}/{name}", inner) for name, inner in listing.items()]


def _alike(written: Pair) -> bool:
    one, two = written
    if one is None or two is None or one.keys() != two.keys():
        return False
    return all(
        _same(entry, two[name]) and entry.mtime_ns == two[name].mtime_ns
        for name, entry in one.items()
    )


def _same(one: FileEntry, two: FileEntry) -> bool:
    kept = ("type", "mode", "uid", "gid", "rdev", "target")
    if any(getattr(one, field) != getattr(two, field) for field in kept):
        return False
    # What is in a directory is compared by itself.
    return _is_dir(one) or (one.size, one.mtime_ns) == (two.size, two.mtime_ns)


def _is_dir(entry: FileEntry) -> bool:
    return entry.type is FileType.DIR


async def _both(ask: Callable[[Tree], Awaitable[T]], before: Tree, after: Tree) -> tuple[T, T]:
    """Ask both sides at once."""
    try:
        async with asyncio.TaskGroup() as group:
            one = group.create_task(_coroutine(ask(before)))
            two = group.create_task(_coroutine(ask(after)))
    except BaseExceptionGroup as failures:
        ours, others = failures.split(HutchError)
        if ours is None or others is not None:
            raise
        raise _first(ours) from failures
    return one.result(), two.result()


async def _coroutine(work: Awaitable[T]) -> T:
    return await work


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
