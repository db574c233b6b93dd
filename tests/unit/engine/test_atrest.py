"""Machines at rest: what is in their files is what was in the memory, whoever shares them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hutch.engine import atrest
from hutch.engine.atrest import AtRest, Below, join, load, read_state, remove, store
from hutch.engine.base import Frozen
from hutch.engine.differences import extents, length_of
from hutch.engine.memories import create_memory
from hutch.errors import EngineError

SIZE = 64 << 20
PAGE = 4096


@pytest.fixture
def memory() -> Iterator[int]:
    """A memory of a few pages in many holes, and 1 MiB that is in use."""
    fd = create_memory(SIZE)
    for offset, data in {0: b"first", 5 << 20: b"middle", SIZE - PAGE: b"last"}.items():
        os.pwrite(fd, data.ljust(PAGE, b"."), offset)
    os.pwrite(fd, os.urandom(1 << 20), 8 << 20)
    yield fd
    os.close(fd)


@pytest.fixture
def frozen(memory: int, short_tmp: Path) -> Frozen:
    """It at rest, as a template is."""
    frozen = Frozen(short_tmp / "frozen", SIZE)
    store(frozen, b"state", memory)
    return frozen


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files be ground for others from four pages on."""
    monkeypatch.setattr(atrest, "SMALL", 4 * PAGE)


class Line:
    """Moments of one memory that goes on, each kept over the one before."""

    def __init__(self, memory: int, first: Frozen) -> None:
        self.memory = memory
        self.moments = [first]
        self.contents = [whole(memory)]

    def go_on(self, pages: range) -> Frozen:
        """Change some pages, and keep the memory as it is then."""
        for number in pages:
            os.pwrite(self.memory, os.urandom(PAGE), number * PAGE)
        new = Frozen(self.moments[0].directory.parent / f"m{len(self.moments)}", SIZE)
        store(new, b"later", self.memory, verified=True, over=[self.moments[-1]], lasting=False)
        self.moments.append(new)
        self.contents.append(whole(self.memory))
        return new


def whole(fd: int) -> bytes:
    return os.pread(fd, SIZE, 0)


def read(frozen: Frozen) -> bytes:
    fd = create_memory(SIZE)
    try:
        load(frozen, fd)
        return whole(fd)
    finally:
        os.close(fd)


def written(frozen: Frozen) -> int:
    """Return how many pages there are in a moment's own file."""
    parts = read_state(frozen).extents
    assert parts is not None
    return length_of(parts) // PAGE


def names(frozen: Frozen) -> list[str]:
    return sorted(path.name for path in frozen.directory.iterdir())


def test_a_state_is_read_as_it_was_written(frozen: Frozen) -> None:
    assert read_state(frozen) == AtRest(b"state")
    assert frozen.state.stat().st_mode & 0o777 == frozen.image.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("harm", [b"", b"state", b"hutch-state 2\n", None])
def test_a_damaged_state_is_noticed(frozen: Frozen, harm: bytes | None) -> None:
    data = bytearray(frozen.state.read_bytes())
    data[-1] ^= 1
    frozen.state.write_bytes(bytes(data) if harm is None else harm)
    with pytest.raises(EngineError, match="damaged") as caught:
        read_state(frozen)
    assert caught.value.details["template"] is True


def test_what_could_not_be_stored_leaves_nothing(memory: int, short_tmp: Path) -> None:
    frozen = Frozen(short_tmp / "frozen", SIZE)
    frozen.directory.mkdir()
    (frozen.directory / "state.part").mkdir()  # where the second of the two files is written
    with pytest.raises(EngineError, match="cannot be written"):
        store(frozen, b"state", memory)
    assert [path.name for path in frozen.directory.iterdir()] == ["state.part"]


def test_only_what_differs_is_written(memory: int, frozen: Frozen) -> None:
    line = Line(memory, frozen)
    os.pwrite(memory, bytes(PAGE), 5 << 20)  # what is there below is zero now
    os.pwrite(memory, bytes(PAGE), 20 << 20)  # and this was nothing, and still is
    new = line.go_on(range(3000, 3002))
    assert names(new) == ["memory", "memory-1", "state"]
    assert written(new) == 3
    assert new.image.stat().st_blocks * 512 <= 3 * PAGE
    assert new.over(1).samefile(frozen.image)
    assert read(new) == line.contents[-1]
    # What it needs is its own, whatever becomes of the other.
    remove(frozen)
    assert read(new) == line.contents[-1]
    remove(new)
    assert names(new) == []


def test_small_files_are_no_ground_for_others(memory: int, frozen: Frozen) -> None:
    line = Line(memory, frozen)
    first = line.go_on(range(3000, 3002))
    second = line.go_on(range(3010, 3011))
    assert (names(second), written(second)) == (names(first), 3)
    third = line.go_on(range(3020, 3040))
    assert (names(third), written(third)) == (names(first), 23)
    fourth = line.go_on(range(3050, 3051))
    assert names(fourth) == ["memory", "memory-1", "memory-2", "state"]
    assert fourth.over(2).samefile(third.image)
    assert written(fourth) == 1
    for moment, content in zip(line.moments, line.contents, strict=True):
        assert read(moment) == content


def test_however_many_moments_there_are_few_files_lie_below_each(
    memory: int, frozen: Frozen
) -> None:
    line = Line(memory, frozen)
    total = 0
    for number in range(16):
        new = line.go_on(range(3000 + 5 * number, 3005 + 5 * number))
        total += written(new)
        assert len(new.below()) <= 5
    assert total < 16 * 5 * 5
    for moment in line.moments[:-1]:
        remove(moment)
    assert read(line.moments[-1]) == line.contents[-1]


