import asyncio
import struct

import pytest
from starlette.websockets import WebSocket as Starlette

from hutch.api.operations import LogRecord
from hutch.api.streams import log_query
from hutch.sdk.aio.transport import Transport, WebSocket
from hutch.sdk.websocket import BINARY
from tests.unit.api.fake_operations import FakeOperations
from tests.waiting import until

EXEC = "/v1/sandboxes/box/exec"


async def error_code(socket: WebSocket) -> str:
    """Read until the error that the server closes with."""
    code = ""
    while (message := await socket.receive()) is not None:
        if message.kind != BINARY and "error" in message.json():
            code = message.json()["error"]["code"]
    assert socket.close_code == 1011
    socket.close()
    return code


@pytest.mark.parametrize(
    "first",
    [
        {"start": {}},
        {"start": {"argv": "true"}},
        {"start": {"argv": ["true"], "env": {"A": 1}}},
        {"attach": 5},
        {"attach": "main", "offsets": {"x": 1}},
        {},
    ],
)
async def test_a_wrong_first_message(api: str, first: object) -> None:
    socket = await Transport(socket=api).websocket(EXEC)
    await socket.send_json(first)
    assert await error_code(socket) == "bad_request"


async def test_the_field_is_named(api: str) -> None:
    socket = await Transport(socket=api).websocket(EXEC)
    await socket.send_json({"start": {"argv": ["true"], "timeout": "soon"}})
    message = await socket.receive()
    assert message is not None
    assert message.json()["error"]["details"]["fields"][0]["field"] == "start.timeout"
    socket.close()


async def test_attach_to_what_is_not_there(api: str) -> None:
    socket = await Transport(socket=api).websocket(EXEC)
    await socket.send_json({"attach": "ex_9", "offsets": None})
    assert await error_code(socket) == "exec_not_found"


async def test_logs_come_with_channel_and_time(api: str, fake: FakeOperations) -> None:
    fake.sandboxes.logged = [
        LogRecord(1, 7, b"out\n"),
        LogRecord(2, 8, b"", missing=99),
        LogRecord(3, 1 << 60, b"\x00\xff"),
    ]
    socket = await Transport(socket=api).websocket("/v1/sandboxes/box/logs")
    messages = [await socket.receive() for _ in range(4)]
    assert [message.data if message else None for message in messages] == [
        b"\x01" + struct.pack("<Q", 7) + b"out\n",
        b'{"gap":{"channel":2,"size":99}}',
        b"\x03" + struct.pack("<Q", 1 << 60) + b"\x00\xff",
        None,
    ]
    assert socket.close_code == 1000
    socket.close()


async def test_a_followed_log_ends_with_its_client(api: str, fake: FakeOperations) -> None:
    fake.sandboxes.logged = [LogRecord(1, 7, b"x")]
    socket = await Transport(socket=api).websocket("/v1/sandboxes/box/logs", {"follow": True})
    assert await socket.receive()
    socket.close()
    async with asyncio.timeout(60):
        await fake.sandboxes.cancelled.wait()


@pytest.mark.parametrize("query", [{"tail": -1}, {"tail": "x"}, {"since": "soon"}, {"boot": "?"}])
async def test_a_wrong_log_query(api: str, query: dict[str, object]) -> None:
    socket = await Transport(socket=api).websocket("/v1/sandboxes/box/logs", query)
    assert await error_code(socket) == "bad_request"


def test_log_query_reads_timestamps() -> None:
    text = b"since=1970-01-01T00:00:01Z&exec=ex_1&tail=0"
    scope = {"type": "websocket", "query_string": text, "headers": []}
    query = log_query(Starlette(scope, None, None))  # type: ignore[arg-type]
    assert (query.since_ns, query.until_ns, query.exec_id, query.tail) == (10**9, None, "ex_1", 0)


async def test_a_tunnel_carries_bytes_both_ways(api: str, fake: FakeOperations) -> None:
    socket = await Transport(socket=api).websocket("/v1/sandboxes/box/tunnel", {"port": 80})
    message = await socket.receive()
    assert message is not None
    assert message.json() == {"connected": True}
    for size in (1, 100_000):
        await socket.send_binary(bytes(size))
        message = await socket.receive()
        assert message is not None
        assert message.data == bytes(size)
    await socket.send_json({"eof": True})
    message = await socket.receive()
    assert message is not None
    assert message.json() == {"eof": True}
    assert await socket.receive() is None
    assert socket.close_code == 1000
    socket.close()
    await until(lambda: fake.files.tunnels[0].closed)


async def test_a_tunnel_that_nobody_answers(api: str) -> None:
    socket = await Transport(socket=api).websocket("/v1/sandboxes/box/tunnel", {"port": 1})
    assert await error_code(socket) == "guest_refused"


async def test_a_tunnel_is_closed_with_its_client(api: str, fake: FakeOperations) -> None:
    socket = await Transport(socket=api).websocket("/v1/sandboxes/box/tunnel", {"port": 80})
    assert await socket.receive()
    socket.close()
    await until(lambda: fake.files.tunnels[0].closed)
