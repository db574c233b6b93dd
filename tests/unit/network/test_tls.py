"""Client hellos: those of real programs, those made by hand, and what is none."""

import contextlib
import shutil
import socket
import ssl
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.network.tls import HELLO_LIMIT, RECORDS_LIMIT, BadHello, HelloReader, alert
from hutch.networking import Reason

GREASE = 0x8A8A


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size) + data


def extension(kind: int, body: bytes) -> bytes:
    return struct.pack(">H", kind) + vector(2, body)


def names(*entries: tuple[int, bytes]) -> bytes:
    listed = b"".join(bytes([kind]) + vector(2, name) for kind, name in entries)
    return extension(0, vector(2, listed))


def server_name(name: str) -> bytes:
    return names((0, name.encode()))


def protocols(*listed: bytes) -> bytes:
    return extension(16, vector(2, b"".join(vector(1, name) for name in listed)))


def message(*extensions: bytes, version: int = 0x0303, ciphers: bytes = b"\x13\x01") -> bytes:
    body = struct.pack(">H", version) + bytes(32) + vector(1, bytes(32)) + vector(2, ciphers)
    body += vector(1, b"\x00")
    if extensions:
        body += vector(2, b"".join(extensions))
    return b"\x01" + vector(3, body)


def records(data: bytes, size: int = 1 << 14, version: int = 0x0301) -> bytes:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"\x16" + struct.pack(">H", version) + vector(2, part) for part in parts)


