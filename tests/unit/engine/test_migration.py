"""The QMP side of saving and loading, against a peer that plays QEMU's part by hand."""

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hutch.engine import migration
from hutch.engine.qmp import Qmp
from hutch.errors import EngineError
from tests.unit.engine.stand_in import requests

Answer = Callable[[str, dict[str, Any], list[int]], object]
STATE = os.urandom(700_000)


async def session(answer: Answer, use: Callable[[Qmp], Awaitable[None]]) -> list[str]:
    """Run `use` with a session whose commands `answer` answers; returns the commands.

    An answer that is None hangs up.
    """
    ours, theirs = socket.socketpair()
    seen: list[str] = []

    def send(body: object) -> None:
        theirs.sendall(json.dumps(body).encode() + b"\r\n")

    def play() -> None:
        files: list[int] = []
        with theirs:
            version = {"qemu": {"major": 7, "minor": 2, "micro": 0}}
            send({"QMP": {"version": version, "capabilities": []}})
            for request in requests(theirs, files):
                seen.append(request["execute"])
                result = answer(request["execute"], request.get("arguments", {}), files)
                if result is None:
                    break
                send({"return": result, "id": request.get("id")})
        for fd in files:
            os.close(fd)

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.to_thread(play))
        qmp = await Qmp.open(ours, timeout=5)
        try:
            await use(qmp)
        finally:
            await qmp.close()
    return seen[1:]


def save_into(statuses: list[dict[str, str]], state: bytes = b"state") -> Answer:
    def answer(command: str, arguments: dict[str, Any], files: list[int]) -> object:
        match command:
            case "migrate-set-capabilities":
                [wanted] = arguments["capabilities"]
                assert wanted == {"capability": "x-ignore-shared", "state": True}
            case "getfd":
                assert len(files) == 1
            case "migrate":
                assert arguments == {"uri": "fd:state"}
                with socket.socket(fileno=files.pop()) as target:
                    target.sendall(state)
            case "query-migrate":
                return statuses.pop(0)
        return {}

    return answer


async def test_a_state_is_whole_when_qemu_says_so() -> None:
    states: list[bytes] = []

    async def use(qmp: Qmp) -> None:
        states.append(await migration.save(qmp))

    answer = save_into([{"status": "active"}, {"status": "device"}, {"status": "completed"}])
    commands = await session(answer, use)
    assert states == [b"state"]
    assert commands == [
        "stop",
        "migrate-set-capabilities",
        "getfd",
        "migrate",
        *["query-migrate"] * 3,
    ]


async def test_a_save_that_failed_is_no_state() -> None:
    async def use(qmp: Qmp) -> None:
        with pytest.raises(EngineError, match="a device said no") as caught:
            await migration.save(qmp)
        assert caught.value.code == "engine_failed"

    await session(save_into([{"status": "failed", "error-desc": "a device said no"}]), use)


async def test_a_state_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "STATE_LIMIT", 100)

    async def use(qmp: Qmp) -> None:
        with pytest.raises(EngineError, match="larger than 100 bytes"):
            await migration.save(qmp)

    await session(save_into([], b"x" * 101), use)


async def test_a_save_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "TIMEOUT", 0.05)

    async def use(qmp: Qmp) -> None:
        with pytest.raises(EngineError, match=r"within 0\.05 s"):
            await migration.save(qmp)

    # The answer comes, the bytes do not: the other end stays open.
    await session(lambda *_: {}, use)


async def test_a_state_is_given_whole_and_then_waited_for() -> None:
    taken: list[bytes] = []

    def answer(command: str, arguments: dict[str, Any], files: list[int]) -> object:
        if command == "migrate-incoming":
            source = files.pop()
            # As QEMU does: the answer comes first, the bytes are read afterwards.
            reader.append(asyncio.run_coroutine_threadsafe(asyncio.to_thread(read, source), loop))
            return {}
        if command == "query-status":
            reader[0].result(5)
            return {"status": statuses.pop(0)}
        return {}

    def read(source: int) -> None:
        with open(source, "rb") as file:
            taken.append(file.read())

    reader: list[Any] = []
    statuses = ["inmigrate", "inmigrate", "paused"]
    loop = asyncio.get_running_loop()
    commands = await session(answer, lambda qmp: migration.load(qmp, STATE))
    assert taken == [STATE]
    assert commands[:3] == ["migrate-set-capabilities", "getfd", "migrate-incoming"]
    assert commands[3:] == ["query-status"] * 3


@pytest.mark.parametrize(
    ("statuses", "code"), [([], "sandbox_died"), (["internal-error"], "engine_failed")]
)
async def test_what_does_not_load_is_the_states_fault(statuses: list[str], code: str) -> None:
    def answer(command: str, _arguments: dict[str, Any], _files: list[int]) -> object:
        if command != "query-status":
            return {}
        return {"status": statuses[0]} if statuses else None

    async def use(qmp: Qmp) -> None:
        with pytest.raises(EngineError) as caught:
            await migration.load(qmp, b"small")
        assert (caught.value.code, caught.value.details) == (code, {"template": True})

    await session(answer, use)


async def test_a_process_that_takes_no_more_has_not_loaded() -> None:
    def answer(command: str, arguments: dict[str, Any], files: list[int]) -> object:
        if command == "migrate-incoming":
            os.close(files.pop())
        return {}

    async def use(qmp: Qmp) -> None:
        with pytest.raises(EngineError) as caught:
            await migration.load(qmp, STATE)
        assert caught.value.details == {"template": True}

    await session(answer, use)