def test_what_is_nearly_all_different_is_written_as_a_whole(memory: int, frozen: Frozen) -> None:
    line = Line(memory, frozen)
    new = line.go_on(range(2000, 4000))
    assert names(new) == ["memory", "state"]
    assert read(new) == line.contents[-1]
    after = line.go_on(range(2000, 2001))
    assert (written(after), after.over(1).samefile(new.image)) == (1, True)


def shorter(path: Path) -> None:
    os.truncate(path, SIZE // 2)


def flipped(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(8 << 20)
        byte = file.read(1)[0]
        file.seek(8 << 20)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("harm", [shorter, flipped, Path.unlink])
def test_what_is_below_and_damaged_is_noticed(
    memory: int, frozen: Frozen, harm: Callable[[Path], None]
) -> None:
    line = Line(memory, frozen)
    new = line.go_on(range(3000, 3001))
    harm(new.over(1))
    with pytest.raises(EngineError) as caught:
        read(new)
    assert caught.value.details["template"] is True
    assert "memory-1" in caught.value.message
    # The next one does without it.
    assert read(line.go_on(range(3001, 3002))) == line.contents[-1]


def test_what_cannot_be_used_is_done_without(memory: int, frozen: Frozen, short_tmp: Path) -> None:
    (short_tmp / "torn").mkdir()
    others = [
        Frozen(short_tmp / "none", SIZE),
        Frozen(frozen.directory, SIZE * 2),
        Frozen(short_tmp / "torn", SIZE),
    ]
    (short_tmp / "torn" / "state").write_bytes(b"hutch-state 3\n")
    for number, over in enumerate(([*others], [*others, frozen])):
        new = Frozen(short_tmp / f"new{number}", SIZE)
        store(new, b"state", memory, verified=True, over=over)
        assert len(new.below()) == number
        assert read(new) == whole(memory)


def test_links_that_cannot_be_made(
    memory: int, frozen: Frozen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(31, "Too many links")

    monkeypatch.setattr(os, "link", refuse)
    line = Line(memory, frozen)
    new = line.go_on(range(3000, 3001))
    assert names(new) == ["memory", "state"]
    assert read(new) == line.contents[-1]


def test_it_can_be_had_in_one_file(memory: int, frozen: Frozen, short_tmp: Path) -> None:
    line = Line(memory, frozen)
    line.go_on(range(3000, 3020))
    new = line.go_on(range(3010, 3013))
    one = Frozen(short_tmp / "one", SIZE)
    one.directory.mkdir()
    join(new, one)
    assert names(one) == ["memory", "state"]
    assert read(one) == line.contents[-1]
    assert read_state(one).state == b"later"
    with one.image.open("rb") as image:
        held = length_of(list(extents(image.fileno(), SIZE)))
    assert held < 2 << 20
    flipped(new.over(1))
    remove(one)
    with pytest.raises(EngineError, match="damaged"):
        join(new, one)


def test_holes_that_are_told_differently_later(
    memory: int, frozen: Frozen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As file systems do that have not written everything yet."""
    told = [[(0, SIZE)], [(0, SIZE // 2), (SIZE // 2, SIZE // 2)]]

    def forgetful(fd: int, size: int) -> Iterator[tuple[int, int]]:
        if told and os.path.samestat(os.fstat(fd), frozen.image.stat()):
            return iter(told.pop())
        return extents(fd, size)

    monkeypatch.setattr(atrest, "extents", forgetful)
    for number in range(3):
        os.pwrite(memory, os.urandom(PAGE), (3000 + number) * PAGE)
        new = Frozen(frozen.directory.parent / f"n{number}", SIZE)
        store(new, b"later", memory, verified=True, over=[frozen])
        assert new.over(1).samefile(frozen.image)
        assert read(new) == whole(memory)
    assert told == []


@pytest.mark.parametrize(
    "parts",
    [
        [[0, SIZE + PAGE]],
        [[-PAGE, PAGE]],
        [["a", PAGE]],
        [[0.0, 4096.0]],
        [[False, PAGE]],
        [[0, 100]],
        [[100, PAGE]],
        [[1]],
        3,
    ],
)
def test_parts_that_cannot_be(memory: int, frozen: Frozen, parts: object) -> None:
    """As somebody may have written them who made a file that was imported."""
    below = Below(parts, "0")  # type: ignore[arg-type]
    for content in (AtRest(b"s", parts, "0"), AtRest(b"s", [], "0", [below])):  # type: ignore[arg-type]
        frozen.state.write_bytes(content.pack())
        frozen.over(1).write_bytes(frozen.image.read_bytes())
        with pytest.raises(EngineError, match="cannot be what"):
            read(frozen)
        new = Frozen(frozen.directory.parent / "new", SIZE)
        store(new, b"later", memory, verified=True, over=[frozen])
        assert names(new) == ["memory", "state"]
        assert read(new) == whole(memory)


def test_what_a_state_says_is_read_as_it_was_written() -> None:
    content = AtRest(b"state", [[0, 4]], "ab", (Below([[4, 8]], "cd"),))  # type: ignore[list-item]
    assert AtRest.unpack(content.pack()) == content
    for data in (b"", b"\0" * 4, b"\0\0\0\4null", b"\0\0\0\2{}"):
        packed = AtRest(b"").pack()[:14] + atrest.sha256(data).digest() + data
        with pytest.raises(ValueError, match=r"damaged|Expecting"):
            AtRest.unpack(packed)
