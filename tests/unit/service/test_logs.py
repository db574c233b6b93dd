"""Reading logs: times, lines, following, the console."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hutch.images.base import no_report
from hutch.models import ExecSpec
from hutch.service.host import HostService
from hutch.service.logs import CONSOLE_CHANNEL, Log, read_console, read_log
from hutch.service.values import LogQuery, LogRecord
from tests.unit.service.world import World, expect, read_logs, spec
from tests.waiting import until


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Log]:
    log = Log(tmp_path, "main", size=1 << 20, files=2)
    await log.open(fresh=True)
    yield log
    await log.close()


async def collect(log: Log, query: LogQuery) -> list[LogRecord]:
    return [record async for record in read_log(log.directory, query, log)]


async def test_times(log: Log) -> None:
    for second in range(5):
        await log.append(1, second * 2, b"%d\n" % second, second * 10**9)
    found = await collect(log, LogQuery(since_ns=10**9, until_ns=3 * 10**9))
    assert [record.data for record in found] == [b"1\n", b"2\n", b"3\n"]
    found = await collect(log, LogQuery(tail=2))
    assert b"".join(record.data for record in found) == b"3\n4\n"


async def test_following_ends_with_the_log(log: Log) -> None:
    seen: list[bytes] = []

    async def follow() -> None:
        async for record in read_log(log.directory, LogQuery(follow=True, tail=0), log):
            seen.append(record.data)

    await log.append(1, 0, b"old\n", 1)
    async with asyncio.TaskGroup() as group:
        group.create_task(follow())
        offset = 0
        while not seen:  # what is written before it follows is old, too
            await log.append(2, offset, b"new\n", 2)
            offset += 4
            with contextlib.suppress(AssertionError):
                await until(lambda: seen, timeout=0.05)
        await log.append(1, 4, b"last\n", 3)
        await log.close()
    text = b"".join(seen)
    assert text.startswith(b"new\n")
    assert text.replace(b"new\n", b"") == b"last\n"


async def test_no_log(tmp_path: Path) -> None:
    async def read(exec_id: str) -> list[LogRecord]:
        query = LogQuery(exec_id=exec_id)
        return [record async for record in read_log(tmp_path, query, None)]

    assert await read("main") == []
    await expect("exec_not_found", read("ex_0123456789ab"))


async def test_names_of_logs_are_no_paths(world: World) -> None:
    async with world.service() as service:
        info = await service.sandboxes.create(spec(), no_report)
        await expect("exec_not_found", read_logs(service, info.id, exec_id="../../x"))


async def test_logs_outlive_the_machine(world: World) -> None:
    async with world.service() as service:
        info = await service.sandboxes.create(spec("echo", "hi"), no_report)
        for _ in range(2):
            await service.sandboxes.start(info.id)
            await service.sandboxes.wait(info.id, timeout=60)
        assert await read_logs(service, info.id, follow=True) == b"hi\nhi\n"


async def test_following_from_before_the_start_of_output(world: World) -> None:
    async with world.service() as service:
        info = await service.sandboxes.create(
            spec("sh", "-c", "sleep 0.1; echo a; sleep 0.1; echo b"), no_report
        )
        await service.sandboxes.start(info.id)
        assert await read_logs(service, info.id, follow=True) == b"a\nb\n"


async def console(path: Path, query: LogQuery, files: int = 2) -> bytes:
    found = b""
    async for record in read_console(path, files, query, None):
        assert record.channel == CONSOLE_CHANNEL
        found += record.data
    return found


async def test_console(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    assert await console(path, LogQuery(boot=True)) == b""
    path.write_bytes(b"three\nfour\n")
    (tmp_path / "console.log.1").write_bytes(b"one\ntwo\n")
    assert await console(path, LogQuery(boot=True)) == b"one\ntwo\nthree\nfour\n"
    assert await console(path, LogQuery(boot=True, tail=3)) == b"two\nthree\nfour\n"


async def test_following_the_console(world: World) -> None:
    async with world.service() as service:
        info = await service.sandboxes.create(spec(idle=True), no_report)
        await service.sandboxes.start(info.id)
        (process,) = world.engine.running()
        process.say(b"booting\n")
        seen: list[bytes] = []

        async def follow() -> None:
            query = LogQuery(boot=True, follow=True)
            async for record in service.sandboxes.logs(info.id, query):
                seen.append(record.data)

        async with asyncio.TaskGroup() as group:
            group.create_task(follow())
            await until(lambda: seen == [b"booting\n"])
            process.say(b"ready\n")
            await until(lambda: len(seen) == 2)
            await service.sandboxes.kill(info.id)
        assert seen == [b"booting\n", b"ready\n"]


async def test_old_detached_logs_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.service.exec.LOGGED_KEPT", 2)
    async with world.service() as service:
        info = await service.sandboxes.create(spec(idle=True), no_report)
        await service.sandboxes.start(info.id)
        ids = []
        for _ in range(5):
            started = await service.execs.spawn(info.id, ExecSpec(["echo", "x"]))
            ids.append(started.id)
            await ended(service, info.id, started.id)
        await expect("exec_not_found", read_logs(service, info.id, exec_id=ids[0]))
        assert await read_logs(service, info.id, exec_id=ids[-1]) == b"x\n"


async def ended(service: HostService, ref: str, exec_id: str) -> None:
    await until(lambda: over(service, ref, exec_id))


async def over(service: HostService, ref: str, exec_id: str) -> bool:
    return not (await service.execs.get(ref, exec_id)).running
