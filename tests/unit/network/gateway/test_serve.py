import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

import pytest

from hutch.network.addresses import AddressKind
from hutch.network.gateway.limits import Limits
from hutch.networking import NetworkLayer, NetworkMode, NetworkPolicy, Reason
from tests.unit.network.gateway.world import World, echo, is_reset

Worlds = Callable[..., Awaitable[World]]

PUBLIC = NetworkPolicy()
DENY = NetworkPolicy(mode=NetworkMode.DENY)

ALERT = b"\x15\x03\x03\x00\x02\x02"


def only(*allow: str, **more: object) -> NetworkPolicy:
    return NetworkPolicy(mode=NetworkMode.DENY, allow=list(allow), **more)  # type: ignore[arg-type]


def hello(name: str | None) -> bytes:
    """Return a real ClientHello."""
    context = ssl.create_default_context()
    context.check_hostname = False
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server of HTTP that answers each request with the first line of it."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            line = head.partition(b"\r\n")[0]
            length = str(len(line)).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\n" + line)


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return the status and body of one answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    fields = head.decode().lower().split("\r\n")
    length = next(int(f.split(":")[1]) for f in fields if f.startswith("content-length"))
    return int(fields[0].split()[1]), await reader.readexactly(length)


async def test_an_allowed_name_is_carried_both_ways(worlds: Worlds) -> None:
    world = await worlds(only("a.example:7"))
    world.name("a.example")
    await world.serve(7, echo)
    reader, writer = await world.connect("a.example", 7)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.write_eof()
    assert await reader.read() == b""
    record = await world.record()
    assert record.allowed
    assert (record.layer, record.name, record.port) == (NetworkLayer.TCP, "a.example", 7)
    assert (record.address, record.rule) == ("127.0.0.1", "a.example:7")
    assert len(world.records) == 1


async def test_a_server_that_speaks_first_is_heard(worlds: Worlds) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-here\r\n")
        await echo(reader, writer)

    world = await worlds(PUBLIC)
    world.name("a.example")
    await world.serve(22, greet)
    reader, writer = await world.connect("a.example", 22)
    assert await reader.readline() == b"SSH-2.0-here\r\n"
    writer.write(b"SSH-2.0-me\r\n")
    assert await reader.readline() == b"SSH-2.0-me\r\n"


async def test_a_port_that_is_not_allowed_is_reset(worlds: Worlds) -> None:
    world = await worlds(only("a.example"))
    world.name("a.example")
    reader, _ = await world.connect("a.example", 22)
    assert await is_reset(reader)
    record = await world.record()
    assert (record.allowed, record.reason) == (False, Reason.PORT_NOT_ALLOWED)
    assert world.dialled == []


async def test_an_address_that_stands_for_nothing_is_reset(worlds: Worlds) -> None:
    world = await worlds(PUBLIC)
    reader, _ = await world.connect("198.18.77.1", 22)
    assert await is_reset(reader)
    assert (await world.record()).reason is Reason.ADDRESS_UNKNOWN
    reader, _ = await world.connect("198.18.0.1", 22)
    assert await is_reset(reader)
    assert world.dialled == []


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.0.0.1", Reason.ADDRESS_LAN),
        ("192.168.1.1", Reason.ADDRESS_LAN),
        ("169.254.169.254", Reason.ADDRESS_METADATA),
        ("168.63.129.16", Reason.ADDRESS_METADATA),
        ("100.100.100.200", Reason.ADDRESS_METADATA),
        ("0.0.0.0", None),
        ("224.0.0.1", Reason.ADDRESS_SPECIAL),
        ("255.255.255.255", Reason.ADDRESS_SPECIAL),
    ],
)
async def test_addresses_that_are_not_public_are_reset(
    worlds: Worlds, address: str, reason: Reason | None
) -> None:
    world = await worlds(PUBLIC)
    reader, _ = await world.connect(address, 22)
    assert await is_reset(reader)
    record = await world.record()
    assert not record.allowed
    assert record.reason is reason or reason is None
    assert record.address == address
    assert world.dialled == []


