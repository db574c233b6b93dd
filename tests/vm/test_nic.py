"""Machines with a network card that leads somewhere: to a namespace of the test's own.

Each machine has a peer: the other side of its TAP, with servers that echo. There is no gateway in
between, and nothing leaves the peer's namespace.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hutch.engine.base import Machine, MachineSpec, MachineType
from hutch.engine.qemu import QemuEngine
from hutch.errors import EngineError
from hutch.guest.base import Guest, GuestExec
from hutch.guest.session import connect_guest
from hutch.images.base import Image, Kernel
from hutch.networking import GATEWAY_ADDRESS, GATEWAY_MAC, GUEST_ADDRESS
from tests.harness.namespaces import Namespace
from tests.vm.workshop import (
    SIZE,
    Template,
    build,
    clone_spec,
    cloned,
    identity,
    new_engine,
    sh,
)
from tests.waiting import until

FAR_ADDRESS = "203.0.113.7"
"""What a machine reaches by way of its router only."""
BUSY = 2_000_000
"""Bytes that keep a connection busy: an emulated nc takes a kilobyte at a time."""
TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 2, 0x1000, 0x4000
CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4 = 0, 1, 7, 11
"""Features of virtio-net, by their bit."""


def open_tap() -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"tap0", flags))
    return tap


@dataclass(frozen=True, slots=True)
class Peer:
    """The other side of a TAP: servers, one of them for names.

    What listens at `port` echoes, that at `bulk` takes all and then gives back as much.
    """

    tap: int
    port: int
    bulk: int
    connections: list[asyncio.StreamWriter]


@asynccontextmanager
async def new_peer() -> AsyncIterator[Peer]:
    async with AsyncExitStack() as stack:
        space = stack.enter_context(Namespace())
        tap = space.call(open_tap)
        stack.callback(os.close, tap)
        set_up(space)
        connections: list[asyncio.StreamWriter] = []
        port = await serve(stack, space, _echo, connections)
        bulk = await serve(stack, space, _give_back, [])
        names = space.call(name_server)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(_Names, sock=names)
        stack.callback(transport.close)
        yield Peer(tap, port, bulk, connections)


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def serve(
    stack: AsyncExitStack,
    space: Namespace,
    work: Serve,
    connections: list[asyncio.StreamWriter],
) -> int:
    """Serve on a port of a namespace, and close all in the end; `connections` are the open ones."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        try:
            with contextlib.suppress(ConnectionError):
                await work(reader, writer)
        finally:
            connections.remove(writer)
            writer.close()

    async def close() -> None:
        server.close()
        for writer in connections:
            writer.transport.abort()
        await until(lambda: not connections, what="the peer's connections are gone")

    listener = space.call(lambda: socket.create_server(("0.0.0.0", 0)))
    server = await asyncio.start_server(one, sock=listener)
    stack.push_async_callback(close)
    port: int = listener.getsockname()[1]
    return port


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def _give_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    count = 0
    while data := await reader.read(1 << 16):
        count += len(data)
    writer.write(bytes(count))
    await writer.drain()


def set_up(space: Namespace) -> None:
    for command in (
        f"link set tap0 address {GATEWAY_MAC}",
        f"address add {GATEWAY_ADDRESS}/32 dev tap0",
        f"address add {FAR_ADDRESS}/32 dev lo",
        "link set tap0 up",
        f"route add {GUEST_ADDRESS}/32 dev tap0 src {GATEWAY_ADDRESS}",
    ):
        space.run("ip", *command.split())


def name_server() -> socket.socket:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((GATEWAY_ADDRESS, 53))
    return server


class _Names(asyncio.DatagramProtocol):
    """Every name has the far address."""

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        wants_address = data[-4:-2] == b"\0\x01"
        answer = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04" + socket.inet_aton(FAR_ADDRESS)
        counts = struct.pack(">4H", 1, wants_address, 0, 0)
        head = data[:2] + b"\x81\x80" + counts
        self._transport.sendto(head + data[12:] + (answer if wants_address else b""), addr)


@pytest.fixture(scope="module")
def template(kernel: Kernel, busybox: Image) -> Iterator[Template]:
    """A machine frozen with a TAP that nothing answers on."""
    with ExitStack() as stack:
        try:
            space = stack.enter_context(Namespace())
            tap = space.call(open_tap)
        except OSError as cause:
            pytest.skip(f"this host denies its namespaces or TAPs: {cause}")
        stack.callback(os.close, tap)
        workshop = Path(tempfile.mkdtemp(prefix="h-", dir="/tmp"))
        stack.callback(shutil.rmtree, workshop, ignore_errors=True)
        yield asyncio.run(build(workshop, kernel, busybox, MachineType.MICROVM, tap=tap))


