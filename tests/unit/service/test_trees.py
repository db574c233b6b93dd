"""What differs between two trees: files as programs see them, found by what was written."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from hutch.errors import error
from hutch.guest.base import FileEntry, FileType
from hutch.service import trees
from hutch.service.trees import Tree, changed_files
from tests.unit.service.world import expect

UPPER = "/proc/self/fd/9/upper"


def file(name: str, size: int = 1, **fields: Any) -> FileEntry:
    return replace(FileEntry(name, FileType.FILE, 0o644, 0, 0, size, 5), **fields)


def folder(name: str, **fields: Any) -> FileEntry:
    return replace(FileEntry(name, FileType.DIR, 0o755, 0, 0, 4096, 5), **fields)


class Files:
    """Listings by path; `asked` are those that were asked for."""

    def __init__(
        self, seen: dict[str, list[FileEntry]], written: dict[str, list[FileEntry]]
    ) -> None:
        disk = FileEntry("9", FileType.SYMLINK, 0o777, 0, 0, 0, 0, target="/mnt/disk")
        other = replace(disk, name="3", target="/dev/null")
        self.listings = {"/proc/self/fd": [other, disk], **seen}
        self.listings |= {f"{UPPER}{path}": entries for path, entries in written.items()}
        self.asked: list[str] = []

    async def list(self, path: str) -> AsyncIterator[FileEntry]:
        self.asked.append(path)
        if path not in self.listings:
            raise error("path_not_found", path)
        for entry in self.listings[path]:
            yield entry


async def compared(before: Files, after: Files) -> list[tuple[str, str]]:
    trees_of = [Tree(files) for files in (before, after)]  # type: ignore[arg-type]
    found, complete = await changed_files(*trees_of)
    assert complete
    return [(each.change, each.path) for each in found]


IMAGE = {"/": [folder("etc"), folder("bin")], "/etc": [file("a"), file("b")], "/bin": [file("sh")]}


async def test_what_is_written_and_what_is_gone() -> None:
    before = Files(IMAGE, {"": []})
    now = {
        "/": [folder("etc"), folder("bin"), folder("new")],
        "/etc": [file("a", 2)],
        "/bin": [file("sh")],
        "/new": [file("x"), folder("deep")],
        "/new/deep": [file("y")],
    }
    gone = file("b", 0, type=FileType.CHAR)
    written = {
        "": [folder("etc"), folder("new")],
        "/etc": [file("a", 2), gone],
        "/new": [file("x"), folder("deep")],
        "/new/deep": [file("y")],
    }
    after = Files(now, written)
    assert await compared(before, after) == [
        ("modified", "/etc/a"),
        ("removed", "/etc/b"),
        ("added", "/new"),
        ("added", "/new/deep"),
        ("added", "/new/deep/y"),
        ("added", "/new/x"),
    ]
    # What nobody wrote to is not gone through.
    assert "/bin" not in after.asked
    assert await compared(after, after) == []
    assert ("added", "/etc/b") in await compared(after, before)


@pytest.mark.parametrize(
    "change",
    [{"mode": 0o600}, {"uid": 1}, {"mtime_ns": 6}, {"size": 2}, {"type": FileType.FIFO}],
)
async def test_what_makes_a_file_another(change: dict[str, Any]) -> None:
    one = Files({"/": [file("f")]}, {"": [file("f")]})
    two = Files({"/": [file("f", **change)]}, {"": [file("f", **change)]})
    assert await compared(one, two) == [("modified", "/f")]


async def test_directories() -> None:
    """The time of one does not count, its mode does; one that takes a file's place is another."""
    one = Files({"/": [folder("d"), file("e")], "/d": [file("x")]}, {"": [folder("d"), file("e")]})
    later = folder("d", mtime_ns=9)
    two = Files(
        {"/": [later, folder("e")], "/d": [file("x")], "/e": []},
        {"": [later, folder("e")], "/d": [file("x")], "/e": []},
    )
    assert await compared(one, two) == [("removed", "/e"), ("added", "/e")]
    three = Files({"/": [folder("d", mode=0o700), file("e")], "/d": [file("x")]}, {"": []})
    assert await compared(one, three) == [("modified", "/d")]


async def test_a_directory_that_was_made_anew_hides_what_the_image_has() -> None:
    one = Files({"/": [folder("etc")], "/etc": [file("a")]}, {"": []})
    two = Files({"/": [folder("etc")], "/etc": []}, {"": [folder("etc")], "/etc": []})
    assert await compared(one, two) == [("removed", "/etc/a")]


async def test_there_is_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Files({"/": []}, {"": []})
    many = [file(str(number)) for number in range(20)]
    two = Files({"/": many}, {"": many})
    monkeypatch.setattr(trees, "CHANGES_MAX", 7)
    found, complete = await changed_files(Tree(one), Tree(two))  # type: ignore[arg-type]
    assert (len(found), complete) == (7, False)
    monkeypatch.setattr(trees, "ENTRIES_MAX", 30)
    await expect("no_capacity", changed_files(Tree(one), Tree(two)))  # type: ignore[arg-type]


async def test_guests_that_cannot_be_asked() -> None:
    one, two = (Files({"/": []}, {"": []}) for _ in range(2))
    two.listings["/proc/self/fd"] = []
    await expect("guest_failed", changed_files(Tree(one), Tree(two)))  # type: ignore[arg-type]

    async def lost(path: str) -> AsyncIterator[FileEntry]:
        raise error("sandbox_died", path)
        yield

    two.list = lost  # type: ignore[method-assign]
    await expect("sandbox_died", changed_files(Tree(one), Tree(two)))  # type: ignore[arg-type]
