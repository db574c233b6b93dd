"""Greeting, sorting of frames, and hostile guests; over real sockets."""

import asyncio
import time

import pytest

from hutch.errors import HutchError
from hutch.guest.base import Guest, GuestExec
from hutch.guest.frames import (
    MAGIC,
    VERSION,
    WINDOW,
    FrameType,
    Preamble,
    PreambleKind,
    encode_credit,
    encode_frame,
    encode_gap,
)
from hutch.guest.session import connect_guest
from tests.unit.guest.scripted import HELLO_EVENT, ScriptedGuest, message


def welcome(hello: Preamble, *, version: int = VERSION, nonce: bytes | None = None) -> bytes:
    return Preamble(PreambleKind.WELCOME, version, nonce or hello.nonce).encode()


HELLO = message(FrameType.EVENT, 0, HELLO_EVENT)


async def failure_of(awaitable: object) -> HutchError:
    with pytest.raises(HutchError) as caught:
        await asyncio.wait_for(awaitable, 60)  # type: ignore[arg-type]
    return caught.value


async def test_hello_is_repeated_until_the_guest_has_booted(scripted: ScriptedGuest) -> None:
    async with asyncio.TaskGroup() as group:
        session = group.create_task(connect_guest(scripted.path, timeout=60))
        nonces = [(await scripted.hello()).nonce for _ in range(3)]
        last = await scripted.hello()
        scripted.send(welcome(last) + HELLO)
    assert len({*nonces, last.nonce}) == 4
    await session.result().close()


async def test_a_guest_that_reads_all_hellos_at_once(scripted: ScriptedGuest) -> None:
    """Answers to the earlier ones, and what follows them, belong to connections that are over."""
    async with asyncio.TaskGroup() as group:
        session = group.create_task(connect_guest(scripted.path, timeout=60))
        hellos = [await scripted.hello() for _ in range(3)]
        scripted.send(b"".join(welcome(hello) + HELLO for hello in hellos))
        guest = session
    await answer_ping(scripted, guest.result())
    await guest.result().close()


async def answer_ping(scripted: ScriptedGuest, guest: Guest) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(guest.ping())
        request = await scripted.request("ping")
        scripted.send(message(FrameType.REPLY, request.stream, {}))


async def test_rubbish_before_the_welcome_is_thrown_away(scripted: ScriptedGuest) -> None:
    async with asyncio.TaskGroup() as group:
        session = group.create_task(connect_guest(scripted.path, timeout=60))
        hello = await scripted.hello()
        rubbish = bytes(range(256)) * 500 + welcome(hello)[:20] + welcome(hello, nonce=b"x" * 16)
        raw = rubbish + welcome(hello) + HELLO
        for start in range(0, len(raw), 1000):
            scripted.send(raw[start : start + 1000])
    await answer_ping(scripted, session.result())
    await session.result().close()


async def test_a_welcome_with_a_wrong_nonce_is_no_welcome(scripted: ScriptedGuest) -> None:
    async def answer() -> None:
        while True:
            scripted.send(welcome(await scripted.hello(), nonce=b"x" * 16) + HELLO)

    async with asyncio.TaskGroup() as group:
        answering = group.create_task(answer())
        failure = await failure_of(connect_guest(scripted.path, timeout=0.4))
        answering.cancel()
    assert failure.code == "guest_timeout"


async def test_no_common_version(scripted: ScriptedGuest) -> None:
    async with asyncio.TaskGroup() as group:
        session = group.create_task(failure_of(connect_guest(scripted.path, timeout=60)))
        scripted.send(welcome(await scripted.hello(), version=0))
    assert session.result().code == "guest_failed"


async def test_a_silent_guest_ends_at_the_deadline(scripted: ScriptedGuest) -> None:
    started = time.monotonic()
    assert (await failure_of(connect_guest(scripted.path, timeout=0.3))).code == "guest_timeout"
    assert time.monotonic() - started < 30


async def test_a_welcome_without_the_first_event(scripted: ScriptedGuest) -> None:
    async with asyncio.TaskGroup() as group:
        session = group.create_task(failure_of(connect_guest(scripted.path, timeout=0.5)))
        scripted.send(welcome(await scripted.hello()))
    assert session.result().code == "guest_timeout"


async def test_closing_during_the_greeting(scripted: ScriptedGuest) -> None:
    async with asyncio.TaskGroup() as group:
        session = group.create_task(failure_of(connect_guest(scripted.path, timeout=60)))
        await scripted.hello()
        scripted.hang_up()
    assert session.result().code == "sandbox_died"


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff" * 12,
        encode_frame(FrameType.REPLY, 99, b"\x80"),
        encode_frame(FrameType.REPLY, 0, b"\x80"),
        encode_frame(FrameType.EVENT, 1, b"\x81\xa5event\xa1x"),
        encode_frame(FrameType.EVENT, 0, b"\x80"),
        encode_frame(FrameType.EVENT, 0, b"\x81\xa1a" + b"\x91" * 3000),
        bytes([FrameType.REPLY, 0, 0, 0, 1, 0, 0, 0, 255, 255, 255, 255]),
        Preamble(PreambleKind.WELCOME, VERSION, b"n" * 16).encode(),
    ],
    ids=lambda raw: raw[:13].hex(),
)
async def test_violations_close_the_connection(scripted: ScriptedGuest, raw: bytes) -> None:
    guest = await scripted.connect()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(failure_of(guest.ping()))
        await scripted.request("ping")
        scripted.send(raw)
    assert waiting.result().code == "guest_protocol"
    assert guest.closed
    assert (await failure_of(guest.ping())).code == "guest_protocol"


