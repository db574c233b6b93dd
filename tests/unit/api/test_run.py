import asyncio
from typing import Any

from hutch.models import SandboxState
from hutch.sdk.aio.transport import Transport, WebSocket
from hutch.sdk.websocket import BINARY
from tests.unit.api.fake_operations import FakeOperations
from tests.waiting import until


async def run(api: str, *, attach: bool = True, **spec: Any) -> WebSocket:
    socket = await Transport(socket=api).websocket("/v1/run")
    await socket.send_json({"spec": {"image": "busybox"} | spec, "attach": attach})
    return socket


async def everything(socket: WebSocket) -> tuple[list[str], list[dict[str, Any]], bytes]:
    """Read to the end; return the kinds of message in order, the objects, and the output."""
    kinds, objects, out = [], [], bytearray()
    async with asyncio.timeout(60):
        while (message := await socket.receive()) is not None:
            if message.kind == BINARY:
                out += message.data[1:]
            else:
                objects.append(message.json())
                kinds.append(next(iter(objects[-1])))
    socket.close()
    return kinds, objects, bytes(out)


async def test_from_the_image_to_the_exit(api: str) -> None:
    kinds, objects, out = await everything(await run(api, command=["echo", "hi"]))
    assert kinds == [
        *("progress", "created", "running", "started", "end", "end", "exit", "stopped")
    ]
    assert out == b"hi\n"
    assert objects[-2]["exit"]["exit_code"] == 0
    assert objects[-1]["stopped"]["state"] == "stopped"


async def test_a_sandbox_that_removes_itself(api: str, fake: FakeOperations) -> None:
    socket = await run(api, command=["exit", "7"], auto_remove=True)
    _, objects, _ = await everything(socket)
    assert objects[-1]["stopped"]["exit"]["code"] == 7
    await until(lambda: fake.sandboxes.removed)


async def test_without_attaching(api: str, fake: FakeOperations) -> None:
    kinds, objects, _ = await everything(await run(api, attach=False, idle=True))
    assert kinds == ["progress", "created", "running"]
    assert fake.sandboxes.find(objects[-1]["running"]["id"]).state is SandboxState.RUNNING


async def test_a_program_that_does_not_exist(api: str, fake: FakeOperations) -> None:
    socket = await run(api, command=["nosuch"])
    kinds, objects, _ = await everything(socket)
    assert kinds[-1] == "error"
    assert objects[-1]["error"]["code"] == "command_not_found"
    assert socket.close_code == 1011
    assert [info.name for info in fake.sandboxes.rows.values()] == ["box"]


async def test_an_image_that_does_not_exist(api: str, fake: FakeOperations) -> None:
    _, objects, _ = await everything(await run(api, image="nosuch"))
    assert objects[-1]["error"]["code"] == "image_not_found"


async def test_a_wrong_spec(api: str) -> None:
    _, objects, _ = await everything(await run(api, cpus="many"))
    assert objects[-1]["error"]["code"] == "bad_request"
    assert objects[-1]["error"]["details"]["fields"][0]["field"] == "spec.cpus"


async def test_a_client_lost_during_the_pull_takes_it_back(api: str, fake: FakeOperations) -> None:
    fake.sandboxes.create_gate = asyncio.Event()
    socket = await run(api, command=["true"])
    assert await socket.receive()
    socket.close()
    async with asyncio.timeout(60):
        await fake.sandboxes.cancelled.wait()
    assert [info.name for info in fake.sandboxes.rows.values()] == ["box"]


async def test_a_client_lost_while_it_runs(api: str, fake: FakeOperations) -> None:
    socket = await run(api, command=["hang"])
    while True:
        message = await socket.receive()
        assert message is not None
        if message.kind == BINARY:
            break
    socket.close()
    main = fake.execs.all["main"]
    await until(lambda: main.closes == [False])
    assert len(fake.sandboxes.rows) == 2
