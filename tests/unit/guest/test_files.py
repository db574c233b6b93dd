import asyncio
from collections.abc import AsyncIterator

import pytest

from hutch.errors import HutchError
from hutch.guest.base import Guest
from hutch.guest.fake import FakeAgent
from hutch.guest.files import parse_entry
from hutch.guest.frames import WINDOW, FrameType, encode_frame
from hutch.guest.messages import GuestProtocolError, encode_map
from tests.unit.guest.scripted import ScriptedGuest, message

ENTRY = {
    "name": b"f",
    "type": "file",
    "mode": 0o644,
    "uid": 0,
    "gid": 0,
    "size": 1,
    "mtime_ns": -1,
    "nlink": 1,
    "rdev": 0,
    "target": None,
}


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"../x", b"a\0"])
def test_impossible_names_in_a_directory(name: bytes) -> None:
    with pytest.raises(GuestProtocolError):
        parse_entry(ENTRY | {"name": name}, listed=True)


@pytest.mark.parametrize(
    "wrong", [{"type": "door"}, {"type": None}, {"mode": -1}, {"uid": 1 << 32}, {"target": 1}]
)
def test_impossible_entries(wrong: dict[str, object]) -> None:
    with pytest.raises(GuestProtocolError):
        parse_entry(ENTRY | wrong)


async def source(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def failure_of(awaitable: object) -> HutchError:
    with pytest.raises(HutchError) as caught:
        await asyncio.wait_for(awaitable, 60)  # type: ignore[arg-type]
    return caught.value


async def drain(chunks: AsyncIterator[object]) -> list[object]:
    return [chunk async for chunk in chunks]


@pytest.mark.parametrize("path", ["relative", "", "/a\0b"])
async def test_paths_are_checked_before_they_travel(guest: Guest, path: str) -> None:
    assert (await failure_of(guest.files.stat(path))).code == "bad_path"
    assert (await failure_of(drain(guest.files.read(path)))).code == "bad_path"
    assert (await failure_of(guest.files.write(path, source()))).code == "bad_path"


async def transfer(scripted: ScriptedGuest, guest: Guest, *raw: bytes) -> HutchError:
    """Let the guest answer a read with `raw`, and return what the reader gets."""
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(failure_of(drain(guest.files.read("/f"))))
        request = await scripted.request("fs.read")
        scripted.send(message(FrameType.REPLY, request.stream, {"entry": ENTRY}))
        for part in raw:
            header = part[:4] + request.stream.to_bytes(4, "little") + part[8:]
            scripted.send(header)
    return reading.result()


async def test_a_transfer_with_a_wrong_count(scripted: ScriptedGuest) -> None:
    guest = await scripted.connect()
    data = encode_frame(FrameType.DATA, 0, b"abc", 1)
    failure = await transfer(scripted, guest, data, message(FrameType.RESULT, 0, {"bytes": 4}))
    assert failure.code == "guest_protocol"


async def test_a_gap_in_a_file(scripted: ScriptedGuest) -> None:
    guest = await scripted.connect()
    failure = await transfer(scripted, guest, encode_frame(FrameType.GAP, 0, bytes(8), 1))
    assert failure.code == "guest_protocol"
    assert guest.closed


async def test_an_error_in_the_middle(scripted: ScriptedGuest) -> None:
    guest = await scripted.connect()
    error = message(FrameType.ERROR, 0, {"code": "io", "message": "bad sector", "errno": 5})
    failure = await transfer(scripted, guest, encode_frame(FrameType.DATA, 0, b"abc", 1), error)
    assert (failure.code, "/f: bad sector" in failure.message) == ("guest_failed", True)
    assert not guest.closed


async def test_a_stalled_transfer_is_given_up(
    scripted: ScriptedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = await scripted.connect()
    monkeypatch.setattr(guest.files, "_stall", 0.1)
    assert (await transfer(scripted, guest)).code == "guest_timeout"
    assert (await scripted.frame()).type == FrameType.CLOSE


async def test_a_guest_that_takes_no_upload(
    scripted: ScriptedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = await scripted.connect()
    monkeypatch.setattr(guest.files, "_stall", 0.2)
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(failure_of(guest.files.write("/f", source(bytes(2 * WINDOW)))))
        request = await scripted.request("fs.write")
        scripted.send(message(FrameType.REPLY, request.stream, {}))
        taken = 0
        while (frame := await scripted.frame()).type == FrameType.DATA:
            taken += len(frame.payload)
    assert writing.result().code == "guest_timeout"
    assert (taken, frame.type) == (WINDOW, FrameType.CLOSE)


@pytest.mark.parametrize(
    ("listing", "entries"),
    [
        (encode_map(ENTRY), 2),
        (encode_map(ENTRY)[:-1], 0),
        (encode_map(ENTRY | {"name": b"../../etc/passwd"}), 1),
        (b"\x01", 1),
    ],
)
async def test_a_broken_listing(scripted: ScriptedGuest, listing: bytes, entries: int) -> None:
    guest = await scripted.connect()
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(failure_of(drain(guest.files.list("/d"))))
        request = await scripted.request("fs.list")
        scripted.send(message(FrameType.REPLY, request.stream, {}))
        scripted.send(encode_frame(FrameType.DATA, request.stream, listing, 1))
        scripted.send(message(FrameType.RESULT, request.stream, {"entries": entries}))
    assert reading.result().code == "guest_protocol"


async def test_a_slow_reader_holds_the_sender_back(agent: FakeAgent, guest: Guest) -> None:
    await guest.files.write("/data/f", source(bytes(4 * WINDOW)))
    chunks = guest.files.read("/data/f")
    first = await anext(aiter(chunks))
    await guest.ping()
    inbox = next(iter(guest._link._streams.values()))._inbox  # type: ignore[attr-defined]
    waiting = sum(len(item.data) for _, item in inbox._queue)
    assert len(first) + waiting <= WINDOW
    assert sum([len(part) async for part in chunks]) + len(first) == 4 * WINDOW
