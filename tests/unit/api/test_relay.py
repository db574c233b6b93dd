import asyncio
import gc
from typing import Any

import pytest

from hutch.api.relay import CONTROL_LIMIT, OUTPUT_WINDOW, STDIN_WINDOW
from hutch.sdk.aio.transport import Transport, WebSocket
from hutch.sdk.websocket import BINARY
from tests.unit.api.fake_operations import FakeOperations
from tests.waiting import until

EXEC = "/v1/sandboxes/box/exec"


async def start(api: str, *argv: str, **spec: Any) -> tuple[WebSocket, dict[str, Any]]:
    socket = await Transport(socket=api).websocket(EXEC)
    await socket.send_json({"start": {"argv": list(argv), **spec}})
    message = await socket.receive()
    assert message is not None
    return socket, message.json()["started"]


async def rest(socket: WebSocket, *, ack: bool = True) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """Read to the end; return both outputs and the objects."""
    outputs, objects = {1: bytearray(), 2: bytearray()}, []
    async with asyncio.timeout(60):
        while (message := await socket.receive()) is not None:
            if message.kind == BINARY:
                outputs[message.data[0]] += message.data[1:]
                if ack:
                    size = len(message.data) - 1
                    await socket.send_json({"ack": {str(message.data[0]): size}})
            else:
                objects.append(message.json())
    socket.close()
    return bytes(outputs[1]), bytes(outputs[2]), objects


async def test_started_says_what_the_client_may_send(api: str) -> None:
    socket, started = await start(api, "true")
    assert started["credit"] == STDIN_WINDOW
    assert started["offsets"] == {"1": 0, "2": 0}
    _, _, objects = await rest(socket)
    assert objects[:2] == [{"end": 1}, {"end": 2}]
    assert objects[2]["exit"]["exit_code"] == 0
    assert socket.close_code == 1000


async def test_a_stalled_reader_stops_the_program(api: str, fake: FakeOperations) -> None:
    socket, started = await start(api, "bytes", str(64 << 20))
    program = fake.execs.all[started["id"]].program
    taken = 0
    while taken < OUTPUT_WINDOW:  # taken, and never acknowledged
        message = await socket.receive()
        assert message is not None
        taken += len(message.data) - 1
    gc.collect()
    assert program.offsets[1] == OUTPUT_WINDOW  # type: ignore[index]
    await socket.send_json({"ack": {"1": taken}})
    out, _, objects = await rest(socket)
    assert len(out) + taken == 64 << 20
    assert objects[-1]["exit"]["exit_code"] == 0


async def test_a_program_that_takes_no_stdin_while_it_floods(api: str) -> None:
    """The client sends all that it may before it reads at all: neither side waits for the other."""
    socket, started = await start(api, "flood", str(8 << 20), stdin=True)
    await socket.send_binary(b"\0", bytes(started["credit"]))
    out, err, objects = await rest(socket)
    assert (len(out), len(err)) == (8 << 20, 8 << 20)
    assert objects[-1]["exit"]["exit_code"] == 0


async def test_stdin_and_its_end(api: str) -> None:
    socket, _ = await start(api, "count", stdin=True)
    await socket.send_binary(b"\0", b"a\0\xff")
    await socket.send_json({"eof": True})
    out, _, _ = await rest(socket)
    assert out.startswith(b"3 ")


async def test_a_signal_and_a_resize(api: str) -> None:
    socket, _ = await start(api, "size", tty={"rows": 24, "cols": 80})
    message = await socket.receive()
    assert message is not None
    assert message.data == b"\x0124x80\n"
    await socket.send_json({"resize": {"rows": 50, "cols": 132}})
    message = await socket.receive()
    assert message is not None
    assert message.data == b"\x0150x132\n"
    await socket.send_json({"signal": "INT"})
    _, _, objects = await rest(socket)
    assert objects[-1]["exit"] | {"exit_code": 130, "signal": 2} == objects[-1]["exit"]


async def test_cancel_kills(api: str, fake: FakeOperations) -> None:
    socket, started = await start(api, "hang")
    await socket.send_json({"cancel": True})
    _, _, objects = await rest(socket)
    assert objects[-1]["exit"]["exit_code"] == 137
    assert fake.execs.all[started["id"]].cancelled


async def test_cancel_as_the_last_words_of_a_client(api: str, fake: FakeOperations) -> None:
    socket, started = await start(api, "hang")
    socket.close({"cancel": True})
    running = fake.execs.all[started["id"]]
    await until(lambda: running.cancelled and running.closes == [False])


async def test_a_lost_client(api: str, fake: FakeOperations) -> None:
    socket, started = await start(api, "hang")
    socket._link.close()
    running = fake.execs.all[started["id"]]
    await until(lambda: running.closes == [False])
    assert not running.cancelled


async def test_a_client_lost_in_the_middle_of_a_flood(api: str, fake: FakeOperations) -> None:
    socket, started = await start(api, "bytes", str(64 << 20))
    await socket.receive()
    socket._link.close()
    running = fake.execs.all[started["id"]]
    await until(lambda: running.closes == [False])


async def test_detach_lets_it_live(api: str, fake: FakeOperations) -> None:
    socket, started = await start(api, "hang")
    await socket.send_json({"detach": True})
    await rest(socket, ack=False)
    assert socket.close_code == 1000
    running = fake.execs.all[started["id"]]
    assert (running.closes, running.info.running, running.cancelled) == ([True], True, False)


@pytest.mark.parametrize(
    "message",
    [
        {"ack": {"1": 7}},
        {"ack": {"1": -1}},
        {"ack": {"3": 1}},
        {"ack": [1]},
        {"resize": {"rows": 1}},
        {"signal": "NOSUCH"},
        {"signal": 2},
        {"nonsense": True},
        {},
        b"",
        b"\x01stdout",
        b"\0" + bytes(STDIN_WINDOW + 1),
    ],
)
async def test_what_no_client_may_say(
    api: str, fake: FakeOperations, message: dict[str, Any] | bytes
) -> None:
    socket, started = await start(api, "size", stdin=True)
    if isinstance(message, bytes):
        await socket.send_binary(message)
    else:
        await socket.send_json(message)
    _, _, objects = await rest(socket)
    assert objects[-1]["error"]["code"] == "bad_request"
    assert socket.close_code == 1011
    assert fake.execs.all[started["id"]].closes == [False]


async def test_stdin_after_its_end(api: str) -> None:
    socket, _ = await start(api, "hang", stdin=True)
    await socket.send_json({"eof": True})
    await socket.send_binary(b"\0more")
    _, _, objects = await rest(socket)
    assert objects[-1]["error"]["code"] == "bad_request"


async def test_controls_that_wait_are_bounded(api: str, fake: FakeOperations) -> None:
    socket, started = await start(api, "hang")
    gate = asyncio.Event()
    running = fake.execs.all[started["id"]]

    async def stuck() -> None:
        await gate.wait()

    running.program.touch = stuck  # type: ignore[method-assign]
    for _ in range(CONTROL_LIMIT + 2):
        await socket.send_json({"signal": "HUP"})
    gate_opener = asyncio.get_running_loop().call_later(1.0, gate.set)
    _, _, objects = await rest(socket)
    gate_opener.cancel()
    gate.set()
    assert objects[-1]["error"]["message"].startswith("too many signals")
