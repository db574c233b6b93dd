from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import DaemonError
from hutch.sdk.http1 import HEAD_LIMIT, ResponseParser, error_of, quote, request_head, target

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n"
    b"5\r\nhello\r\n10;x=y\r\n0123456789abcdef\r\n0\r\n\r\n"
)
PLAIN = b"HTTP/1.1 201 Created\r\ncontent-length: 4\r\n\r\nbody"


def parse(pieces: list[bytes], method: str = "GET") -> tuple[ResponseParser, bytes]:
    parser = ResponseParser(method)
    out = b"".join(part for piece in pieces for part in parser.feed(piece))
    return parser, out


@given(cuts=st.lists(st.integers(1, len(CHUNKED) - 1), max_size=6))
def test_chunks_however_they_arrive(cuts: list[int]) -> None:
    edges = sorted({0, *cuts, len(CHUNKED)})
    pieces = [CHUNKED[a:b] for a, b in pairwise(edges)]
    parser, out = parse(pieces)
    assert out == b"hello0123456789abcdef"
    assert (parser.status, parser.done, parser.reusable) == (200, True, True)
    assert parser.headers["x-a"] == "b"


@given(cut=st.integers(1, len(PLAIN) - 1))
def test_a_length_however_it_arrives(cut: int) -> None:
    parser, out = parse([PLAIN[:cut], PLAIN[cut:]])
    assert (out, parser.status, parser.done) == (b"body", 201, True)


def test_what_has_no_body() -> None:
    for head in (
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    ):
        parser, out = parse([head])
        assert (out, parser.done, parser.reusable) == (b"", True, True)
    parser, _ = parse([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"], "HEAD")
    assert parser.done


def test_a_body_until_the_end_of_the_connection() -> None:
    parser, out = parse([b"HTTP/1.1 200 OK\r\n\r\nab", b"c", b""])
    assert (out, parser.done, parser.reusable) == (b"abc", True, False)


def test_bytes_after_an_upgrade_are_kept() -> None:
    parser, _ = parse([b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x00"])
    assert (parser.status, parser.rest) == (101, b"\x81\x00")


def test_close_is_heeded() -> None:
    parser, _ = parse([b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"])
    assert not parser.reusable


@pytest.mark.parametrize(
    "pieces",
    [
        [b""],
        [CHUNKED[:70], b""],
        [PLAIN[:-1], b""],
        [b"SSH-2.0-x\r\n\r\n"],
        [b"x" * (HEAD_LIMIT + 1)],
        [b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"],
    ],
)
def test_what_is_no_answer(pieces: list[bytes]) -> None:
    with pytest.raises(DaemonError) as caught:
        parse(pieces)
    assert caught.value.code == "daemon_unreachable"


def test_targets() -> None:
    query = {"a": None, "b": True, "c": ["x y", "z"], "d": 5, "e": "/p&\xe9"}
    assert target("/v1/x", query) == "/v1/x?b=true&c=x%20y&c=z&d=5&e=/p%26%C3%A9"
    assert target("/v1/x") == "/v1/x"


@given(raw=st.binary())
def test_quoting_keeps_every_byte(raw: bytes) -> None:
    from urllib.parse import unquote_to_bytes

    assert unquote_to_bytes(quote(raw.decode("utf-8", "surrogateescape"))) == raw


def test_a_request() -> None:
    assert (
        request_head("GET", "/x", {"a": "b"}) == b"GET /x HTTP/1.1\r\nhost: hutch\r\na: b\r\n\r\n"
    )


def test_errors_of_answers() -> None:
    body = b'{"error":{"code":"name_taken","message":"m","hint":"h","details":{"a":1}}}'
    failure = error_of(409, body)
    assert (failure.code, failure.hint, failure.details) == ("name_taken", "h", {"a": 1})
    for nonsense in (b"", b"oops", b"[]", b'{"error":1}'):
        assert error_of(500, nonsense).code == "internal"
