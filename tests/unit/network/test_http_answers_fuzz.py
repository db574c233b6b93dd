"""What the gate sends to a guest, as another parser understands it; and what opens no tunnel."""

import http.client
import io
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.network.talk import GET, Talk
from tests.unit.network.test_http_upgrades import SWITCH, UPGRADE

ANSWER = st.tuples(
    st.sampled_from(["GET", "HEAD", "POST"]),
    st.sampled_from([200, 201, 204, 304, 404, 500]),
    st.sampled_from(["length", "chunked", "end"]),
    st.binary(max_size=200),
    st.integers(1, 50),
    st.booleans(),
)


class Stream(io.BytesIO):
    """What a client reads of all answers, which http.client would close after the first."""

    def makefile(self, mode: str) -> "Stream":
        return self

    def close(self) -> None:
        pass


def read_answer(stream: Stream, method: str) -> tuple[int, bytes]:
    sock: Any = stream
    answer = http.client.HTTPResponse(sock, method=method)
    answer.begin()
    return answer.status, answer.read()


@given(st.lists(ANSWER, min_size=1, max_size=6), st.integers(1, 300))
def test_sound_answers_arrive_in_order_and_whole(
    answers: list[tuple[str, int, str, bytes, int, bool]], step: int
) -> None:
    said, asked, expected = b"", b"", []
    for method, status, framing, body, size, hinted in answers:
        bare = method == "HEAD" or status in (204, 304)
        asked += GET.replace(b"GET", method.encode())
        said += b"HTTP/1.1 100 Continue\r\nLink: x\r\n\r\n" * hinted
        said += b"HTTP/1.1 %d X\r\n" % status
        if framing == "length":
            said += b"Content-Length: %d\r\n\r\n" % len(body) + (b"" if bare else body)
        elif framing == "chunked" and not bare:
            chunks = [body[at : at + size] for at in range(0, len(body), size)]
            said += b"Transfer-Encoding: chunked\r\n\r\n"
            said += b"".join(b"%x;x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
            said += b"0\r\nX: y\r\n\r\n"
        else:
            said += b"\r\n" + (b"" if bare else body)
        expected.append((method, status, b"" if bare else body))
        if framing == "end" and not bare:
            break
    talk = Talk()
    talk.guest(asked)
    heard = Stream(talk.server(said, step))
    talk.gate.upstream_ended(reset=False)
    assert talk.gate.over
    assert not talk.gate.broken
    assert talk.refused == []
    for method, status, body in expected:
        assert read_answer(heard, method) == (status, body)
    assert heard.read() == b""


PIECES = st.sampled_from(
    [
        b"HTTP/1.1 ", b"HTTP/1.0 ", b"200", b"101", b"100", b"204", b"304", b" ", b"\r\n", b"\n",
        b"Content-Length: ", b"5", b"0", b"hello", b"Transfer-Encoding: chunked", b"\r\n\r\n",
        b"Connection: close", b"Connection: upgrade", b"Upgrade: websocket", b"Upgrade: h2c",
        b"Sec-WebSocket-Accept: ", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", b"5\r\nhello\r\n", b"\xff",
        b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 101 X\r\n", b"Content-Length: 0\r\n\r\n", b"0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", SWITCH,
    ]
)  # fmt: skip


@given(st.lists(st.one_of(PIECES, PIECES, st.binary(max_size=3)), max_size=30), st.integers(1, 99))
def test_whatever_a_server_says_bytes_pass_unread_only_after_a_switch(
    pieces: list[bytes], step: int
) -> None:
    hidden = b"GET /hidden HTTP/1.1\r\nHost: b.com\r\n\r\n"
    said = b"".join(pieces)
    talk = Talk()
    sent = talk.guest(UPGRADE + hidden)
    for at in range(0, len(said), step):
        talk.gate.from_upstream(said[at : at + step])
        talk.read_on()
        sent += talk.gate.for_upstream()
    talk.gate.upstream_ended(reset=False)
    if sent != UPGRADE:
        assert sent == UPGRADE + hidden
        assert b"HTTP/1." in said
        assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in said
        assert len(talk.judged) == 1
    else:
        assert talk.gate.over or talk.gate.broken
