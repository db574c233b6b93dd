import json
import os
import random
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.guest import frames
from hutch.guest.frames import (
    DATA_SIZE,
    HEADER_SIZE,
    MAGIC,
    Direction,
    Frame,
    FrameDecoder,
    FrameType,
    Preamble,
    PreambleKind,
    PreambleScanner,
    encode_data,
    encode_frame,
    encode_message,
    split_data,
)
from hutch.guest.messages import GuestProtocolError
from scripts import golden_frames

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = json.loads((ROOT / "spec/golden-frames.json").read_text())
FRAMES = [row for row in GOLDEN if "type" in row]
PREAMBLES = [row for row in GOLDEN if "preamble" in row]
TO_HOST = b"".join(bytes.fromhex(row["hex"]) for row in FRAMES if row["direction"] == "to_host")


def name(row: dict[str, object]) -> str:
    return str(row["name"])


def decode(data: bytes, direction: Direction = Direction.TO_HOST) -> list[Frame]:
    return list(FrameDecoder(direction).feed(data))


def test_the_golden_file_is_what_its_script_writes() -> None:
    assert (ROOT / "spec/golden-frames.json").read_text() == golden_frames.generate()


@pytest.mark.parametrize("row", FRAMES, ids=name)
def test_golden_frames_are_decoded_and_encoded_again(row: dict[str, object]) -> None:
    raw = bytes.fromhex(str(row["hex"]))
    (frame,) = decode(raw, Direction[str(row["direction"]).upper()])
    assert (frame.type, frame.channel, frame.stream) == (row["type"], row["channel"], row["stream"])
    assert frame.payload.hex() == row["payload_hex"]
    if "message" in row:
        assert golden_frames.readable(frame.message()) == row["message"]
        assert encode_message(frame.type, frame.stream, frame.message()) == raw
    assert encode_frame(frame.type, frame.stream, frame.payload, frame.channel) == raw


@pytest.mark.parametrize("row", PREAMBLES, ids=name)
def test_golden_preambles(row: dict[str, object]) -> None:
    kind = PreambleKind[str(row["preamble"]).upper()]
    expected = Preamble(kind, int(str(row["version"])), bytes.fromhex(str(row["nonce_hex"])))
    assert expected.encode().hex() == row["hex"]
    scanner = PreambleScanner(kind)
    scanner.feed(bytes.fromhex(str(row["hex"])))
    assert scanner.next() == expected


def test_every_frame_type_and_operation_is_in_the_golden_file() -> None:
    assert {row["type"] for row in FRAMES} == set(FrameType)
    spec = (ROOT / "spec/guest-protocol.md").read_text()
    for row in FRAMES:
        if row["type"] == FrameType.REQUEST:
            assert f"`{row['message']['op']}`" in spec


@given(st.lists(st.integers(0, len(TO_HOST)), max_size=20))
def test_frames_survive_any_split(cuts: list[int]) -> None:
    decoder = FrameDecoder(Direction.TO_HOST)
    bounds = [0, *sorted(cuts), len(TO_HOST)]
    found = [frame for start, end in pairwise(bounds) for frame in decoder.feed(TO_HOST[start:end])]
    assert found == decode(TO_HOST)
    assert decoder.pending == 0


@given(st.lists(st.binary(max_size=200_000), max_size=6), st.integers(1, 300_000))
def test_large_frames_cross_the_buffer(parts: list[bytes], step: int) -> None:
    raw = b"".join(encode_frame(FrameType.REPLY, number, part) for number, part in enumerate(parts))
    decoder = FrameDecoder(Direction.TO_HOST)
    found = []
    for start in range(0, len(raw), step):
        found += decoder.feed(raw[start : start + step])
    assert [frame.payload for frame in found] == parts


def header(kind: int, channel: int = 0, reserved: int = 0, stream: int = 1, size: int = 0) -> bytes:
    return (
        bytes([kind, channel])
        + reserved.to_bytes(2, "little")
        + stream.to_bytes(4, "little")
        + size.to_bytes(4, "little")
    )


@pytest.mark.parametrize(
    "raw",
    [
        header(0),
        header(12),
        header(255),
        header(FrameType.REQUEST),
        header(FrameType.CLOSE),
        header(FrameType.CONTROL),
        header(FrameType.REPLY, reserved=1),
        header(FrameType.REPLY, channel=1),
        header(FrameType.REPLY, size=(256 << 10) + 1),
        header(FrameType.REPLY, size=(1 << 32) - 1),
        header(FrameType.DATA, channel=1, size=DATA_SIZE + 1),
        header(FrameType.DATA, channel=0),
        header(FrameType.DATA, channel=3),
        header(FrameType.END, channel=1, size=1),
        header(FrameType.END, channel=0),
        header(FrameType.CREDIT, size=3),
        header(FrameType.CREDIT, channel=1, size=4),
        header(FrameType.CREDIT, channel=3, size=4),
        header(FrameType.GAP, channel=1, size=4),
    ],
    ids=bytes.hex,
)
def test_a_bad_header_is_refused_before_its_payload_comes(raw: bytes) -> None:
    with pytest.raises(GuestProtocolError):
        decode(raw)


