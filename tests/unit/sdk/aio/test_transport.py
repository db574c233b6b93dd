import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hutch.errors import DaemonError, NotFound
from hutch.sdk.aio.transport import Transport, each, write_file
from tests.unit.api.conftest import given_up, serving
from tests.unit.api.fake_operations import FakeOperations
from tests.waiting import until


async def test_one_connection_carries_many_requests(transport: Transport) -> None:
    for _ in range(3):
        await (await transport.request("GET", "/v1/daemon")).read()
        with pytest.raises(NotFound):
            await transport.request("GET", "/v1/sandboxes/no")
    assert len(transport._idle) == 1


async def test_an_answer_not_read_to_its_end_costs_the_connection(transport: Transport) -> None:
    query = {"path": "/dev/zero", "length": 1 << 30}
    answer = await transport.request("GET", "/v1/sandboxes/box/files", query)
    async for _ in answer:
        break
    await answer.close()
    assert transport._idle == []


async def test_a_refused_upload_stops_early(transport: Transport) -> None:
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1 << 20):
            sent += 65536
            yield bytes(65536)

    query = {"path": "/nosuch/file"}
    with pytest.raises(NotFound, match="no such directory"):
        await transport.request("PUT", "/v1/sandboxes/box/files", query, body=pieces())
    assert sent < 64 << 20


async def test_a_broken_stream_is_no_whole_one(transport: Transport) -> None:
    query = {"path": "/broken"}
    answer = await transport.request("GET", "/v1/sandboxes/box/files", query)
    with pytest.raises(DaemonError, match="in the middle"):
        await answer.read()


async def test_a_server_that_came_back(fake: FakeOperations, short_tmp: Path) -> None:
    path = short_tmp / "a.sock"
    transport = Transport(socket=str(path))
    for _ in range(2):
        async with serving(fake, path):
            await (await transport.request("GET", "/v1/daemon")).read()
        await until(lambda: transport._idle[0].stale)
    with pytest.raises(DaemonError, match="no daemon answers"):
        await transport.request("GET", "/v1/daemon")


async def test_a_cancelled_request_costs_the_connection(
    transport: Transport, fake: FakeOperations
) -> None:
    await given_up(transport.request("GET", "/v1/sandboxes/box/wait"), fake.sandboxes.waiting)
    assert transport._idle == []


async def test_a_local_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - its own
        await write_file(tmp_path, broken(), name="f")
    assert list(tmp_path.iterdir()) == []
    assert await write_file(tmp_path, each([b"a", b"bc"]), name="f") == 3
    assert (tmp_path / "f").read_bytes() == b"abc"


@pytest.mark.parametrize("random", [False, True])
async def test_a_local_file_is_never_written_through_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random: bool
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"kept")
    for mark in (os.getpid(), "61" * 8):
        (tmp_path / f".f.{mark}.part").symlink_to(other)
    if random:
        monkeypatch.setattr(os, "urandom", lambda count: b"a" * count)
        with pytest.raises(FileExistsError):
            await write_file(tmp_path, each([b"new"]), name="f")
    else:
        await write_file(tmp_path, each([b"new"]), name="f")
        assert (tmp_path / "f").read_bytes() == b"new"
    assert other.read_bytes() == b"kept"