async def test_a_name_at_forbidden_addresses_is_not_connected_to(worlds: Worlds) -> None:
    world = await worlds(PUBLIC)
    world.name("rebinds.example", "10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "169.254.169.254")
    reader, _ = await world.connect("rebinds.example", 22)
    assert await is_reset(reader)
    assert not (await world.record()).allowed
    assert world.dialled == []


async def test_only_the_permitted_ones_of_several_addresses_are_tried(worlds: Worlds) -> None:
    world = await worlds(PUBLIC)
    world.name("mixed.example", "10.0.0.1", "127.0.0.1")
    await world.serve(7, echo)
    reader, writer = await world.connect("mixed.example", 7)
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    assert (await world.record()).address == "127.0.0.1"


async def test_what_cannot_be_had_is_reset_and_says_why(worlds: Worlds) -> None:
    world = await worlds(PUBLIC)
    world.name("closed.example")
    with socket.socket() as held:  # refuses, and nobody else gets its port
        held.bind(("127.0.0.1", 0))
        world.ports[22] = held.getsockname()[1]
        reader, _ = await world.connect("closed.example", 22)
        assert await is_reset(reader)
    record = await world.record()
    assert (record.allowed, record.reason) == (True, Reason.UPSTREAM_REFUSED)
    for number, (name, reason) in enumerate(
        [("nowhere.example", Reason.NAME_NOT_FOUND), ("broken.example", Reason.RESOLVE_FAILED)], 2
    ):
        reader, _ = await world.connect(name, 22)
        assert await is_reset(reader)
        assert (await world.record(number)).reason is reason


async def test_the_host_is_reached_by_its_own_rule_only(worlds: Worlds) -> None:
    world = await worlds(NetworkPolicy(allow_host=[3000]))
    await world.serve(3000, echo)
    await world.serve(3001, echo)
    reader, writer = await world.connect("198.18.0.3", 3000)
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    assert (await world.record()).name == "host.hutch"
    reader, _ = await world.connect("198.18.0.3", 3001)
    assert await is_reset(reader)
    assert not (await world.record(2)).allowed
    assert world.dialled == [3000]


async def test_a_port_that_is_reserved_is_closed_whatever_a_policy_opens(worlds: Worlds) -> None:
    world = await worlds(NetworkPolicy(allow_host=[3000]))
    await world.serve(3000, echo)
    reader, writer = await world.connect("198.18.0.3", 3000)
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    world.around.reserved.add(3000)
    await world.sandbox.reserve()
    assert await is_reset(reader)
    reader, _ = await world.connect("198.18.0.3", 3000)
    assert await is_reset(reader)
    assert world.dialled == [3000]
    world.around.reserved.clear()
    await world.sandbox.reserve()
    reader, writer = await world.connect("198.18.0.3", 3000)
    writer.write(b"y")
    assert await reader.readexactly(1) == b"y"


async def test_a_port_that_is_reserved_is_closed_to_rules_for_addresses(worlds: Worlds) -> None:
    world = await worlds(NetworkPolicy(allow=["127.0.0.1"]))
    world.kinds.kinds[ip_address("127.0.0.1")] = AddressKind.HOST
    world.name("a.example")
    await world.serve(3000, echo)
    reader, writer = await world.connect("a.example", 3000)
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    world.around.reserved.add(3000)
    await world.sandbox.reserve()
    assert await is_reset(reader)
    reader, _ = await world.connect("a.example", 3000)
    assert await is_reset(reader)
    assert world.dialled == [3000]


# TLS


async def test_the_server_name_must_be_the_name(worlds: Worlds) -> None:
    heard: list[bytes] = []

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1 << 16))
        writer.write(b"served")

    world = await worlds(PUBLIC)
    world.name("a.example")
    await world.serve(443, server)
    said = hello("A.example")
    reader, writer = await world.connect("a.example", 443)
    writer.write(said[:1])
    await writer.drain()
    writer.write(said[1:])
    assert await reader.readexactly(6) == b"served"
    assert heard == [said]
    record = await world.record()
    assert (record.layer, record.allowed) == (NetworkLayer.TLS, True)
    assert record.detail.lower() == "a.example"

    for number, (name, reason, description) in enumerate(
        [
            ("b.example", Reason.SERVER_NAME_MISMATCH, 112),
            (None, Reason.SERVER_NAME_MISSING, 109),
        ],
        2,
    ):
        reader, writer = await world.connect("a.example", 443)
        writer.write(hello(name))
        assert await reader.read() == ALERT + bytes([description])
        record = await world.record(number)
        assert (record.allowed, record.reason, record.layer) == (False, reason, NetworkLayer.TLS)
    assert [data for data in heard if data] == [said]  # the others had not a byte


