import contextlib
import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.guest.messages import GuestProtocolError, MapStream, decode_map, encode_map

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.text(), st.binary()
)
MAPS = st.dictionaries(st.text(), st.one_of(LEAVES, st.lists(LEAVES)), max_size=6)


@given(MAPS)
def test_maps_come_back(value: dict[str, object]) -> None:
    assert decode_map(encode_map(value)) == value


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc0",
        b"\x93\x01\x02\x03",
        b"\x81",
        b"\x80\x00",
        b"\x81\x01\x02",
        b"\x81\xa1\xff\x01",
        b"\x81\xc4\x01a\x01",
        b"\x81\x90\x01",
        b"\xc1",
        b"\x81\xa1a\xd6\xff\x00\x00\x00\x00",
        b"\x81\xa1a\xd4\x01\x00",
        b"\x81\xa1a" * 9 + b"\x80",
        b"\x81\xa1a" + b"\x91" * 5000,
        b"\x81\xa1a\xdd\xff\xff\xff\xff",
        b"\x81\xa1a\xdf\xff\xff\xff\xff",
        b"\x81\xa1a\xc6\xff\xff\xff\xff",
        b"\x81\xa1a\xdc\x10\x01" + b"\xc0" * 4097,
    ],
    ids=lambda payload: payload[:12].hex() or "empty",
)
def test_everything_else_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(GuestProtocolError):
        decode_map(payload)


@given(st.binary(max_size=300))
def test_noise_raises_nothing_else(payload: bytes) -> None:
    with contextlib.suppress(GuestProtocolError):
        assert isinstance(decode_map(payload), dict)


@pytest.mark.parametrize(
    "header", [b"\xdd\x00\x03\xff\xff", b"\xdd\x00\x00\x0f\xff", b"\xdc\x0f\xff"]
)
def test_a_bomb_of_nested_arrays_takes_little_memory(header: bytes) -> None:
    bomb = b"\x81\xa1a" + header * (200_000 // len(header))
    tracemalloc.start()
    with pytest.raises(GuestProtocolError):
        decode_map(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20


@given(st.lists(MAPS, max_size=8), st.integers(1, 50))
def test_a_listing_survives_any_split(rows: list[dict[str, object]], step: int) -> None:
    raw = b"".join(encode_map(row) for row in rows)
    stream = MapStream()
    found = [
        row for start in range(0, len(raw), step) for row in stream.feed(raw[start : start + step])
    ]
    assert found == rows
    assert stream.pending == 0


def test_a_listing_that_is_cut_off_shows() -> None:
    stream = MapStream()
    assert list(stream.feed(encode_map({"a": 1}) + b"\x81\xa1")) == [{"a": 1}]
    assert stream.pending == 2


def test_an_endless_item_is_refused() -> None:
    stream = MapStream(limit=1000)
    assert list(stream.feed(b"\x81\xa1a\xc5\x03\xe0" + bytes(500))) == []
    with pytest.raises(GuestProtocolError):
        list(MapStream(limit=1000).feed(b"\x82\xa1a\xc5\x03\xe0" + bytes(995)))


@pytest.mark.parametrize("raw", [b"\x01", b"\xc1", msgpack.packb([1]), b"\x81\x01\x01"])
def test_a_listing_holds_maps_only(raw: bytes) -> None:
    with pytest.raises(GuestProtocolError):
        list(MapStream().feed(raw))
