"""A real DNS server on loopback, over UDP and TCP, that tells what a test wants it to."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from hutch.network.dns.message import (
    PLAIN_LIMIT,
    Code,
    Edns,
    Message,
    Record,
    Type,
    decode,
    encode,
    framed,
)

SOA = Record("test", Type.SOA, 30, ("ns.test", "root.test", 1, 2, 3, 4, 20))

Reply = Message | bytes | None
Hook = Callable[[Message, bool], Reply]
"""Given a query and whether it came over TCP: an answer, bytes to send, or silence."""


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class NameServer:
    """Answers from `zone`, or what `hook` says. `asked` has every query."""

    zone: list[Record] = field(default_factory=list)
    hook: Hook | None = None
    asked: list[tuple[Message, bool, tuple[str, int]]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    send: Callable[[bytes, tuple[str, int]], None] = lambda data, to: None

    @property
    def place(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def names(self) -> list[tuple[str, int]]:
        """Return what was asked, whatever the case and the way."""
        asked = (query.question for query, _, _ in self.asked)
        return [(one.name.lower(), one.type) for one in asked if one]

    def reply(self, query: Message, tcp: bool) -> bytes | None:
        said = self.hook(query, tcp) if self.hook else self.answer(query)
        if said is None or isinstance(said, bytes):
            return said
        limit = 65535 if tcp else query.edns.size if query.edns else PLAIN_LIMIT
        return encode(said, limit)

    def answer(self, query: Message) -> Message:
        """Return what the zone says, CNAMEs followed within it."""
        assert query.question is not None
        name, kind = query.question.name.lower(), query.question.type
        found: list[Record] = []
        seen: set[str] = set()
        known = {one.name for one in self.zone}
        while name not in seen:
            seen.add(name)
            if here := [one for one in self.zone if one.name == name and one.type == kind]:
                found += here
                break
            links = [one for one in self.zone if one.name == name and one.type == Type.CNAME]
            if not links:
                break
            found += links
            name = str(links[0].data[0]).lower()
        code = Code.NOERROR if name in known else Code.NXDOMAIN
        answered = any(one.type == kind for one in found)
        return replace(
            query,
            response=True,
            code=code,
            recursion_available=True,
            answers=tuple(found),
            authority=() if answered else (SOA,),
            edns=Edns() if query.edns else None,
        )


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: NameServer) -> None:
        self.server = server

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        self.server.send = transport.sendto

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = decode(data)
        self.server.asked.append((query, False, addr))
        self.server.arrived.set()
        reply = self.server.reply(query, False)
        if reply is not None:
            self.server.send(reply, addr)


@contextlib.asynccontextmanager
async def serving(server: NameServer) -> AsyncIterator[NameServer]:
    """Have a server listen, on one free port for UDP and TCP."""
    loop = asyncio.get_running_loop()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            size = int.from_bytes(await reader.readexactly(2), "big")
            query = decode(await reader.readexactly(size))
            server.asked.append((query, True, writer.get_extra_info("peername")))
            if (reply := server.reply(query, True)) is not None:
                writer.write(framed(reply))
                await writer.drain()
        writer.close()

    udp, tcp = _pair()
    server.port = tcp.getsockname()[1]
    transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(server), sock=udp)
    streams = await asyncio.start_server(stream, sock=tcp)
    try:
        yield server
    finally:
        transport.close()
        streams.close()
        await streams.wait_closed()


def _pair() -> tuple[socket.socket, socket.socket]:
    """Return a UDP and a TCP socket on the same port: another program may have one of the two."""
    while True:
        tcp = socket.create_server(("127.0.0.1", 0))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.getsockname())
        except OSError:
            tcp.close()
            udp.close()
            continue
        udp.setblocking(False)
        return udp, tcp
