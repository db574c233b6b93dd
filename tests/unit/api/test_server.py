import asyncio
import os
import stat
from pathlib import Path

import pytest

from hutch.api import server
from hutch.api.server import listen
from hutch.errors import DaemonError
from hutch.sdk.aio.transport import Transport
from hutch.sdk.wire import Connection
from tests.unit.api.conftest import Served, serving
from tests.unit.api.fake_operations import FakeOperations


def test_a_socket_is_private_from_its_first_moment(short_tmp: Path) -> None:
    path = short_tmp / "a.sock"
    path.touch(mode=0o666)  # left by a daemon that was killed
    with listen(path):
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600


def test_another_users_connection_is_dropped(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Connection.connect(served.path) as connection:
        assert connection.request("GET", "/v1/daemon").status == 200

    class Stranger:
        size = server._CREDENTIALS.size

        @staticmethod
        def unpack(raw: bytes) -> tuple[int, int, int]:
            return 1, os.geteuid() + 4242, 1

    monkeypatch.setattr(server, "_CREDENTIALS", Stranger)
    with Connection.connect(served.path) as connection, pytest.raises(DaemonError):
        connection.request("GET", "/v1/daemon")


async def test_the_end_does_not_wait_for_those_who_wait(
    fake: FakeOperations, short_tmp: Path
) -> None:
    path = short_tmp / "a.sock"
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        async with serving(fake, path) as running:
            transport = Transport(socket=str(path))
            waiting = group.create_task(
                expect_lost(transport.request("GET", "/v1/sandboxes/box/wait"))
            )
            while not running.clients:
                await asyncio.sleep(0)
        await waiting


async def expect_lost(request: object) -> None:
    with pytest.raises(DaemonError):
        await request  # type: ignore[misc]
