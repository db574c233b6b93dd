import asyncio
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.engine import memories
from hutch.engine.atrest import read_state, store
from hutch.engine.base import Frozen
from hutch.engine.memories import Memories, create_memory, seal
from hutch.errors import EngineError, NoCapacity, error

SIZE = 64 << 20
PAGES = {0: b"first", 5 << 20: b"middle", SIZE - 4096: b"last"}


@pytest.fixture
def memory() -> Iterator[int]:
    """A memory of a few pages in many holes."""
    fd = create_memory(SIZE)
    for offset, data in PAGES.items():
        os.pwrite(fd, data.ljust(4096, b"."), offset)
    yield fd
    os.close(fd)


@pytest.fixture
def frozen(memory: int, short_tmp: Path) -> Frozen:
    frozen = Frozen(short_tmp / "frozen", SIZE)
    store(frozen, b"state", memory)
    return frozen


def content(fd: int) -> dict[int, bytes]:
    return {offset: os.pread(fd, 4096, offset).rstrip(b".") for offset in PAGES}


def writable(fd: int) -> bool:
    try:
        mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()
    except PermissionError:
        return False
    return True


async def test_a_memory_at_rest_is_the_same_and_as_sparse(frozen: Frozen) -> None:
    assert frozen.image.stat().st_size == SIZE
    assert frozen.image.stat().st_blocks * 512 < 1 << 20
    kept = Memories()
    fd = await kept.of(frozen)
    assert content(fd) == PAGES
    assert os.fstat(fd).st_size == SIZE
    assert kept.held(frozen) == len(PAGES) * 4096
    assert not writable(fd)
    kept.drop(frozen)
    assert kept.held(frozen) == 0
    assert content(fd) == PAGES  # whoever has it keeps it
    os.close(fd)


async def test_a_memory_is_loaded_once_for_all_who_ask(
    frozen: Frozen, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, create = [], memories.create_memory

    def counted(size: int) -> int:
        loads.append(size)
        return create(size)

    monkeypatch.setattr(memories, "create_memory", counted)
    kept = Memories()
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(kept.of(frozen)) for _ in range(5)]
    assert loads == [SIZE]
    fds = [task.result() for task in asked]
    assert len(set(fds)) == 5
    assert len({os.fstat(fd).st_ino for fd in fds}) == 1
    for fd in fds:
        os.close(fd)
    kept.drop(frozen)


async def test_a_state_is_read_once_while_its_memory_is_held(frozen: Frozen) -> None:
    kept = Memories()
    assert await kept.state(frozen)() == b"state"
    fd = await kept.of(frozen)
    assert await kept.state(frozen)() == b"state"
    frozen.state.unlink()
    assert await kept.state(frozen)() == b"state"
    kept.drop(frozen)
    with pytest.raises(EngineError):
        await kept.state(frozen)()
    os.close(fd)


async def test_a_memory_dropped_while_it_is_loaded_reaches_who_asked(frozen: Frozen) -> None:
    kept = Memories()
    async with asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(kept.of(frozen))
        await asyncio.sleep(0)
        kept.drop(frozen)
    assert kept.held(frozen) == 0
    assert content(asked.result()) == PAGES
    os.close(asked.result())


async def test_a_load_that_failed_is_tried_again(frozen: Frozen) -> None:
    kept, away = Memories(), frozen.image.with_name("away")
    frozen.image.rename(away)
    for _ in range(2):
        with pytest.raises(EngineError) as caught:
            await kept.of(frozen)
        assert caught.value.details["template"] is True
    assert kept.held(frozen) == 0
    away.rename(frozen.image)
    os.close(await kept.of(frozen))
    kept.drop(frozen)


async def test_a_memory_still_written_to_is_not_sealed(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memories, "_SEAL_PATIENCE", 0.02)
    with mmap.mmap(memory, 4096):
        with pytest.raises(EngineError, match="still mapped"):
            await seal(memory)
    await seal(memory)
    assert not writable(memory)
    with pytest.raises(PermissionError):
        os.pwrite(memory, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(memory, 0)


async def test_what_was_captured_is_here_alone_until_it_is_kept(
    memory: int, short_tmp: Path
) -> None:
    frozen, kept = Frozen(short_tmp / "captured", SIZE), Memories()
    await seal(memory)
    kept.add(frozen, os.dup(memory), b"state")
    assert await kept.state(frozen)() == b"state"
    assert not frozen.directory.exists()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(kept.keep(frozen))
    assert await kept.state(frozen)() == b"state"
    kept.drop(frozen)
    fd = await kept.of(frozen)
    assert content(fd) == PAGES
    assert kept.held(frozen) == len(PAGES) * 4096
    os.close(fd)
    kept.drop(frozen)
    with pytest.raises(EngineError, match="nothing is held"):
        await kept.keep(frozen)


async def test_what_was_kept_does_not_need_its_holes(memory: int, short_tmp: Path) -> None:
    frozen = Frozen(short_tmp / "kept", SIZE)
    store(frozen, b"state", memory, verified=True)
    # As a copy through a program that knows no holes leaves it.
    frozen.image.write_bytes(frozen.image.read_bytes())
    kept = Memories()
    fd = await kept.of(frozen)
    assert content(fd) == PAGES
    assert kept.held(frozen) == len(PAGES) * 4096
    os.close(fd)
    kept.drop(frozen)


@pytest.mark.parametrize(("verified", "noticed"), [(True, True), (False, False)])
async def test_a_damaged_memory_is_noticed_where_it_was_kept(
    memory: int, short_tmp: Path, verified: bool, noticed: bool
) -> None:
    frozen, kept = Frozen(short_tmp / "kept", SIZE), Memories()
    store(frozen, b"state", memory, verified=verified)
    with frozen.image.open("r+b") as image:
        image.seek(5 << 20)
        image.write(b"M")
    if noticed:
        with pytest.raises(EngineError, match="damaged") as caught:
            await kept.of(frozen)
        assert caught.value.details["template"] is True
    else:
        os.close(await kept.of(frozen))
    kept.drop(frozen)


async def test_what_could_not_be_kept_stays_here(
    memory: int, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, kept = Frozen(short_tmp / "kept", SIZE), Memories()
    kept.add(frozen, os.dup(memory), b"state")

    def full(*_: object, **__: object) -> None:
        raise error("disk_full", "told to")

    with monkeypatch.context() as patch:
        patch.setattr(memories, "store", full)
        with pytest.raises(NoCapacity):
            await kept.keep(frozen)
    assert await kept.state(frozen)() == b"state"
    await kept.keep(frozen)
    assert read_state(frozen).state == b"state"
    kept.drop(frozen)


async def test_what_is_lent_can_be_held_again(memory: int, short_tmp: Path) -> None:
    kept, frozen = Memories(), Frozen(short_tmp / "captured", SIZE)
    with pytest.raises(EngineError):
        kept.lend(frozen)
    await seal(taken := os.dup(memory))
    kept.add(frozen, taken, b"state")
    state, fd = kept.lend(frozen)
    assert (state, content(fd), fd != taken) == (b"state", PAGES, True)
    await kept.keep(frozen)
    with pytest.raises(EngineError):  # it has no state of its own any more
        kept.lend(frozen)
    kept.drop(frozen)
    assert content(fd) == PAGES
    os.close(fd)
