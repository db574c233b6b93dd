"""Heads of HTTP messages: what is read in one way, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.network import heads
from hutch.network.heads import BadHead, HeadReader, RequestHead


def request(text: str) -> RequestHead:
    return heads.read_request(text.split("\n"))


def whole(data: bytes, step: int) -> tuple[list[str] | None, bytes]:
    """Feed a reader so many bytes at a time. Returns the head's lines, and what is after it."""
    reader, buffer = HeadReader(empty_lines=heads.EMPTY_LINES), bytearray()
    for at in range(0, len(data), step):
        buffer += data[at : at + step]
        lines = reader.read(buffer)
        if lines is not None:
            return lines, bytes(buffer) + data[at + step :]
    return None, bytes(buffer)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("before", ["", "\r\n", "\r\n\r\n"])
def test_a_head_is_found_however_it_comes(step: int, before: str) -> None:
    data = before + "GET / HTTP/1.1\r\nHost: a\r\nX: \té\r\n\r\n\n\0body\r\n\r\n"
    lines, rest = whole(data.encode("latin-1"), step)
    assert lines == ["GET / HTTP/1.1", "Host: a", "X: \té"]
    assert rest == b"\n\0body\r\n\r\n"


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\nHost: a\n\n", "line feed"),
        (b"GET / HTTP/1.1\r\nHost: a\n\r\n\r\n", "line feed"),
        (b"\nGET / HTTP/1.1\r\n", "line feed"),
        (b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", "carriage return"),
        (b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", "carriage return"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\r\n", "carriage return"),
        (b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", "control byte"),
        (b"GET / HTTP/1.1\r\nHost: a\x0b\r\n\r\n", "control byte"),
        (b"GET /\x7f HTTP/1.1\r\n", "control byte"),
        (b"\x16\x03\x01\x02\x00\x01", "control byte"),
    ],
)
def test_what_no_head_has_is_refused_at_once(step: int, data: bytes, why: str) -> None:
    with pytest.raises(BadHead, match=why):
        whole(data, step)


def test_a_head_has_an_end() -> None:
    with pytest.raises(BadHead, match="64 KiB") as caught:
        whole(b"GET / HTTP/1.1\r\nX: " + b"x" * heads.HEAD_LIMIT, 1000)
    assert caught.value.status == 431
    with pytest.raises(BadHead, match="64 KiB"):
        whole(b"GET / HTTP/1.1\r\nX: " + b"x" * heads.HEAD_LIMIT + b"\r\n\r\n", 1 << 20)
    with pytest.raises(BadHead, match="256 fields") as caught:
        request("GET / HTTP/1.1\nHost: a" + "\nX: y" * 256)
    assert caught.value.status == 431


def test_a_list_has_an_end() -> None:
    most = "," * (heads.MEMBERS_LIMIT - 2) + "close"
    assert heads.tokens([("A", most), ("a", "x")], "a") == ["close", "x"]
    for fields in ([("a", most + ",,")], [("a", most), ("a", "x"), ("a", "")]):
        with pytest.raises(BadHead, match="256 members") as caught:
            heads.tokens(fields, "a")
        assert caught.value.status == 431
        heads.tokens(fields, "b")


def test_the_search_for_the_end_takes_linear_time() -> None:
    """Byte by byte, with what makes naive patterns slow: a quadratic one would take minutes."""
    data = b"GET / HTTP/1.1\r\nX:" + b" \t" * 30_000
    assert whole(data, 1)[0] is None
    lines, _ = whole(data + b"x\r\n\r\n", 1000)
    assert lines is not None
    assert heads.read_fields(lines[1:]) == [("X", "x")]


@pytest.mark.parametrize(
    ("text", "target", "host", "port", "length"),
    [
        ("GET / HTTP/1.1\nHost: example.com", "/", "example.com", None, 0),
        ("GET /a?b=c&d HTTP/1.1\nhOST:Example.COM.:80", "/a?b=c&d", "Example.COM.", 80, 0),
        ("GET http://a.com HTTP/1.1\nHost: A.com:80", "/", "A.com", 80, 0),
        ("GET HTTP://a.com:80?x HTTP/1.1\nHost: a.com", "/?x", "a.com", None, 0),
        ("GET http://a.com/x?y HTTP/1.1\nHost: a.com", "/x?y", "a.com", None, 0),
        ("OPTIONS http://a.com HTTP/1.1\nHost: a.com", "*", "a.com", None, 0),
        ("OPTIONS * HTTP/1.1\nHost: a.com", "*", "a.com", None, 0),
        ("GET /\xfc HTTP/1.1\nHost: a.com", "/%FC", "a.com", None, 0),
        ("GET //b.com/ HTTP/1.1\nHost: a.com", "//b.com/", "a.com", None, 0),
        ("GET /{}|\\^`<> HTTP/1.1\nHost: a.com", "/{}|\\^`<>", "a.com", None, 0),
        ("BREW / HTTP/1.0\nHost: [2001:db8::1]:8080", "/", "[2001:db8::1]", 8080, 0),
        ("POST / HTTP/1.1\nHost: 192.0.2.1\nContent-Length: 007", "/", "192.0.2.1", None, 7),
        ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: Chunked", "/", "a", None, None),
        ("GET / HTTP/1.1\nHost: a_b.c\nHosts: x\nX_Y: z", "/", "a_b.c", None, 0),
    ],
)
def test_a_request_that_is_read_in_one_way(
    text: str, target: str, host: str, port: int | None, length: int | None
) -> None:
    head = request(text)
    assert (head.target, head.host, head.port, head.length) == (target, host, port, length)
    assert head.old == ("HTTP/1.0" in text)


