"""A sandbox of the gateway on loopback: real sockets, pretend guests, names and destinations."""

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from hutch.network.addresses import Address, AddressKind
from hutch.network.dns.client import Answer, Resolver
from hutch.network.dns.message import Code
from hutch.network.gateway import accept, judge
from hutch.network.gateway.dial import dial
from hutch.network.gateway.limits import Limits
from hutch.network.gateway.records import Records
from hutch.network.gateway.sandbox import Ends, Identity, Sandbox, Surroundings
from hutch.network.routes import Routes
from hutch.networking import NetworkPolicy, NetworkRecord

LO = socket.if_nametoindex("lo")
TIME = 30.0

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def bound(kind: int) -> socket.socket:
    """Return a socket that is bound to loopback as a sandbox's is to its TAP."""
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
    sock.bind(("127.0.0.1" if kind == socket.SOCK_STREAM else "0.0.0.0", 0))
    if kind == socket.SOCK_STREAM:
        sock.listen(1024)
    sock.setblocking(False)
    return sock


class Names(Resolver):
    """What names resolve to, by a table; `hold` makes whoever asks wait."""

    def __init__(self) -> None:
        super().__init__([])
        self.known: dict[str, list[Address]] = {}
        self.hold: asyncio.Event | None = None
        self.asked = asyncio.Event()

    async def addresses(self, name: str) -> Answer:
        self.asked.set()
        if self.hold is not None:
            await self.hold.wait()
        if name in self.known:
            return Answer(tuple(self.known[name]), 60, Code.NOERROR)
        return Answer((), 60, Code.SERVFAIL if name.startswith("broken") else Code.NXDOMAIN)


class Kinds(Routes):
    """Where addresses lead: loopback is the public internet here."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[Address, AddressKind] = {}

    def kind(self, address: Address) -> AddressKind:
        if address in self.kinds:
            return self.kinds[address]
        return AddressKind.PUBLIC if address.is_loopback else super().kind(address)


class World:
    """A sandbox, whose guest connects with `connect`, and the servers of the world outside."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.listener = bound(socket.SOCK_STREAM)
        self.dns = bound(socket.SOCK_DGRAM)
        self.clock = bound(socket.SOCK_DGRAM)
        self.listening = self.listener.getsockname()
        self.asking = ("127.0.0.1", self.dns.getsockname()[1])
        self.names = Names()
        self.kinds = Kinds()
        self.ports: dict[int, int] = {}
        self.dialled: list[int] = []
        self.records: list[NetworkRecord] = []
        self.recorded = asyncio.Event()
        self.crowded = 0
        self._table = os.open(directory / "names", os.O_RDWR | os.O_CREAT)
        self._destinations: dict[tuple[str, int], tuple[str, int]] = {}
        self._stack = contextlib.AsyncExitStack()
        self._streams: list[Stream] = []
        monkeypatch.setattr(accept, "destination_of", self._destination)
        monkeypatch.setattr(judge, "dial", self._dial)

    async def open(self, policy: NetworkPolicy | None, limits: Limits) -> None:
        self.around = around = Surroundings(
            limits=limits,
            routes=self.kinds,
            resolver=lambda: self.names,
            internal=tuple,
            crowded=self._crowded,
        )
        # With a clock that stands: no more records than may be made at once.
        sequence = itertools.count(1)
        records = Records("sb_1", self._publish, sequence=sequence, clock=lambda: 0.0)
        ends = Ends(self.listener, self.dns, self.clock, self._table)
        self.sandbox = Sandbox(Identity("sb_1", "box", "lo", LO), ends, records, around)
        if policy is not None:
            await self.sandbox.update(policy)

    async def close(self) -> None:
        await self.sandbox.close()
        for _, writer in self._streams:
            writer.transport.abort()
        await self._stack.aclose()

    def _destination(self, guest: socket.socket) -> tuple[str, int]:
        return self._destinations.pop(guest.getpeername())

    async def _dial(
        self, addresses: Sequence[Address], port: int, *, timeout: float
    ) -> tuple[socket.socket, Address]:
        self.dialled.append(port)
        return await dial(addresses, self.ports.get(port, port), timeout=timeout)

    def _publish(self, _: int, record: NetworkRecord) -> None:
        self.records.append(record)
        self.recorded.set()

    def _crowded(self) -> None:
        self.crowded += 1

    async def record(self, number: int = 1) -> NetworkRecord:
        """Return a record once there are that many."""
        async with asyncio.timeout(TIME):
            while len(self.records) < number:
                self.recorded.clear()
                await self.recorded.wait()
        return self.records[number - 1]

    def name(self, name: str, *addresses: str) -> None:
        """Have a name resolve to these addresses."""
        self.names.known[name] = [ip_address(address) for address in addresses or ("127.0.0.1",)]

    def address(self, name: str) -> str:
        """Return the address at which the guest finds a name."""
        table = self.sandbox._in_force.names
        assert table is not None
        return str(table.address_of(name))

    async def serve(self, port: int, serve: Serve) -> None:
        """Have a server where connections to a port end up."""

        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                await serve(reader, writer)
            writer.close()
            self._streams.append((reader, writer))

        server = await asyncio.start_server(run, "127.0.0.1", 0)
        await self._stack.enter_async_context(server)
        self.ports[port] = server.sockets[0].getsockname()[1]

    async def connect(self, host: str, port: int) -> Stream:
        """Connect as the guest would: `host` is a name, or an address."""
        try:
            address = str(IPv4Address(host))
        except ValueError:
            address = self.address(host)
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        self._destinations[sock.getsockname()] = (address, port)
        await asyncio.get_running_loop().sock_connect(sock, self.listening)
        stream = await asyncio.open_connection(sock=sock)
        self._streams.append(stream)
        return stream


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes, up to the end."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def is_reset(reader: asyncio.StreamReader) -> bool:
    """Tell whether a connection ends by a RST; what comes before is dropped."""
    try:
        async with asyncio.timeout(TIME):
            while await reader.read(1 << 16):
                pass
    except ConnectionResetError:
        return True
    return False


async def knock(address: tuple[str, int]) -> bool:
    """Connect and tell whether that ends by a RST; which may come while it connects."""
    loop = asyncio.get_running_loop()
    with socket.socket() as caller:
        caller.setblocking(False)
        try:
            async with asyncio.timeout(TIME):
                await loop.sock_connect(caller, address)
                await loop.sock_recv(caller, 1)
        except ConnectionResetError:
            return True
    return False
