"""Random corruption of a whole conversation, fed to a live link without a socket.

HUTCH_TEST_FUZZ_SECONDS runs it longer, HUTCH_TEST_FUZZ_SEED repeats a run.
"""

import asyncio
import os
import random
import time
from collections.abc import Sequence

from hutch.guest.base import ExecStream, GuestExec
from hutch.guest.frames import (
    WINDOW,
    FrameType,
    Preamble,
    PreambleKind,
    encode_credit,
    encode_frame,
    encode_gap,
)
from hutch.guest.link import Link
from hutch.guest.machine import parse_info
from hutch.guest.messages import encode_map
from hutch.guest.session import GuestSession
from tests.unit.guest.scripted import HELLO_EVENT, message

SECONDS = float(os.environ.get("HUTCH_TEST_FUZZ_SECONDS", "2"))
SEED = int(os.environ.get("HUTCH_TEST_FUZZ_SEED", time.time_ns() % 1_000_000))
REPLY = message(FrameType.REPLY, 1, {"pid": 1, "started_ns": 1})
RESULT = {"code": 0, "signal": None}
ENTRY = {"name": b"f", "type": "file", "mode": 1, "uid": 1, "gid": 1, "size": 1, "mtime_ns": 1}


class Transport(asyncio.Transport):
    """Takes the host's bytes and remembers its HELLOs."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False
        self.sent = b""

    def writelines(self, list_of_data: Sequence[object]) -> None:  # type: ignore[override]
        self.sent = b"".join(bytes(part) for part in list_of_data)  # type: ignore[call-overload]

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


def feed(link: Link, raw: bytes) -> None:
    while raw and not link.closed:
        room = link.get_buffer(-1)
        size = min(len(room), len(raw))
        room[:size] = raw[:size]
        link.buffer_updated(size)
        raw = raw[size:]


async def greeted() -> tuple[Link, Transport]:
    link, transport = Link(), Transport()
    link.connection_made(transport)
    async with asyncio.TaskGroup() as group:
        group.create_task(link.greet(5))
        await asyncio.sleep(0)
        nonce = transport.sent[20:36]
        feed(link, Preamble(PreambleKind.WELCOME, 1, nonce).encode())
    return link, transport


def conversation(source: random.Random) -> bytes:
    """Return frames that a guest might send on streams 1 (an exec), 2 (a listing) and 3 (stats)."""
    frames = [REPLY, message(FrameType.REPLY, 2, {}), message(FrameType.REPLY, 3, {})]
    for _ in range(source.randrange(40)):
        frames.append(
            source.choice(
                [
                    encode_frame(FrameType.DATA, 1, source.randbytes(source.randrange(3000)), 1),
                    encode_frame(FrameType.DATA, 1, b"x", source.choice((1, 2))) * 50,
                    encode_frame(FrameType.DATA, 2, encode_map(ENTRY), 1),
                    encode_gap(1, 2, source.getrandbits(40)),
                    encode_credit(1, 0, 0),
                    message(FrameType.EVENT, 0, {"event": "oom", "n": source.random()}),
                    message(FrameType.ERROR, 3, {"code": "io", "message": "x"}),
                ]
            )
        )
    frames.append(encode_frame(FrameType.END, 1, b"", 1))
    frames.append(message(FrameType.RESULT, 1, RESULT))
    frames.append(message(FrameType.RESULT, 2, {"entries": 3}))
    raw = bytearray(b"".join(frames))
    for _ in range(source.choice((0, 0, 1, 3, 20))):
        raw[source.randrange(len(raw))] = source.randrange(256)
    if source.random() < 0.2:
        at = source.randrange(len(raw))
        raw[at : at + source.randrange(20)] = source.randbytes(source.randrange(20))
    return bytes(raw)


def held(link: Link) -> int:
    """Return the bytes of data that wait in all streams."""
    return sum(
        len(getattr(item, "data", b""))
        for stream in link._streams.values()
        for _, item in stream._inbox._queue
    )


async def read_all(exec_: ExecStream) -> None:
    async for _ in exec_:
        pass


async def one_round(source: random.Random) -> None:
    link, transport = await greeted()
    session = GuestSession(link, parse_info(HELLO_EVENT), 0.001)
    exec_task = asyncio.get_running_loop().create_task(session.start_exec(GuestExec("a", ["x"])))
    await asyncio.sleep(0)

    async def listing() -> list[object]:
        return [entry async for entry in session.files.list("/")]

    async def attached() -> None:
        await read_all(await exec_task)

    work = [attached(), listing(), session.stats()]
    tasks = [asyncio.get_running_loop().create_task(item) for item in work]
    raw = conversation(source)
    while raw and not link.closed:
        size = source.randrange(1, len(raw) + 1)
        feed(link, raw[:size])
        assert held(link) <= 2 * 2 * WINDOW
        await asyncio.sleep(0)
        raw = raw[size:]
    # Whatever came: the end of the connection ends everyone's waiting.
    link.connection_lost(None)
    done, pending = await asyncio.wait([*tasks, exec_task], timeout=60)
    assert not pending
    assert transport.aborted
    for task in done:
        failure = task.exception()
        if failure is not None and getattr(failure, "code", None) not in EXPECTED:
            raise failure


EXPECTED = {"guest_protocol", "sandbox_died", "guest_failed", "guest_refused", "path_not_found"}


async def test_corrupted_conversations_end_everyone_s_waiting() -> None:
    source = random.Random(SEED)
    deadline = time.monotonic() + SECONDS
    rounds = 0
    while time.monotonic() < deadline:
        try:
            await one_round(source)
        except BaseException as failure:
            raise AssertionError(f"HUTCH_TEST_FUZZ_SEED={SEED}, round {rounds}") from failure
        rounds += 1
    assert rounds > 10