GET = "GET / HTTP/1.1\nHost: a.com"
POST = "POST / HTTP/1.1\nHost: a.com"
AMBIGUOUS = {
    "no host": "GET / HTTP/1.1\nX: y",
    "no host in 1.0": "GET / HTTP/1.0\nX: y",
    "empty host": "GET / HTTP/1.1\nHost:",
    "two hosts": f"{GET}\nHost: b.com",
    "the same host twice": f"{GET}\nhost: a.com",
    "two hosts in one": "GET / HTTP/1.1\nHost: a.com, b.com",
    "user": "GET / HTTP/1.1\nHost: a.com@b.com",
    "path in host": "GET / HTTP/1.1\nHost: a.com/b",
    "space in host": "GET / HTTP/1.1\nHost: a.com b.com",
    "tab in host": "GET / HTTP/1.1\nHost: a.com\tb",
    "encoded host": "GET / HTTP/1.1\nHost: a%2ecom",
    "other letters": "GET / HTTP/1.1\nHost: \xe4.com",
    "empty port": "GET / HTTP/1.1\nHost: a.com:",
    "two ports": "GET / HTTP/1.1\nHost: a.com:80:80",
    "port 0": "GET / HTTP/1.1\nHost: a.com:0",
    "port 65536": "GET / HTTP/1.1\nHost: a.com:65536",
    "signed port": "GET / HTTP/1.1\nHost: a.com:+80",
    "arabic port": "GET / HTTP/1.1\nHost: a.com:\u0663",
    "dot": "GET / HTTP/1.1\nHost: .",
    "other authority": "GET http://b.com/ HTTP/1.1\nHost: a.com",
    "other port": "GET http://a.com:81/ HTTP/1.1\nHost: a.com",
    "user in authority": "GET http://a.com@b.com/ HTTP/1.1\nHost: a.com",
    "backslash authority": "GET http://a.com\\@b.com/ HTTP/1.1\nHost: a.com",
    "no authority": "GET http:///x HTTP/1.1\nHost: a.com",
    "https": "GET https://a.com/ HTTP/1.1\nHost: a.com",
    "ftp": "GET ftp://a.com/ HTTP/1.1\nHost: a.com",
    "relative": "GET x HTTP/1.1\nHost: a.com",
    "star": "GET * HTTP/1.1\nHost: a.com",
    "fragment": "GET /#x HTTP/1.1\nHost: a.com",
    "tab in target": "GET /\tx HTTP/1.1\nHost: a.com",
    "two spaces": "GET  / HTTP/1.1\nHost: a.com",
    "space in target": "GET /a b HTTP/1.1\nHost: a.com",
    "space at end": "GET / HTTP/1.1 \nHost: a.com",
    "space at start": " GET / HTTP/1.1\nHost: a.com",
    "tabs": "GET\t/\tHTTP/1.1\nHost: a.com",
    "HTTP/0.9": "GET /\nHost: a.com",
    "no request": "SSH-2.0-OpenSSH_9.2\nHost: a.com",
    "answer": "HTTP/1.1 200 OK\nHost: a.com",
    "empty line": "\nHost: a.com",
    "small version": "GET / http/1.1\nHost: a.com",
    "version 1.10": "GET / HTTP/1.10\nHost: a.com",
    "method": "G@T / HTTP/1.1\nHost: a.com",
    "long method": f"{'G' * 33} / HTTP/1.1\nHost: a.com",
    "space before colon": f"{GET}\nX : y",
    "tab before colon": f"{GET}\nX\t: y",
    "folded": f"{GET}\nX: y\n z",
    "folded with tab": f"{GET}\nX: y\n\tz",
    "folded at once": "GET / HTTP/1.1\n Host: a.com",
    "no colon": f"{GET}\nX",
    "no name": f"{GET}\n: y",
    "name in letters beyond": f"{GET}\nX\xe4: y",
    "length and coding": f"{POST}\nContent-Length: 5\nTransfer-Encoding: chunked",
    "coding and length": f"{POST}\nTransfer-Encoding: chunked\nContent-Length: 0",
    "two lengths": f"{POST}\nContent-Length: 5\nContent-Length: 6",
    "the same length twice": f"{POST}\nContent-Length: 5\nContent-Length: 5",
    "lengths in one": f"{POST}\nContent-Length: 5, 5",
    "no length": f"{POST}\nContent-Length:",
    "signed length": f"{POST}\nContent-Length: +5",
    "negative length": f"{POST}\nContent-Length: -1",
    "hex length": f"{POST}\nContent-Length: 0x5",
    "underscore in length": f"{POST}\nContent-Length: 1_0",
    "other digits": f"{POST}\nContent-Length: \xb2",
    "huge length": f"{POST}\nContent-Length: {'9' * 19}",
    "identity": f"{POST}\nTransfer-Encoding: identity",
    "gzip, chunked": f"{POST}\nTransfer-Encoding: gzip, chunked",
    "chunked, identity": f"{POST}\nTransfer-Encoding: chunked, identity",
    "chunked twice": f"{POST}\nTransfer-Encoding: chunked\nTransfer-Encoding: chunked",
    "two codings": f"{POST}\nTransfer-Encoding: chunked\nTransfer-Encoding: x",
    "xchunked": f"{POST}\nTransfer-Encoding: xchunked",
    "quoted": f'{POST}\nTransfer-Encoding: "chunked"',
    "parameter": f"{POST}\nTransfer-Encoding: chunked;x=y",
    "empty coding": f"{POST}\nTransfer-Encoding:",
    "coding in 1.0": "POST / HTTP/1.0\nHost: a.com\nTransfer-Encoding: chunked",
    "almost a length": f"{POST}\nContent_Length: 5",
    "almost a coding": f"{POST}\nTransfer_Encoding: chunked",
}


