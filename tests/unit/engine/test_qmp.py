import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable

import pytest

from hutch.engine.qmp import Qmp
from hutch.errors import EngineError
from tests.unit.engine.stand_in import requests

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}, "capabilities": []}}
Script = Callable[[socket.socket], None]


def send(peer: socket.socket, *bodies: object) -> None:
    peer.sendall(b"".join(json.dumps(body).encode() + b"\r\n" for body in bodies))


def shutdown(reason: str) -> dict[str, object]:
    stamp = {"seconds": 1, "microseconds": 0}
    return {"event": "SHUTDOWN", "timestamp": stamp, "data": {"guest": True, "reason": reason}}


async def session(script: Script, use: Callable[[Qmp], Awaitable[None]]) -> None:
    """Run `script` as the peer of a session, and `use` with the session."""
    ours, theirs = socket.socketpair()

    def play() -> None:
        with theirs:
            send(theirs, GREETING)
            stream = requests(theirs)
            send(theirs, {"return": {}, "id": next(stream).get("id")})
            script(theirs)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.to_thread(play))
        qmp = await Qmp.open(ours, timeout=60)
        try:
            await use(qmp)
        finally:
            await qmp.close()
            await qmp.close()


async def test_a_result_comes_back() -> None:
    def answer(peer: socket.socket) -> None:
        request = next(requests(peer))
        assert request["arguments"] == {"a": 1}
        send(peer, {"return": {"status": request["execute"]}, "id": request["id"]})

    async def use(qmp: Qmp) -> None:
        assert await qmp.execute("query-status", {"a": 1}) == {"status": "query-status"}

    await session(answer, use)


async def test_a_refusal_has_qemus_words() -> None:
    def refuse(peer: socket.socket) -> None:
        request = next(requests(peer))
        body = {"class": "GenericError", "desc": "no such thing"}
        send(peer, {"error": body, "id": request["id"]})

    async def use(qmp: Qmp) -> None:
        with pytest.raises(EngineError, match="refused stop: no such thing"):
            await qmp.execute("stop")

    await session(refuse, use)


async def test_silence_has_an_end() -> None:
    async def use(qmp: Qmp) -> None:
        with pytest.raises(EngineError, match=r"within 0\.05 s") as caught:
            await qmp.execute("silence", timeout=0.05)
        assert caught.value.code == "engine_failed"

    await session(lambda peer: peer.recv(4096) and peer.recv(1) and None, use)


async def test_the_end_of_the_peer_ends_a_command() -> None:
    async def use(qmp: Qmp) -> None:
        with pytest.raises(EngineError) as caught:
            await qmp.execute("stop")
        assert caught.value.code == "sandbox_died"
        assert await qmp.shutdown_reason(timeout=60) is None

    await session(lambda peer: peer.recv(4096) and None, use)


async def test_the_last_reason_counts_and_is_kept() -> None:
    def answer(peer: socket.socket) -> None:
        request = next(requests(peer))
        send(peer, {"return": {}, "id": request["id"]})
        send(peer, shutdown("guest-panic"), shutdown("guest-reset"))

    async def use(qmp: Qmp) -> None:
        await qmp.execute("cont")
        assert await qmp.shutdown_reason(timeout=60) == "guest-reset"
        assert await qmp.shutdown_reason(timeout=60) == "guest-reset"

    await session(answer, use)


async def test_a_peer_that_hangs_up_once_the_session_stands() -> None:
    async def use(qmp: Qmp) -> None:
        await qmp.shutdown_reason(timeout=60)

    # The end may be noticed while the session is made, or right after.
    for _ in range(20):
        try:
            await session(lambda _peer: None, use)
        except* EngineError as group:
            codes = {failure.code for failure in group.exceptions}
            if codes != {"sandbox_died"}:
                raise


@pytest.mark.parametrize("data", [b"", b"hello\n", b"[]\n", b'{"QMP": 1}\n', b"x" * (1 << 20)])
async def test_a_peer_that_is_no_qemu(data: bytes) -> None:
    ours, theirs = socket.socketpair()

    def play() -> None:
        with theirs:
            try:
                theirs.sendall(data)
            except ConnectionError:
                return

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.to_thread(play))
        with pytest.raises(EngineError) as caught:
            await Qmp.open(ours, timeout=60)
    assert caught.value.code == "sandbox_died"
    assert ours.fileno() == -1


async def test_a_mute_peer_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(EngineError, match=r"within 0\.05 s"):
        await Qmp.open(ours, timeout=0.05)
    assert ours.fileno() == -1


async def test_events_cost_no_memory() -> None:
    def flood(peer: socket.socket) -> None:
        send(peer, *[{**shutdown("guest-reset"), "event": "VSERPORT_CHANGE"}] * 500)
        send(peer, *[shutdown("guest-reset")] * 500)
        request = next(requests(peer))
        send(peer, {"return": {}, "id": request["id"]})

    async def use(qmp: Qmp) -> None:
        await qmp.execute("query-status")
        assert not qmp._client.events.history
        assert qmp._client.events.empty()
        assert await qmp.shutdown_reason(timeout=60) == "guest-reset"

    await session(flood, use)


async def test_a_peer_cannot_choose_the_length_of_its_words() -> None:
    def answer(peer: socket.socket) -> None:
        request = next(requests(peer))
        body = {"class": "GenericError", "desc": "x" * 100_000}
        send(peer, shutdown("y" * 100_000), {"error": body, "id": request["id"]})

    async def use(qmp: Qmp) -> None:
        with pytest.raises(EngineError, match="refused stop: x") as caught:
            await qmp.execute("stop")
        assert len(caught.value.message) < 1000
        assert len(await qmp.shutdown_reason(timeout=60) or "") < 1000

    await session(answer, use)


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": ' + b"[" * 200_000 + b"\n",
        b'{"a": ' + b"9" * 100_000 + b"}\n",
        b'{"a": "\xff\xfe"}\n',
        b'{"a": "' + b"x" * (2 << 20) + b'"}\n',
    ],
)
async def test_hostile_messages_end_the_session_alone(line: bytes) -> None:
    def answer(peer: socket.socket) -> None:
        next(requests(peer))
        with contextlib.suppress(OSError):
            peer.sendall(line)
            peer.recv(1)

    async def use(qmp: Qmp) -> None:
        with pytest.raises(EngineError) as caught:
            await qmp.execute("query-status")
        assert caught.value.code == "sandbox_died"

    await session(answer, use)
