"""What the gate sends upstream, as two other parsers understand it: only what was judged.

The parsers are llhttp, which Node.js has, and that of Python's http.server: one is as strict as
they come, the other one is not.
"""

import io
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.network.talk import OK, Talk

Seen = tuple[str, str, str, bytes]
"""A request as a server has it: its method, target, Host and body."""


class Strict:
    """A server with llhttp."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.after = b""
        self.parser: Any = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self.target, self.hosts, self.body = b"", [], b""

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"host":
            self.hosts.append(value)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        (host,) = self.hosts
        method = self.parser.get_method().decode()
        self.seen.append((method, self.target.decode(), host.decode(), self.body))

    def read(self, data: bytes) -> None:
        """Take what came. Raises what llhttp finds wrong with it."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Nothing may follow before the server has agreed.
            self.after = data[upgrade.args[0] :]
            self.parser = httptools.HttpRequestParser(self)


class Lenient(BaseHTTPRequestHandler):
    """A server with the parser of http.server."""

    def __init__(self, data: bytes) -> None:
        self.rfile = io.BytesIO(data)
        self.wfile = io.BytesIO()
        self.client_address = ("192.0.2.1", 1)
        self.protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        raise AssertionError(format % args)

    def requests(self) -> Iterator[Seen]:
        while line := self.rfile.readline(1 << 17):
            self.raw_requestline = line
            assert self.parse_request(), line
            (host,) = self.headers.get_all("host")
            # `path` has only one slash at its beginning.
            yield self.command, self.requestline.split()[1], host, self.body()

    def body(self) -> bytes:
        if self.headers.get("transfer-encoding") is None:
            length = int(self.headers.get("content-length", "0"))
            return self.rfile.read(length)
        assert self.headers.get_all("content-length") is None
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            assert self.rfile.readline() == b"\r\n"
        assert self.rfile.readline() == b"\r\n"
        return body


def converse(said: bytes, step: int) -> tuple[Talk, bytes, list[Seen]]:
    """Have a guest say it, with a server that answers what it understands."""
    talk, server, upstream = Talk(), Strict(), b""
    at, answered = 0, 0
    while not talk.gate.over and not talk.gate.broken:
        if talk.gate.hears_guest:
            if at >= len(said):
                break
            talk.gate.from_guest(said[at : at + step])
            at += step
        talk.read_on()
        sent = talk.gate.for_upstream()
        upstream += sent
        server.read(sent)
        if len(server.seen) > answered:
            answered += 1
            talk.gate.from_upstream(OK)
            talk.read_on()
        elif not talk.gate.hears_guest:
            break  # a body that is not whole
        talk.gate.for_guest()
    while (sent := talk.gate.for_upstream()) or len(server.seen) > answered:
        upstream += sent
        server.read(sent)
        if len(server.seen) > answered:
            answered += 1
            talk.gate.from_upstream(OK)
            talk.read_on()
    assert server.after == b""
    return talk, upstream, server.seen


def check(said: bytes, step: int) -> list[Seen]:
    """Two servers must understand just what was judged and let through, and nothing else."""
    talk, upstream, seen = converse(said, step)
    allowed = [r for r in talk.judged if r.host.lower() == "a.com"]
    judged = [(request.method, request.target) for request in allowed]
    # The last one may not be whole: a server has not seen it then.
    assert [(method, target) for method, target, _, _ in seen] in (judged, judged[:-1])
    assert all(host.lower().partition(":")[0] == "a.com" for _, _, host, _ in seen)
    try:
        lenient = list(Lenient(upstream).requests())
    except ValueError:
        lenient = seen  # within a chunked body
        assert len(seen) < len(allowed)
    assert lenient[: len(seen)] == seen
    assert len(lenient) <= len(allowed)
    return seen


A, B = b"Host: a.com\r\n", b"Host: b.com\r\n"
INNER = b"GET /inner HTTP/1.1\r\n" + B + b"\r\n"

