import asyncio
import itertools

from hutch.guest.fake import FakeAgent
from hutch.guest.frames import (
    Direction,
    FrameDecoder,
    FrameType,
    Preamble,
    PreambleKind,
    PreambleScanner,
    encode_message,
)

HELLO = Preamble(PreambleKind.HELLO, 1, b"n" * 16).encode()


async def talk(agent: FakeAgent, raw: bytes) -> bytes:
    """Send bytes, end, and return all that came back."""
    reader, writer = await asyncio.open_unix_connection(agent.path)
    writer.write(raw)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    return answer


def after_welcome(answer: bytes) -> list[FrameType]:
    """Return the types of the frames after the last WELCOME."""
    scanner = PreambleScanner(PreambleKind.WELCOME)
    scanner.feed(answer)
    while scanner.next() is not None:
        pass
    return [frame.type for frame in FrameDecoder(Direction.TO_HOST).feed(scanner.rest())]


def ping(number: int) -> bytes:
    return encode_message(FrameType.REQUEST, number, {"op": "ping"})


async def test_a_hello_anywhere_begins_anew(agent: FakeAgent) -> None:
    raw = b"rubbish" + HELLO + ping(1) + ping(2)[:5] + HELLO + ping(1)
    assert after_welcome(await talk(agent, raw)) == [FrameType.EVENT, FrameType.REPLY]


async def test_a_violation_is_followed_by_silence_until_the_next_hello(agent: FakeAgent) -> None:
    broken = HELLO + b"\xff" * 12 + ping(1)
    assert after_welcome(await talk(agent, broken)) == [FrameType.EVENT]
    assert after_welcome(await talk(agent, broken + HELLO + ping(1))) == [
        FrameType.EVENT,
        FrameType.REPLY,
    ]


async def test_a_version_that_nobody_speaks(agent: FakeAgent) -> None:
    answer = await talk(agent, Preamble(PreambleKind.HELLO, 0, b"n" * 16).encode() + ping(1))
    assert answer == Preamble(PreambleKind.WELCOME, 0, b"n" * 16).encode()


async def test_bytes_may_come_one_by_one(agent: FakeAgent) -> None:
    reader, writer = await asyncio.open_unix_connection(agent.path)
    for byte in itertools.chain(HELLO, ping(1)):
        writer.write(bytes([byte]))
        await writer.drain()
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    assert after_welcome(answer) == [FrameType.EVENT, FrameType.REPLY]
