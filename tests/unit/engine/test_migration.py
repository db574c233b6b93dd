"""The QMP side of saving and loading, against a peer that plays QEMU's part by hand."""

import asyncio
import fcntl
import json
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hutch.engine import migration
from hutch.engine.qmp import Qmp
from hutch.errors import EngineError
from tests.unit.descriptors import descriptors
from tests.unit.engine.stand_in import requests

Answer = Callable[[str, dict[str, Any], list[int]], object]
STATE = os.urandom(700_000)


class Refusal(str):
    """What QEMU says when it will not."""


async def session(answer: Answer, use: Callable[[Qmp], Awaitable[None]]) -> list[str]:
    """Run `use` with a session whose commands `answer` answers; returns the commands.

    An answer that is None hangs up, one that is a `Refusal` is an error.
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
                if isinstance(result, Refusal):
                    refusal = {"class": "GenericError", "desc": str(result)}
                    send({"error": refusal, "id": request.get("id")})
                else:
                    send({"return": result, "id": request.get("id")})
        for fd in files:
            os.close(fd)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.to_thread(play))
        qmp = await Qmp.open(ours, timeout=60)
        try:
            await use(qmp)
        finally:
            await qmp.close()
    return seen[1:]


def save_into(state: bytes = b"state", *, refuse: bool = False) -> Answer:
    """Play a QEMU that is handed a file and told to write to it."""
    handed: list[int] = []

    def answer(command: str, arguments: dict[str, Any], files: list[int]) -> object:
        match command:
            case "add-fd":
                [fd] = files
                assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
                handed.append(files.pop())
                return {"fdset-id": 7, "fd": 3}
            case "xen-save-devices-state":
                assert arguments == {"filename": "/dev/fdset/7", "live": False}
                if refuse:
                    return Refusal("a device said no")
                os.ftruncate(handed[0], 0)  # as it does with any file
                os.write(handed[0], state)
            case "remove-fd":
                assert arguments == {"fdset-id": 7}
                os.close(handed.pop())
        return {}

    return answer


async def test_a_state_is_what_qemu_wrote() -> None:
    states: list[bytes] = []

    async def use(qmp: Qmp) -> None:
        states.append(await migration.save(qmp))

    commands = await session(save_into(STATE), use)
    assert states == [STATE]
    assert commands == ["add-fd", "stop", "xen-save-devices-state", "remove-fd"]


async def test_a_save_that_failed_is_no_state() -> None:
    async def use(qmp: Qmp) -> None:
        with pytest.raises(EngineError, match="a device said no") as caught:
            await migration.save(qmp)
        assert caught.value.code == "engine_failed"

    assert (await session(save_into(refuse=True), use))[-1] == "remove-fd"


@pytest.mark.parametrize(("size", "message"), [(101, "larger than 100"), (0, "no state")])
async def test_a_state_without_end_or_content_is_refused(
    monkeypatch: pytest.MonkeyPatch, size: int, message: str
) -> None:
    monkeypatch.setattr(migration, "STATE_LIMIT", 100)

    async def use(qmp: Qmp) -> None:
        with pytest.raises(EngineError, match=message):
            await migration.save(qmp)

    await session(save_into(b"x" * size), use)


async def test_a_save_leaves_no_descriptor() -> None:
    before = descriptors()

    async def use(qmp: Qmp) -> None:
        await migration.save(qmp)

    await session(save_into(), use)
    assert descriptors() == before


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
    assert commands[:2] == ["getfd", "migrate-incoming"]
    assert commands[2:] == ["query-status"] * 3


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