def test_limits_are_inclusive() -> None:
    (frame,) = decode(encode_frame(FrameType.REPLY, 1, bytes(256 << 10)))
    assert len(frame.payload) == 256 << 10
    (frame,) = decode(encode_frame(FrameType.REQUEST, 1, bytes(1 << 20)), Direction.TO_GUEST)
    assert len(frame.payload) == 1 << 20


def test_a_decoder_holds_one_frame_and_one_read_at_most() -> None:
    decoder = FrameDecoder(Direction.TO_HOST)
    list(decoder.feed(encode_frame(FrameType.REPLY, 1, bytes(256 << 10))[:-1]))
    assert decoder.pending == HEADER_SIZE + (256 << 10) - 1
    assert len(decoder.space()) <= (256 << 10) + 1


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.integers(0, 16).map(lambda n: MAGIC[:n]),
            st.integers(0, 16).map(lambda n: MAGIC[n:]),
            st.just(MAGIC),
            st.sampled_from([DATA_SIZE - 8, DATA_SIZE - 16, DATA_SIZE]).map(bytes),
        ),
        max_size=8,
    )
)
def test_the_magic_never_travels_in_data(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    raw = b"".join(
        part for cut in split_data(data) for part in (bytes(b) for b in encode_data(1, 0, cut))
    )
    assert MAGIC not in raw
    assert b"".join(f.payload for f in decode(raw, Direction.TO_GUEST)) == data


def test_the_magic_is_refused_in_a_request() -> None:
    with pytest.raises(ValueError, match="reserved"):
        encode_message(FrameType.REQUEST, 1, {"op": "fs.stat", "path": b"/" + MAGIC})


def test_a_request_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed"):
        encode_message(FrameType.REQUEST, 1, {"op": "x", "blob": bytes(1 << 20)})


@given(st.binary(max_size=60), st.integers(0, 100), st.binary(max_size=60))
def test_a_preamble_is_found_in_anything(before: bytes, cut: int, after: bytes) -> None:
    wanted = Preamble(PreambleKind.WELCOME, 1, b"n" * 16)
    raw = before + MAGIC[:9] + MAGIC + b"\x02" + wanted.encode() + after
    scanner = PreambleScanner(PreambleKind.WELCOME)
    scanner.feed(raw[:cut])
    found = scanner.next()
    scanner.feed(raw[cut:])
    found = found or scanner.next()
    assert found == wanted
    assert scanner.rest() == after


def test_a_damaged_preamble_is_no_preamble() -> None:
    good = Preamble(PreambleKind.WELCOME, 1, b"n" * 16).encode()
    for index in range(len(good)):
        scanner = PreambleScanner(PreambleKind.WELCOME)
        scanner.feed(good[:index] + bytes([good[index] ^ 1]) + good[index + 1 :])
        assert scanner.next() is None


def test_a_flood_of_preambles_takes_linear_time() -> None:
    flood = Preamble(PreambleKind.WELCOME, 1, b"n" * 16).encode() * 20_000
    scanner = PreambleScanner(PreambleKind.WELCOME)
    started = time.process_time()
    scanner.feed(flood)
    count = 0
    while scanner.next() is not None:
        count += 1
    assert count == 20_000
    assert time.process_time() - started < 10


def corrupted(source: random.Random) -> bytes:
    raw = bytearray(TO_HOST)
    for _ in range(source.randrange(1, 8)):
        raw[source.randrange(len(raw))] = source.randrange(256)
    start = source.randrange(len(raw))
    return bytes(raw[start:] if source.random() < 0.3 else raw)


def test_corruption_raises_nothing_but_protocol_errors() -> None:
    """The fuzz entry: HUTCH_TEST_FUZZ_SECONDS runs it longer, HUTCH_TEST_FUZZ_SEED repeats it."""
    seed = int(os.environ.get("HUTCH_TEST_FUZZ_SEED", time.time_ns() % 1_000_000))
    source = random.Random(seed)
    deadline = time.monotonic() + float(os.environ.get("HUTCH_TEST_FUZZ_SECONDS", "2"))
    while time.monotonic() < deadline:
        raw = source.randbytes(400) if source.random() < 0.2 else corrupted(source)
        decoder = FrameDecoder(Direction.TO_HOST)
        try:
            for frame in decoder.feed(raw):
                if frame.type in (FrameType.REPLY, FrameType.EVENT, FrameType.ERROR):
                    frame.message()
        except GuestProtocolError:
            pass
        except BaseException as failure:
            raise AssertionError(f"seed {seed}: {raw.hex()}") from failure
        assert decoder.pending <= len(raw)


def test_decoding_is_fast() -> None:
    """Tens of times below what the machine does, so that only a change of order fails it."""
    raw = encode_frame(FrameType.DATA, 1, bytes(DATA_SIZE), 1) * 64
    decoder = FrameDecoder(Direction.TO_HOST)
    started = time.process_time()
    total = sum(len(frame.payload) for _ in range(16) for frame in decoder.feed(raw))
    assert total > 100e6 * (time.process_time() - started)


def test_credit_and_gap_carry_numbers() -> None:
    (credit,) = decode(frames.encode_credit(1, 0, 5))
    (gap,) = decode(frames.encode_gap(1, 1, 1 << 40))
    assert (credit.credit(), gap.gap()) == (5, 1 << 40)