# How requests were smuggled past proxies, each with the one that must not arrive.
SMUGGLING = {
    "CL.TE": b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE.CL": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n",
    "CL.CL": b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
    "CL, CL": b"Content-Length: 0, 44\r\n\r\n",
    "CL.0": b"Content-Length: %d\r\n\r\n" % len(INNER),
    "no length": b"\r\n",
    "0.CL": b"Content-Length : 44\r\n\r\n",
    "CL in a folded line": b"X: y\r\n Content-Length: 44\r\n\r\n",
    "CL after a line feed": b"X: y\nContent-Length: 44\r\n\r\n",
    "CL after a carriage return": b"X: y\rContent-Length: 44\r\n\r\n",
    "CL after a NUL": b"\0Content-Length: 44\r\n\r\n",
    "CL with a sign": b"Content-Length: +44\r\n\r\n",
    "CL with an underscore": b"Content_Length: 44\r\n\r\n",
    "CL in letters beyond": b"Content-Length: \xb2\r\n\r\n",
    "TE xchunked": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "TE space colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "TE tab": b"Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n",
    "TE vertical tab": b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "TE folded": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "TE twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    "TE identity": b"Transfer-Encoding: identity\r\n\r\n",
    "TE quoted": b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "TE list": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "TE in X": b"X: \nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE beside Connection": b"Connection: Transfer-Encoding\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "CL beside Connection": b"Content-Length: 44\r\nConnection: Content-Length\r\n\r\n",
    "Host beside Connection": b"Connection: Host\r\n\r\n",
    "chunk with a line feed": b"Transfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n",
    "chunk ends with a line feed": b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\n0\r\n\r\n",
    "chunk extension with a line feed": b"Transfer-Encoding: chunked\r\n\r\n1;\nx\r\n0\r\n\r\n",
    "chunk extension with a return": b"Transfer-Encoding: chunked\r\n\r\n1;a\rx\r\n0\r\n\r\n",
    "chunk of a huge size": b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n\r\n0\r\n\r\n",
    "chunk of a negative size": b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n0\r\n\r\n",
    "chunk of 0x": b"Transfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n",
    "trailer": b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 44\r\nHost: b.com\r\n\r\n",
    "trailer with a line feed": b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\n\r\n",
    "Host twice": B + b"\r\n",
    "expectation": b"Expect: 100-continue\r\nContent-Length: 44\r\n\r\n",
    "other expectation": b"Expect: y 100-continue\r\nContent-Length: 44\r\n\r\n",
    "upgrade": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n",
    "upgrade to h2c": b"Connection: Upgrade, HTTP2-Settings\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: A\r\n\r\n",
    "upgrade with a body": b"Connection: Upgrade\r\nUpgrade: x\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("step", [1, 16, 1 << 16])
@pytest.mark.parametrize("method", [b"GET", b"POST", b"HEAD"])
@pytest.mark.parametrize("rest", SMUGGLING.values(), ids=SMUGGLING)
def test_nothing_is_smuggled(rest: bytes, method: bytes, step: int) -> None:
    said = method + b" / HTTP/1.1\r\n" + A + rest + INNER + INNER
    for method_, target, _, _ in check(said, step):
        assert (method_.encode(), target) == (method, "/")


@pytest.mark.parametrize("step", [1, 1 << 16])
@pytest.mark.parametrize(
    "line",
    [
        b"GET http://b.com/ HTTP/1.1\r\n",
        b"GET http://b.com@a.com/ HTTP/1.1\r\n",
        b"GET http://a.com:80@b.com/ HTTP/1.1\r\n",
        b"GET http:\\\\b.com/ HTTP/1.1\r\n",
        b"GET //b.com/ HTTP/1.1\r\n",
        b"GET /\x85http://b.com/ HTTP/1.1\r\n",
        b"GET /\xa0HTTP/1.0 HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nHost: b.com\r\n",
        b"GET / HTTP/1.1\r\nhOsT: b.com\r\n",
        b"GET / HTTP/1.1\r\nHost : b.com\r\n",
        b"GET / HTTP/1.1\r\n Host: b.com\r\n",
        b"GET / HTTP/1.1\r\nHost: b.com\0",
        b"GET / HTTP/1.1 \r\n",
        b"GET / HTTP/1.1\r\r\n",
        b"\x00GET / HTTP/1.1\r\n",
    ],
)
def test_no_first_line_names_another_host(line: bytes, step: int) -> None:
    check(line + A + b"\r\n" + INNER, step)


PIECES = st.sampled_from(
    [
        b"GET ", b"POST ", b"/", b" ", b"HTTP/1.1", b"HTTP/1.0", b"\r\n", b"\n", b"\r", b"\t",
        b"Host: a.com", b"Host: b.com", b"Content-Length: ", b"5", b"0", b"44", b"hello", b";x",
        b"Transfer-Encoding: chunked", b"Transfer-Encoding: ", b"Connection: close", b"X: y", b":",
        b"Connection: upgrade", b"Upgrade: websocket", b"Upgrade: x", b"Expect: 100-continue",
        b"GET / HTTP/1.1\r\nHost: a.com\r\n", b"POST / HTTP/1.1\r\nHost: a.com\r\n", INNER,
        b"http://a.com/", b"http://b.com/", b"\x85", b"\xa0", b"\xff", b"0\r\n\r\n", b"\r\n\r\n",
        b"5\r\nhello\r\n", b"Transfer-Encoding: chunked\r\n\r\n", b"Content-Length: 5\r\n\r\nhello",
    ]
)  # fmt: skip


@given(st.lists(st.one_of(PIECES, PIECES, st.binary(max_size=3)), max_size=40), st.integers(1, 200))
@example([b"POST / HTTP/1.1\r\n", A, b"Content-Length: 9\r\n\r\n", b"GET / HTTP/1.1\r\n"], 200)
def test_whatever_a_guest_says_only_what_was_judged_arrives(pieces: list[bytes], step: int) -> None:
    check(b"".join(pieces), step)


WHOLE = st.tuples(
    st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS"]),
    st.sampled_from([b"/", b"/a?b=c", b"http://a.com/x", b"//b.com"]),
    st.sampled_from([b"a.com", b"A.com:80", b"a.com", b"b.com"]),
    st.one_of(st.none(), st.binary(max_size=80)),
    st.integers(1, 30),
)


@given(st.lists(WHOLE, min_size=1, max_size=6), st.integers(1, 300))
def test_sound_requests_arrive_in_order_and_whole_up_to_a_denied_one(
    requests: list[tuple[bytes, bytes, bytes, bytes | None, int]], step: int
) -> None:
    said, expected, ended = b"", [], False
    for method, target, host, body, size in requests:
        said += b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (method, target, host)
        if body is not None and size > 15:
            said += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            has_body = bool(body)
        elif body is not None:
            chunks = [body[at : at + size] for at in range(0, len(body), size)]
            said += b"Transfer-Encoding: chunked\r\n\r\n"
            said += b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
            said += b"0\r\n\r\n"
            has_body = True
        else:
            said += b"\r\n"
            has_body = False
        ended = ended or host == b"b.com" or (b"a.com/" in target and b"http:" not in target)
        if not ended:
            path = target.removeprefix(b"http://a.com").decode()
            expected.append((method.decode(), path, host.decode(), body or b""))
        ended = ended or (has_body and method in (b"GET", b"HEAD", b"OPTIONS"))
    assert check(said, step) == expected