async def test_a_denied_name_is_told_so_in_tls(worlds: Worlds) -> None:
    world = await worlds(DENY)
    reader, writer = await world.connect("a.example", 443)
    writer.write(hello("a.example"))
    assert await reader.read() == ALERT + b"\x31"  # access_denied
    record = await world.record()
    assert (record.reason, record.layer) == (Reason.NOT_ALLOWED, NetworkLayer.TLS)
    assert record.detail == "a.example"
    assert len(world.records) == 1
    assert world.dialled == []


async def test_what_is_no_tls_is_refused_on_443_unless_a_rule_says_so(worlds: Worlds) -> None:
    world = await worlds(only("a.example", "ssh.example:443/tcp"))
    world.name("a.example")
    world.name("ssh.example")
    await world.serve(443, echo)
    reader, writer = await world.connect("a.example", 443)
    writer.write(b"SSH-2.0-me\r\n")
    assert (await reader.read())[:6] == ALERT
    assert (await world.record()).reason is Reason.BAD_PROTOCOL
    reader, writer = await world.connect("ssh.example", 443)
    writer.write(b"SSH-2.0-me\r\n")
    assert await reader.readline() == b"SSH-2.0-me\r\n"


async def test_a_slow_hello_is_ended(worlds: Worlds) -> None:
    world = await worlds(PUBLIC, Limits(hello_time=0.05))
    world.name("a.example")
    await world.serve(443, echo)
    reader, writer = await world.connect("a.example", 443)
    writer.write(hello("a.example")[:20])
    assert (await reader.read())[:6] == ALERT
    assert (await world.record()).reason is Reason.BAD_PROTOCOL


async def test_server_names_are_looked_at_on_any_port(worlds: Worlds) -> None:
    world = await worlds(only("a.example:8443", "b.example:8443/tcp"))
    world.name("a.example")
    world.name("b.example")
    await world.serve(8443, echo)
    reader, writer = await world.connect("a.example", 8443)
    writer.write(hello("c.example"))
    assert await reader.read() == ALERT + b"\x70"
    assert (await world.record()).reason is Reason.SERVER_NAME_MISMATCH
    reader, writer = await world.connect("b.example", 8443)
    said = hello("c.example")
    writer.write(said)
    assert await reader.readexactly(len(said)) == said


async def test_a_guest_that_never_says_hello_is_recorded(worlds: Worlds) -> None:
    world = await worlds(PUBLIC)
    world.name("a.example")
    await world.serve(443, echo)
    reader, writer = await world.connect("a.example", 443)
    writer.write_eof()
    assert await is_reset(reader)
    record = await world.record()
    assert (record.allowed, record.layer, record.name) == (True, NetworkLayer.TCP, "a.example")


# HTTP


async def test_each_request_is_judged(worlds: Worlds) -> None:
    world = await worlds(PUBLIC)
    world.name("a.example")
    await world.serve(80, web)
    reader, writer = await world.connect("a.example", 80)
    writer.write(b"GET /one?secret=1 HTTP/1.1\r\nHost: a.example\r\n\r\n")
    assert await answer(reader) == (200, b"GET /one?secret=1 HTTP/1.1")
    writer.write(b"GET /two HTTP/1.1\r\nHost: b.example\r\n\r\n")
    status, body = await answer(reader)
    assert status == 403
    assert b"b.example" in body
    first, second = await world.record(), await world.record(2)
    assert (first.layer, first.allowed, first.detail) == (NetworkLayer.HTTP, True, "GET /one")
    assert (second.allowed, second.reason) == (False, Reason.HOST_MISMATCH)