def data(stream: int, size: int, channel: int = 1) -> bytes:
    return encode_frame(FrameType.DATA, stream, bytes(size), channel)


REPLY = {"pid": 1, "started_ns": 1}


@pytest.mark.parametrize(
    "frames",
    [
        lambda n: data(n, 64 << 10) * 17,
        lambda n: encode_credit(n, 0, 1),
        lambda n: encode_credit(n, 0, (1 << 32) - 1),
        lambda n: message(FrameType.REPLY, n, REPLY),
        lambda n: encode_frame(FrameType.END, n, channel=1) + data(n, 1),
        lambda n: encode_frame(FrameType.END, n, channel=1) * 2,
        lambda n: encode_gap(n, 1, 1) * 2000,
        lambda n: encode_gap(n, 1, (1 << 64) - 1),
        lambda n: message(FrameType.RESULT, n, {"code": "x"}),
        lambda n: message(FrameType.RESULT, n, {}),
        lambda n: message(FrameType.RESULT, n, {"code": 1, "signal": 1}),
        lambda n: message(FrameType.ERROR, n, {"message": "no code"}),
        lambda n: encode_frame(FrameType.RESULT, n, b"\xc1"),
    ],
)
async def test_violations_on_a_stream_close_the_connection(
    scripted: ScriptedGuest, frames: object
) -> None:
    guest = await scripted.connect()
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(guest.start_exec(GuestExec("x", ["x"])))
        request = await scripted.request("exec.start")
        scripted.send(message(FrameType.REPLY, request.stream, REPLY))
    stream = starting.result()
    scripted.send(frames(request.stream))  # type: ignore[operator]

    async def drain() -> None:
        async for _ in stream:
            pass

    assert (await failure_of(drain())).code == "guest_protocol"
    assert guest.closed


async def test_frames_of_a_stream_that_is_gone_are_ignored(scripted: ScriptedGuest) -> None:
    guest = await scripted.connect()
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(guest.start_exec(GuestExec("x", ["x"])))
        request = await scripted.request("exec.start")
        scripted.send(message(FrameType.REPLY, request.stream, REPLY))
    await starting.result().close()
    assert (await scripted.frame()).type == FrameType.CLOSE
    scripted.send(data(request.stream, 64 << 10) * 40)
    await answer_ping(scripted, guest)
    assert not guest.closed


async def test_a_guest_that_never_answers(
    scripted: ScriptedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hutch.guest.machine.DEFAULT_TIMEOUT", 0.1)
    guest = await scripted.connect()
    assert (await failure_of(guest.stats())).code == "guest_timeout"
    request = await scripted.request("stats")
    assert (await scripted.frame()).type == FrameType.CLOSE
    # The late answer harms nobody.
    scripted.send(message(FrameType.REPLY, request.stream, {}))
    await answer_ping(scripted, guest)


async def test_a_guest_that_never_reads(
    scripted: ScriptedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hutch.guest.exec.DEFAULT_TIMEOUT", 0.1)
    guest = await scripted.connect()
    big = GuestExec("x", ["x", "y" * 900_000])
    codes = {(await failure_of(guest.start_exec(big))).code for _ in range(5)}
    assert codes == {"guest_timeout"}
    buffered = guest._link._transport.get_write_buffer_size()  # type: ignore[attr-defined]
    assert buffered < 4 * WINDOW


async def test_a_flood_of_events_is_bounded(scripted: ScriptedGuest) -> None:
    guest = await scripted.connect()
    events = guest._link.events  # type: ignore[attr-defined]
    small = message(FrameType.EVENT, 0, {"event": "oom"}) * 1000
    large = message(FrameType.EVENT, 0, {"event": "oom", "process": "x" * 200_000})
    for _ in range(20):
        scripted.send(small + large)
        await scripted.drain()
    await answer_ping(scripted, guest)
    assert 0 < len(events) <= 1024
    assert events._bytes <= 1 << 20


async def test_a_lost_connection_fails_everyone(scripted: ScriptedGuest) -> None:
    guest = await scripted.connect()
    events = guest.events()
    async with asyncio.TaskGroup() as group:
        ping = group.create_task(failure_of(guest.ping()))
        stats = group.create_task(failure_of(guest.stats()))
        ended = group.create_task(collect(events))
        await scripted.request("ping")
        scripted.hang_up()
    assert {ping.result().code, stats.result().code} == {"sandbox_died"}
    assert ended.result() == []
    await asyncio.wait_for(guest.wait_closed(), 60)
    assert (await failure_of(guest.ping())).code == "sandbox_died"


async def collect(events: object) -> list[object]:
    return [event async for event in events]  # type: ignore[attr-defined]


async def test_a_request_with_the_magic_never_leaves(scripted: ScriptedGuest) -> None:
    guest = await scripted.connect()
    path = "/" + MAGIC.decode("utf-8", "surrogateescape")
    assert (await failure_of(guest.files.stat(path))).code == "bad_request"
    await answer_ping(scripted, guest)


async def test_closing_is_final_and_may_be_repeated(scripted: ScriptedGuest) -> None:
    guest = await scripted.connect()
    await guest.close()
    await guest.close()
    assert guest.closed
    assert (await failure_of(guest.ping())).code == "sandbox_died"