@pytest.mark.parametrize("text", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_a_request_that_can_be_read_in_two_ways(text: str) -> None:
    with pytest.raises(BadHead) as caught:
        request(text)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("CONNECT a.com:443 HTTP/1.1", 405),
        ("PRI * HTTP/2.0", 505),
        ("GET / HTTP/2", 505),
        ("GET / HTTP/1.2", 505),
        ("GET / HTTP/0.9", 505),
    ],
)
def test_what_is_not_spoken_here_says_so(line: str, status: int) -> None:
    with pytest.raises(BadHead) as caught:
        request(f"{line}\nHost: a.com")
    assert caught.value.status == status


@given(st.text(st.characters(max_codepoint=255), max_size=100))
def test_whatever_a_head_holds_it_is_read_or_refused(noise: str) -> None:
    for text in (noise, f"{GET}\n{noise}", f"GET {noise} HTTP/1.1\nHost: a", f"GET / {noise}"):
        lines = text.split("\n")
        for read in (heads.read_request, heads.read_answer):
            try:
                head = read(lines)
            except BadHead:
                continue
            for name, value in head.fields:
                assert name.isascii()
                assert value == value.strip(" \t")


def test_an_answer_is_read() -> None:
    head = heads.read_answer(["HTTP/1.1 200 OK", "Content-Length: 5", "content-length: 5"])
    assert (head.status, head.reason, head.length, head.chunked) == (200, "OK", 5, False)
    head = heads.read_answer(["HTTP/1.0 999", "X: y"])
    assert (head.status, head.reason, head.old, head.length) == (999, "", True, None)
    assert heads.read_answer(["HTTP/1.1 200 ", "Transfer-Encoding: chunked"]).chunked


@pytest.mark.parametrize(
    "text",
    [
        "HTTP/1.1 20 OK",
        "HTTP/1.1 2000",
        "HTTP/1.1  200",
        "HTTP/2 200",
        "ICY 200 OK",
        "HTTP/1.1 200 OK\nContent-Length: 5\nContent-Length: 6",
        "HTTP/1.1 200 OK\nContent-Length: 5\nTransfer-Encoding: chunked",
        "HTTP/1.1 200 OK\nTransfer-Encoding: gzip, chunked",
        "HTTP/1.0 200 OK\nTransfer-Encoding: chunked",
        "HTTP/1.1 200 OK\nX: y\n z",
    ],
)
def test_an_answer_that_can_be_read_in_two_ways(text: str) -> None:
    with pytest.raises(BadHead):
        heads.read_answer(text.split("\n"))


def test_the_fields_of_a_hop_stay_behind() -> None:
    fields = heads.read_fields(
        [
            "Connection: close, X-Mine ,, Te",
            "Keep-Alive: timeout=5",
            "X-Mine: a",
            "x-yours: b",
            "TE: trailers",
            "Proxy-Connection: close",
            "HTTP2-Settings: AAA",
            "Upgrade: h2c",
            "Cookie: c",
            "Cookie: d",
        ]
    )
    kept = [("x-yours", "b"), ("Cookie", "c"), ("Cookie", "d")]
    assert heads.end_to_end(fields) == kept
    assert heads.end_to_end(fields, "x-yours") == kept[1:]
    assert heads.tokens(fields, "connection") == ["close", "X-Mine", "Te"]
    assert heads.write("GET / HTTP/1.1", kept[:1]) == b"GET / HTTP/1.1\r\nx-yours: b\r\n\r\n"