@pytest.fixture
async def engine(template: Template) -> AsyncIterator[QemuEngine]:
    made = new_engine()
    yield made
    await made.drop(template.frozen)


NewSpec = Callable[[str, Peer], MachineSpec]


@pytest.fixture
def new_spec(short_tmp: Path, engine: QemuEngine, template: Template) -> NewSpec:
    def make(name: str, peer: Peer) -> MachineSpec:
        return replace(clone_spec(engine, template, short_tmp, name), tap=peer.tap)

    return make


@dataclass(frozen=True, slots=True)
class Line:
    """A connection of a guest's program to its peer."""

    guest: Guest
    name: str

    async def say(self, word: str) -> None:
        """Send a word, and wait until it came back."""
        await sh(self.guest, f"echo {word} >/run/{self.name}.in")

        async def came_back() -> bool:
            return (await self.heard()).endswith(f"{word}\n")

        await until(came_back, what=f"{word} comes back on {self.name}")

    async def heard(self) -> str:
        return await sh(self.guest, f"cat /run/{self.name}.out")

    async def ended(self) -> bool:
        return await sh(self.guest, f"ls /run/{self.name}.ended 2>/dev/null") != ""


async def dial(guest: Guest, name: str, peer: Peer, address: str = GATEWAY_ADDRESS) -> Line:
    file = f"/run/{name}"
    await sh(guest, f"mkfifo {file}.in")
    script = f"exec 3<>{file}.in; nc {address} {peer.port} <&3 >{file}.out 2>&1; >{file}.ended"
    await guest.spawn_exec(GuestExec(name, ["sh", "-c", script]))
    line = Line(guest, name)
    await line.say("hello")
    return line


async def reaches(guest: Guest, peer: Peer, address: str = GATEWAY_ADDRESS) -> str:
    """Return what a program gets that connects, sends a word and waits for it."""
    return await sh(guest, f"echo word | nc -w 60 {address} {peer.port} 2>&1")


async def test_a_clone_has_the_network_that_was_frozen(
    engine: QemuEngine, new_spec: NewSpec, template: Template
) -> None:
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(new_peer()) for _ in range(2)]
        machine, guest = await stack.enter_async_context(
            cloned(engine, new_spec("one", one), template)
        )
        _, other = await stack.enter_async_context(cloned(engine, new_spec("two", two), template))
        # With equal addresses, at once.
        assert await reaches(guest, one) == "word\n"
        assert await reaches(other, two) == "word\n"
        assert await reaches(guest, one, FAR_ADDRESS) == "word\n"
        assert await guest.identify(replace(identity("one"), nameservers=[GATEWAY_ADDRESS]))
        assert await sh(guest, "cat /etc/resolv.conf") == f"nameserver {GATEWAY_ADDRESS}\n"
        assert FAR_ADDRESS in await sh(guest, "nslookup far.test")
        routes = await sh(guest, "ip route; ip -o addr show eth0; ip neigh")
        assert f"default via {GATEWAY_ADDRESS} dev eth0" in routes
        assert f"{GATEWAY_ADDRESS} dev eth0 scope link" in routes
        assert f"inet {GUEST_ADDRESS}/32" in routes
        assert "inet6" not in routes
        assert f"{GATEWAY_ADDRESS} dev eth0 lladdr {GATEWAY_MAC}" in routes
        assert "PERMANENT" in routes
        assert await sh(guest, "cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6") == "1\n"
        features = await sh(guest, "cat /sys/class/net/eth0/device/features")
        assert {features[bit] for bit in (CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4)} == {"1"}
        # As many bytes as take several of the largest packets that either side makes.
        send = f"head -c 1000000 /dev/zero | nc -w 60 {GATEWAY_ADDRESS} {one.bulk} | wc -c"
        assert await sh(guest, send) == "1000000\n"
        pid = machine.record.process.pid
        assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
        assert Path(f"/proc/{pid}/net/dev").read_text().count(":") == 1, "more than a loopback"


async def test_the_network_is_taken_down_and_up(
    engine: QemuEngine, new_spec: NewSpec, template: Template
) -> None:
    async with new_peer() as peer, cloned(engine, new_spec("a", peer), template) as (_, guest):
        line = await dial(guest, "line", peer)
        await guest.set_network(False)
        await until(line.ended, what="its program was told")
        assert "unreachable" in await reaches(guest, peer)
        assert "unreachable" in await reaches(guest, peer, FAR_ADDRESS)
        await guest.set_network(False)
        # As the identity of a restored machine has it.
        up = replace(identity("a"), generation=2, network=True)
        assert await guest.identify(up)
        assert await reaches(guest, peer) == "word\n"
        assert await reaches(guest, peer, FAR_ADDRESS) == "word\n"
        await guest.set_network(True)
        assert await reaches(guest, peer) == "word\n"