async def test_a_denied_name_is_told_so_in_http(worlds: Worlds) -> None:
    world = await worlds(NetworkPolicy(deny=["a.example"]))
    reader, writer = await world.connect("a.example", 80)
    writer.write(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
    status, body = await answer(reader)
    assert status == 403
    assert b"a.example" in body
    assert await reader.read() == b""
    record = await world.record()
    assert (record.reason, record.rule) == (Reason.DENIED_BY_RULE, "a.example")
    assert (record.layer, record.detail) == (NetworkLayer.HTTP, "GET /")
    assert len(world.records) == 1
    assert world.dialled == []


async def test_a_denial_is_recorded_though_nobody_asks(worlds: Worlds) -> None:
    world = await worlds(DENY, Limits(hello_time=0.05))
    for number, port in ((1, 80), (2, 443)):
        reader, writer = await world.connect("a.example", port)
        if port == 80:
            writer.write_eof()
        await is_reset(reader)  # or a mere end
        assert (await world.record(number)).reason is Reason.NOT_ALLOWED


async def test_what_is_no_http_is_refused_on_80(worlds: Worlds) -> None:
    world = await worlds(PUBLIC)
    world.name("a.example")
    await world.serve(80, web)
    reader, writer = await world.connect("a.example", 80)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert b"200" not in await reader.read()
    record = await world.record()
    assert not record.allowed


async def test_a_head_that_does_not_come_is_not_waited_for(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hutch.network.gateway.sandbox.SWEEP", 0.01)
    world = await worlds(PUBLIC, Limits(hello_time=0.05))
    world.name("a.example")
    await world.serve(80, web)
    reader, writer = await world.connect("a.example", 80)
    writer.write(b"GET / HTTP/1.1\r\nHos")
    assert await is_reset(reader)
    assert (await world.record(2)).reason is Reason.BAD_PROTOCOL


# Ends


async def test_a_reset_upstream_is_a_reset_here(worlds: Worlds) -> None:
    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    world = await worlds(PUBLIC)
    world.name("a.example")
    await world.serve(7, break_off)
    reader, writer = await world.connect("a.example", 7)
    writer.write(b"x")
    assert await is_reset(reader)


async def test_half_closed_connections_are_not_kept_for_ever(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hutch.network.gateway.sandbox.SWEEP", 0.01)
    ended = asyncio.Event()

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b"x"
        await ended.wait()

    world = await worlds(PUBLIC, Limits(half_closed_time=0.05))
    world.name("a.example")
    await world.serve(7, keep)
    reader, writer = await world.connect("a.example", 7)
    writer.write(b"x")
    writer.write_eof()
    assert await is_reset(reader)
    assert (await world.record(2)).reason is Reason.LIMIT
    ended.set()


async def test_a_download_goes_on_after_the_guest_has_ended(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hutch.network.gateway.sandbox.SWEEP", 3600.0)
    more = asyncio.Queue[bytes]()

    async def download(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""
        while data := await more.get():
            writer.write(data)

    world = await worlds(PUBLIC, Limits(half_closed_time=1e-9))
    world.name("a.example")
    await world.serve(7, download)
    reader, writer = await world.connect("a.example", 7)
    writer.write_eof()
    for byte in (b"x", b"y", b"z"):
        more.put_nowait(byte)
        assert await reader.readexactly(1) == byte
        world.sandbox._sweep()
        assert world.sandbox.connections()[0].ending is None
    await asyncio.sleep(0.001)  # the clock moves, the download does not
    world.sandbox._sweep()
    assert await is_reset(reader)
    more.put_nowait(b"")


async def test_a_judge_that_fails_is_a_denial(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await worlds(PUBLIC)
    world.name("a.example")
    await world.serve(7, echo)

    def fail(*_: object) -> AddressKind:
        raise RuntimeError("no table of routes")

    monkeypatch.setattr(world.kinds, "kind", fail)
    reader, _ = await world.connect("a.example", 7)
    assert await is_reset(reader)
    record = await world.record()
    assert (record.allowed, record.reason) == (False, Reason.NOT_ALLOWED)
    assert world.dialled == []
