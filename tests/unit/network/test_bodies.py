"""Bodies of HTTP messages, however they are cut."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.network.bodies import (
    CHUNKS,
    EXTENSION_LIMIT,
    TRAILER_LIMIT,
    Body,
    Chunked,
    Counted,
    Endless,
)
from hutch.network.heads import BadHead


def read(body: Body, data: bytes, step: int) -> tuple[bytes, bytes]:
    """Feed so many bytes at a time. Returns what was in the body, and what came after it."""
    buffer, inside = bytearray(), b""
    for at in range(0, len(data), step):
        buffer += data[at : at + step]
        if not body.done:
            inside += body.read(buffer)
    return inside, bytes(buffer)


STEPS = [1, 2, 3, 5, 1000]


@pytest.mark.parametrize("step", STEPS)
def test_a_counted_body(step: int) -> None:
    body = Counted(5)
    assert read(body, b"hellothere", step) == (b"hello", b"there")
    assert body.done
    assert Counted(0).done


@pytest.mark.parametrize("step", STEPS)
def test_a_body_that_ends_with_its_connection(step: int) -> None:
    assert read(Endless(), b"hello", step) == (b"hello", b"")


def test_bytes_pass_a_body_unread_when_they_are_all_in_it() -> None:
    counted, chunked = Counted(5), Chunked()
    assert not chunked.pass_by(1), "its size comes first"
    chunked.read(bytearray(b"5\r\n"))
    for body in (counted, chunked):
        assert not body.pass_by(6)
        assert body.pass_by(3)
        assert not body.pass_by(2), "the last one is to be read"
        assert body.read(bytearray(b"lo\r\n0\r\n\r\n")) == b"lo"
        assert body.done
        assert not body.pass_by(1)
    assert Endless().pass_by(1000)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("data", "inside"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"1\r\n\r\r\n2\r\n\r\n\r\n0\r\n\r\n", b"\r\r\n"),
        (b"00005\r\nhello\r\nA\r\n0123456789\r\n000\r\n\r\n", b"hello0123456789"),
        (b'5 ; a="b"\r\nhello\r\n0;x\r\n\r\n', b"hello"),
        (b"5" + b";" + b"x" * (EXTENSION_LIMIT - 1) + b"\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"5  \r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"1\r\nx\r\n0\r\nDigest: a\r\nHost: evil\r\n\r\n", b"x"),
    ],
)
def test_a_chunked_body(data: bytes, inside: bytes, step: int) -> None:
    body = Chunked()
    assert read(body, data + b"GET /", step) == (inside, b"GET /")
    assert body.done


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "data",
    [
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello!\r\n0\r\n\r\n",
        b"5\r\nhell\r\n0\r\n\r\n",
        b"\r\n0\r\n\r\n",
        b"x\r\n",
        b"-1\r\n",
        b"+5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"5_0\r\n",
        b" 5\r\nhello\r\n",
        b"5 6\r\nhello\r\n",
        b"5\r\r\nhello\r\n",
        b"5;a\rb\r\nhello\r\n",
        b"5;a\0\r\nhello\r\n",
        b"5;a\x0b\r\nhello\r\n",
        b"1" * 16 + b"\r\n",
        b"5;" + b"x" * EXTENSION_LIMIT + b"\r\nhello\r\n",
        b"5;" + b"x" * 1000,
        b"5" + b" " * 1000,
        b"0\r\n\n",
        b"0\r\nX: y\n\r\n",
        b"0\r\nX : y\r\n\r\n",
        b"0\r\n y\r\n\r\n",
        b"0\r\nX: " + b"y" * TRAILER_LIMIT + b"\r\n\r\n",
    ],
)
def test_a_chunked_body_that_can_be_read_in_two_ways(data: bytes, step: int) -> None:
    with pytest.raises(BadHead):
        read(Chunked(), data, step)


def test_of_many_chunks_no_more_are_read_at_once_than_others_can_wait_for() -> None:
    body, count = Chunked(), 5 * CHUNKS
    buffer, reads = bytearray(b"1\r\nx\r\n" * count + b"0\r\n\r\nGET /"), []
    while not body.done:
        reads.append(body.read(buffer))
        assert body.stopped != body.done
    assert reads == [b"x" * CHUNKS] * 5 + [b""]
    assert buffer == b"GET /"


def test_a_body_that_wants_more_bytes_has_not_stopped() -> None:
    body = Chunked()
    assert body.read(bytearray(b"1\r\nx\r\n" * CHUNKS)) == b"x" * CHUNKS
    assert body.stopped, "it may be that there is more"
    assert body.read(bytearray()) == b""
    assert not body.stopped
    assert body.read(bytearray(b"2\r\nx")) == b"x"
    assert not body.stopped
    assert not Counted(1).stopped
    assert not Endless().stopped


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=50), max_size=20),
    steps=st.lists(st.integers(1, 60), min_size=1, max_size=20),
    after=st.binary(max_size=30),
)
def test_chunks_cut_anyhow(chunks: list[bytes], steps: list[int], after: bytes) -> None:
    data = b"".join(b"%X\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n" + after
    body, buffer, inside, at, turn = Chunked(), bytearray(), b"", 0, 0
    while at < len(data):
        buffer += data[at : at + steps[turn % len(steps)]]
        at += steps[turn % len(steps)]
        turn += 1
        if not body.done:
            inside += body.read(buffer)
    assert body.done
    assert (inside, bytes(buffer)) == (b"".join(chunks), after)


@given(st.binary(max_size=300))
def test_nothing_but_a_body_or_a_refusal_comes_of_any_bytes(noise: bytes) -> None:
    for data in (noise, b"5\r\nhello\r\n" + noise, b"0\r\n" + noise):
        body, buffer = Chunked(), bytearray(data)
        with contextlib.suppress(BadHead):
            assert len(body.read(buffer)) + len(buffer) <= len(data)
