from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import DaemonError
from hutch.sdk.websocket import (
    BINARY,
    CLOSE,
    MESSAGE_LIMIT,
    PING,
    TEXT,
    Decoder,
    Message,
    frame_head,
    upgrade_request,
)


def frame(first: int, payload: bytes) -> bytes:
    """A frame as a server sends it."""
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 1 << 16:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


@given(
    payloads=st.lists(st.binary(max_size=300), max_size=5),
    cuts=st.lists(st.integers(0, 2000), max_size=8),
)
def test_messages_however_they_arrive(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(frame(0x82, payload) for payload in payloads) + frame(0x88, b"\x03\xe8bye")
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    decoder, found = Decoder(), []
    for a, b in pairwise(edges):
        found += decoder.feed(stream[a:b])[0]
    assert [message.data for message in found] == payloads
    assert (decoder.close_code, decoder.close_reason) == (1000, "bye")


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536, 1 << 20])
def test_sizes(size: int) -> None:
    messages, _ = Decoder().feed(frame(0x82, bytes(size)))
    assert [len(message.data) for message in messages] == [size]


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_heads_are_masked_with_nothing(size: int) -> None:
    from websockets.frames import Frame

    head = frame_head(BINARY, size)
    theirs = Frame(2, bytes(size)).serialize(mask=False)
    ours = bytearray(head[:-4]) + bytes(size)
    assert head[-4:] == b"\0\0\0\0"
    assert ours[1] & 0x80
    ours[1] &= 0x7F
    assert bytes(ours) == theirs


def test_fragments_with_a_ping_between() -> None:
    decoder = Decoder()
    stream = frame(0x01, b"a") + frame(0x89, b"hi") + frame(0x00, b"b") + frame(0x80, b"c")
    messages, replies = decoder.feed(stream)
    assert [(message.kind, message.data) for message in messages] == [(TEXT, b"abc")]
    assert replies == frame_head(10, 2) + b"hi"


def test_a_close_is_answered() -> None:
    _, replies = Decoder().feed(frame(0x88, b"\x03\xf3"))
    assert replies == frame_head(CLOSE, 2) + b"\x03\xf3"
    decoder = Decoder()
    decoder.feed(frame(0x88, b""))
    assert decoder.close_code == 1005


@pytest.mark.parametrize(
    "stream",
    [
        b"\x82\x81\0\0\0\0x",  # masked
        b"\x82\xff" + bytes(8),
        b"\x82\x7f" + (MESSAGE_LIMIT + 1).to_bytes(8, "big"),
        b"\xc2\x00",  # reserved bits
        frame(0x00, b"x"),  # a continuation of nothing
        frame(0x01, b"a") + frame(0x81, b"b"),  # a message within a message
        frame(0x83, b"x"),  # an unknown kind
    ],
)
def test_what_no_server_of_ours_sends(stream: bytes) -> None:
    with pytest.raises(DaemonError):
        Decoder().feed(stream)


def test_fragments_are_bounded() -> None:
    decoder = Decoder()
    decoder.feed(frame(0x02, bytes(MESSAGE_LIMIT - 1)))
    with pytest.raises(DaemonError, match="too long"):
        decoder.feed(frame(0x00, b"xx"))


def test_the_handshake_is_the_rfcs() -> None:
    from websockets.utils import accept_key

    head, accept = upgrade_request("/x?y=z")
    lines = dict(line.partition(": ")[::2] for line in head.decode().split("\r\n")[1:-2])
    assert head.startswith(b"GET /x?y=z HTTP/1.1\r\n")
    assert accept == accept_key(lines["sec-websocket-key"])


def test_json_messages() -> None:
    assert Message(TEXT, b'{"a":1}').json() == {"a": 1}
    for wrong in (Message(BINARY, b"{}"), Message(TEXT, b"[]"), Message(TEXT, b"{")):
        with pytest.raises(DaemonError):
            wrong.json()
    assert PING == 9