async def test_a_connection_outlives_a_pause(
    engine: QemuEngine, new_spec: NewSpec, template: Template
) -> None:
    async with new_peer() as peer, cloned(engine, new_spec("a", peer), template) as (vm, guest):
        line = await dial(guest, "line", peer, FAR_ADDRESS)
        await vm.pause()
        for writer in peer.connections:
            writer.write(b"meanwhile\n")
        await vm.resume()

        async def came() -> bool:
            return (await line.heard()).endswith("meanwhile\n")

        await until(came, what="what was sent meanwhile arrives")
        await line.say("again")


@pytest.mark.parametrize("kept", [False, True], ids=["forked", "restored"])
async def test_a_child_loses_the_connections_that_its_source_keeps(
    engine: QemuEngine, new_spec: NewSpec, template: Template, short_tmp: Path, kept: bool
) -> None:
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(new_peer()) for _ in range(2)]
        spec = new_spec("source", one)
        machine, guest = await stack.enter_async_context(cloned(engine, spec, template))
        line = await dial(guest, "line", one)
        # One that never stands still: its packets are on their way when the memory is taken.
        busy = f"head -c {BUSY} /dev/zero | nc {GATEWAY_ADDRESS} {one.bulk} | wc -c >/run/bytes"
        await guest.spawn_exec(GuestExec("busy", ["sh", "-c", busy]))
        child, child_guest = await stack.enter_async_context(
            forked(engine, machine, guest, spec, short_tmp, two, kept)
        )
        assert await child_guest.identify(replace(identity("child"), generation=2, network=True))
        await child_guest.thaw()
        theirs = Line(child_guest, "line")
        await until(theirs.ended, what="the child's program was told")
        assert await theirs.heard() == "hello\n"
        await line.say("again")
        assert not await line.ended()
        assert two.connections == []
        # Each reaches a peer of its own from now on.
        await dial(child_guest, "other", two)
        assert len(two.connections) == 1
        await child.kill()
        await line.say("still")

        async def arrived() -> bool:
            return await sh(guest, "cat /run/bytes") == f"{BUSY}\n"

        await until(arrived, what="all bytes came back")


@asynccontextmanager
async def forked(
    engine: QemuEngine,
    machine: Machine,
    guest: Guest,
    source: MachineSpec,
    directory: Path,
    peer: Peer,
    kept: bool,
) -> AsyncIterator[tuple[Machine, Guest]]:
    """A child of a running machine, from memory or `kept` on disk, that has no identity yet."""
    root, disk = source.drives
    below, beside = directory / "next.qcow2", directory / "child.qcow2"
    for path in (below, beside):
        engine.create_disk(path, SIZE, disk.path, "qcow2")
    await guest.freeze(timeout=30)
    frozen = await engine.capture(machine, directory / "captured", next_disk=below)
    await guest.thaw()
    if kept:
        await engine.keep(frozen)
        await engine.drop(frozen)
    spec = replace(
        source,
        id="child",
        drives=[root, replace(disk, path=beside, layers=[disk.path, *disk.layers])],
        directory=directory / "vm" / "child",
        console_log=directory / "child.log",
        uid=None if source.uid is None else source.uid + 100,
        tap=peer.tap,
    )
    try:
        child = await engine.clone(spec, frozen)
    finally:
        await engine.drop(frozen)
    try:
        child_guest = await connect_guest(child.agent_socket, timeout=60)
        try:
            yield child, child_guest
        finally:
            await child_guest.close()
    finally:
        await child.kill()


async def test_what_has_a_network_is_not_taken_up_without(
    engine: QemuEngine, new_spec: NewSpec, template: Template
) -> None:
    async with new_peer() as peer:
        spec = new_spec("a", peer)
        without = replace(spec, tap=None)
        assert engine.layout(spec) != engine.layout(without)
        with pytest.raises(EngineError) as caught:
            await engine.clone(without, template.frozen)
        assert caught.value.details["template"]
        # The TAP is still the caller's.
        async with cloned(engine, spec, template) as (_, guest):
            assert await reaches(guest, peer) == "word\n"


async def test_what_was_frozen_without_a_network_gets_one(
    engine: QemuEngine, kernel: Kernel, busybox: Image, short_tmp: Path
) -> None:
    (short_tmp / "old").mkdir()
    old = await build(short_tmp / "old", kernel, busybox, MachineType.MICROVM)
    async with new_peer() as peer:
        spec = replace(clone_spec(engine, old, short_tmp, "a"), tap=peer.tap)
        async with cloned(engine, spec, old) as (_, guest):
            assert "unreachable" in await reaches(guest, peer)
            assert await guest.identify(replace(identity("a"), network=True))
            assert await reaches(guest, peer) == "word\n"
            assert await reaches(guest, peer, FAR_ADDRESS) == "word\n"
    await engine.drop(old.frozen)
