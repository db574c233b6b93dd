import asyncio
import socket
from pathlib import Path

import pytest

from hutch.engine.console import TAIL, Console, ConsoleLog
from hutch.tasks import Scope


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.parent.iterdir())}


def test_the_log_is_rotated_at_its_size(short_tmp: Path) -> None:
    path = short_tmp / "log" / "c"
    path.parent.mkdir()
    log = ConsoleLog(path, size=4, files=2)
    log.append(b"0123456789")
    assert files(path) == {"c": b"89", "c.1": b"4567", "c.2": b"0123"}
    log.append(b"abcdef")
    assert files(path) == {"c.1": b"cdef", "c.2": b"89ab"}


def test_a_flood_is_capped(short_tmp: Path) -> None:
    path = short_tmp / "log" / "c"
    path.parent.mkdir()
    log = ConsoleLog(path, size=1000, files=1)
    for _ in range(100):
        log.append(b"x" * 333)
    assert sum(map(len, files(path).values())) <= 2000


def test_without_rotated_files_the_log_begins_anew(short_tmp: Path) -> None:
    path = short_tmp / "log" / "c"
    path.parent.mkdir()
    log = ConsoleLog(path, size=4, files=0)
    log.append(b"012345")
    assert files(path) == {"c": b"45"}


def test_a_log_that_cannot_be_written_is_reported_once(
    short_tmp: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = ConsoleLog(short_tmp / "gone" / "c", size=100, files=1)
    log.append(b"a")
    log.append(b"b")
    assert len(caplog.records) == 1


def test_a_link_in_the_logs_place_is_not_followed(short_tmp: Path) -> None:
    (short_tmp / "c").symlink_to(short_tmp / "target")
    ConsoleLog(short_tmp / "c", size=100, files=1).append(b"a")
    assert not (short_tmp / "target").exists()


async def test_the_reader_counts_and_keeps_the_end(short_tmp: Path) -> None:
    ours, theirs = socket.socketpair()
    console = Console(ours, ConsoleLog(short_tmp / "c", size=1 << 20, files=1))
    async with Scope("test") as scope, asyncio.timeout(60):
        scope.start("console", console.run())
        theirs.sendall(b"early")
        totals = []
        async for total in console.progress():
            totals.append(total)
            if total == 5:
                theirs.sendall(b"x" * TAIL + b"end")
                theirs.close()
        assert totals[-1] == TAIL + 8
        assert totals == sorted(totals)
        await console.drained(timeout=60)
    assert console.tail.endswith(b"end")
    assert len(console.tail) == TAIL
    assert (short_tmp / "c").read_bytes() == b"early" + b"x" * TAIL + b"end"


async def test_two_watchers_see_the_end(short_tmp: Path) -> None:
    ours, theirs = socket.socketpair()
    console = Console(ours, ConsoleLog(short_tmp / "c", size=100, files=1))

    async def last() -> int:
        return [total async for total in console.progress()][-1]

    async with Scope("test") as scope, asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        watchers = [tasks.create_task(last()) for _ in range(2)]
        scope.start("console", console.run())
        theirs.sendall(b"abc")
        theirs.close()
    assert [watcher.result() for watcher in watchers] == [3, 3]