def real_hello(
    name: str | None,
    alpn: list[str] | None = None,
    newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
) -> bytes:
    """What Python's ssl says first."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = newest
    if alpn:
        context.set_alpn_protocols(alpn)
    out = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()


def read(data: bytes, step: int | None = None) -> HelloReader:
    """Feed all of it, `step` bytes at a time; it must be complete at its end and not before."""
    reader = HelloReader()
    feed(reader, data, step)
    assert reader.taken == data
    return reader


def feed(reader: HelloReader, data: bytes, step: int | None) -> None:
    step = step or len(data)
    for at in range(0, len(data), step):
        complete = reader.feed(data[at : at + step])
        assert complete == (at + step >= len(data))


@pytest.mark.parametrize("step", [1, 3, 100, None])
@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_real_hello_tells_its_name_in_whatever_segments(
    step: int | None, newest: ssl.TLSVersion
) -> None:
    reader = read(real_hello("Www.Example.com", ["h2", "http/1.1"], newest), step)
    assert reader.server_name is not None
    assert reader.server_name.lower() == "www.example.com"
    assert reader.alpn == ("h2", "http/1.1")
    assert not reader.encrypted


def test_a_real_hello_without_a_name() -> None:
    assert read(real_hello(None)).server_name is None


@pytest.mark.parametrize("program", ["openssl", "curl"])
def test_the_hellos_of_other_programs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = {
            "openssl": ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername"],
            "curl": ["curl", "-sk", "--connect-to", f"::127.0.0.1:{port}"],
        }[program]
        name = "example.com" if program == "openssl" else "https://example.com/"
        listener.settimeout(60)
        with subprocess.Popen(
            [*command, name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            client, _ = listener.accept()
            with client:
                client.settimeout(60)
                reader = HelloReader()
                while not reader.feed(client.recv(700)):
                    pass
                client.sendall(alert(Reason.SERVER_NAME_MISMATCH))
                assert process.stderr is not None
                said = process.stderr.read()
            assert process.wait() != 0
    assert reader.server_name == "example.com"
    if program == "openssl":
        assert b"unrecognized name" in said


@pytest.mark.parametrize("version", [0x0300, 0x0301, 0x0302, 0x0303, 0x0304])
@pytest.mark.parametrize("size", [1, 2, 7, 1 << 14])
def test_a_hello_in_any_records(version: int, size: int) -> None:
    hello = message(server_name("example.com"), version=min(version, 0x0303))
    for step in (1, 5, None):
        assert read(records(hello, size, version), step).server_name == "example.com"


@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=40),
    steps=st.lists(st.integers(1, 300), min_size=1, max_size=40),
)
def test_a_hello_cut_anyhow(sizes: list[int], steps: list[int]) -> None:
    hello = message(extension(21, bytes(100)), server_name("a.example.com"), protocols(b"h2"))
    assert len(hello) <= RECORDS_LIMIT
    wire, at = b"", 0
    while at < len(hello):
        size = sizes[at % len(sizes)]
        wire += records(hello[at : at + size])
        at += size
    reader, at = HelloReader(), 0
    while not reader.feed(wire[at : at + steps[at % len(steps)]]):
        at += steps[at % len(steps)]
    assert (reader.server_name, reader.alpn) == ("a.example.com", ("h2",))


def test_what_comes_after_the_hello_is_handed_on_unread() -> None:
    early = b"\x14\x03\x03\x00\x01\x01" + b"\x17\x03\x03\x00\x05early"
    assert read(records(message(server_name("example.com"))) + early).server_name == "example.com"


def test_grease_is_passed_over() -> None:
    grease = struct.pack(">H", GREASE)
    hello = message(
        extension(GREASE, b""),
        server_name("example.com"),
        protocols(grease, b"http/1.1"),
        extension(0xFE0D, bytes(200)),
        extension(0xFAFA, b"\x00"),
        ciphers=grease + b"\x13\x01",
    )
    reader = read(records(hello))
    assert reader.server_name == "example.com"
    assert reader.alpn == ("http/1.1",)
    assert reader.encrypted


def test_a_hello_of_tls_1_0_without_extensions_has_no_name() -> None:
    assert read(records(message(version=0x0301))).server_name is None


@pytest.mark.parametrize(
    "name", ["EXAMPLE.com", "example.com.", "_dmarc.example.com", "192.0.2.1", "localhost"]
)
def test_a_name_is_told_as_it_was_said(name: str) -> None:
    assert read(records(message(server_name(name)))).server_name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a..b",
        ".example.com",
        "*.example.com",
        "exa mple.com",
        "example.com\0.evil.com",
        "example.com\n",
        "example.com/",
        "user@example.com",
        "example.com:443",
        "::1",
        "[::1]",
        "exämple.com",
        "a" * 64 + ".com",
        ".".join(["a" * 63] * 4),
    ],
)
def test_what_is_no_name_of_a_host(name: str) -> None:
    with pytest.raises(BadHello, match="no name of a host"):
        HelloReader().feed(records(message(server_name(name))))


GOOD = message(server_name("example.com"))
BROKEN = {
    "several server names": names((0, b"a.com"), (0, b"b.com")),
    "unknown kind": names((1, b"a.com")),
    "ends too early": extension(0, vector(2, b"")),
    "belong to nothing": extension(0, vector(2, b"\x00" + vector(2, b"a.com")) + b"x"),
    "an extension twice": server_name("a.com") + server_name("b.com"),
    "protocol without a name": server_name("a.com") + protocols(b"h2", b""),
}


@pytest.mark.parametrize(("why", "extensions"), BROKEN.items(), ids=BROKEN)
def test_an_extension_that_can_be_understood_in_two_ways(why: str, extensions: bytes) -> None:
    with pytest.raises(BadHello, match=why):
        HelloReader().feed(records(message(extensions)))


WRONG = {
    "SSLv2": (b"\x80\x2e\x01\x03\x01", "TLS handshake"),
    "HTTP": (b"GET / HTTP/1.1\r\n", "TLS handshake"),
    "ssh": (b"S", "TLS handshake"),
    "alert": (alert(Reason.LIMIT), "TLS handshake"),
    "version 2": (b"\x16\x02", "unknown TLS version"),
    "empty record": (b"\x16\x03\x01\x00\x00", "impossible length"),
    "long record": (b"\x16\x03\x01\x40\x01", "impossible length"),
    "between": (records(GOOD[:10]) + b"\x15\x03\x01\x00\x02\x01\x00", "TLS handshake"),
    "server hello": (records(b"\x02" + GOOD[1:]), "no ClientHello"),
    "hello of version 2": (records(message(version=0x0200)), "unknown TLS version"),
    "second message": (records(GOOD + GOOD), "shares a record"),
    "no ciphers": (records(message(ciphers=b"")), "ciphers"),
    "half a cipher": (records(message(ciphers=b"\x13")), "ciphers"),
    "long extensions": (records(b"\x01" + vector(3, GOOD[4:] + b"x")), "belong to nothing"),
    "short extensions": (records(b"\x01" + vector(3, GOOD[4:-1])), "ends too early"),
    "too long": (records(b"\x01" + (HELLO_LIMIT + 1).to_bytes(3)), "16 KiB"),
}


@pytest.mark.parametrize(("data", "why"), WRONG.values(), ids=WRONG)
def test_what_is_no_client_hello(data: bytes, why: str) -> None:
    for step in (len(data), 1):
        with pytest.raises(BadHello, match=why):
            read(data, step)


def test_the_largest_hello_is_read_and_more_is_not_waited_for() -> None:
    padding = HELLO_LIMIT + 4 - len(message(server_name("example.com"), extension(21, b"")))
    largest = message(server_name("example.com"), extension(21, bytes(padding)))
    assert len(largest) == HELLO_LIMIT + 4
    assert read(records(largest, 65)).server_name == "example.com"


@pytest.mark.parametrize("step", [1, 1000, None])
def test_a_hello_in_more_records_than_anybody_uses_is_not_waited_for(step: int | None) -> None:
    padding = RECORDS_LIMIT - len(message(server_name("example.com"), extension(21, b"")))
    for more in (0, 1):
        hello = message(server_name("example.com"), extension(21, bytes(padding + more)))
        assert len(hello) == RECORDS_LIMIT + more
        if not more:
            assert read(records(hello, 1), step).server_name == "example.com"
            continue
        with pytest.raises(BadHello, match="256 records"):
            feed(HelloReader(), records(hello, 1), step)


@given(st.binary(max_size=400), st.integers(0, 400), st.integers(0, 255))
def test_nothing_but_a_hello_or_a_refusal_comes_of_any_bytes(
    noise: bytes, at: int, byte: int
) -> None:
    hello = bytearray(records(message(extension(5, b"x"), server_name("a.com"), protocols(b"h2"))))
    hello[at % len(hello)] = byte
    for data in (noise, bytes(hello), bytes(hello[: at % len(hello)]) + noise, b"\x16\x03" + noise):
        with contextlib.suppress(BadHello):
            HelloReader().feed(data)


@pytest.mark.parametrize(
    ("reason", "description"),
    [
        (Reason.DENIED_BY_RULE, 49),
        (Reason.POLICY_CHANGED, 49),
        (Reason.SERVER_NAME_MISMATCH, 112),
        (Reason.SERVER_NAME_MISSING, 109),
        (Reason.BAD_PROTOCOL, 50),
        (Reason.UPSTREAM_TIMEOUT, 80),
    ],
)
def test_an_alert_is_one_record_of_tls_1_2(reason: Reason, description: int) -> None:
    assert alert(reason) == b"\x15\x03\x03\x00\x02\x02" + bytes([description])


def test_python_understands_an_alert() -> None:
    context = ssl.create_default_context()
    answer = ssl.MemoryBIO()
    answer.write(alert(Reason.DENIED_BY_RULE))
    tls = context.wrap_bio(answer, ssl.MemoryBIO(), server_hostname="example.com")
    with pytest.raises(ssl.SSLError, match=r"(?i)access.denied"):
        tls.do_handshake()
