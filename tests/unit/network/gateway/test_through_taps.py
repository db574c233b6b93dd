"""The real gateway behind real TAPs: netd, a pretend guest, and a pretend internet."""

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from hutch.network.base import Attachment
from hutch.network.host import HostNetwork, Options
from hutch.networking import NetworkMode, NetworkPolicy, NetworkRecord, Reason
from hutch.process import ProcessId
from hutch.tasks import in_thread
from tests.harness.internet import ECHO, GREETER, GREETING, RESOLVER, Internet, Zone
from tests.unit.network.netspace import needs_taps
from tests.unit.network.pretend_guest import PretendGuest

pytestmark = [needs_taps, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces take root")]

SITE, ADDRESS = "files.harbour.net", "5.9.1.1"
NOBODY = 65534
TIME = 60.0

DENY = NetworkPolicy(mode=NetworkMode.DENY)


@pytest.fixture(scope="module")
def internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    zone = Zone(hosts={SITE: [ADDRESS], "inner.harbour.net": ["10.99.0.9"]})
    with Internet(zone, tmp_path_factory.mktemp("internet")) as made:
        yield made


class Host:
    """A host with a network, in the pretend internet."""

    def __init__(self, internet: Internet, directory: Path) -> None:
        self.internet = internet
        self.directory = directory
        self.options = Options(
            home=directory / "h",
            runtime=directory / "r",
            user=NOBODY,
            servers=[(RESOLVER, 53)],
            gateway=[*internet.host.prefix, sys.executable, "-m", "hutch.network.gateway"],
            interval=0.1,
        )
        self.network = HostNetwork(self.options)
        self.stack = contextlib.ExitStack()

    async def attach(self, sandbox_id: str, policy: NetworkPolicy | None) -> PretendGuest:
        names = self.directory / f"{sandbox_id}.names"
        attachment = Attachment(sandbox_id, sandbox_id, names, policy)
        guest = PretendGuest(await self.network.attach(attachment))
        return self.stack.enter_context(guest)

    async def record(self, reason: Reason) -> NetworkRecord:
        """Return the next record of a reason."""
        async with asyncio.timeout(TIME):
            async for record in self.network.records():
                if record.reason is reason:
                    return record
        raise AssertionError


@pytest.fixture
async def host(internet: Internet) -> AsyncIterator[Host]:
    directory = Path(tempfile.mkdtemp(dir="/tmp"))  # for paths of sockets are short
    made = Host(internet, directory)
    try:
        await made.network.open()
        yield made
        made.stack.close()
    finally:
        await made.network.stop()
        shutil.rmtree(directory)


def fetch(guest: PretendGuest, address: str, name: str) -> tuple[bytes, bytes]:
    with guest.connect(address, 80) as peer:
        peer.sendall(f"GET /a HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        return read_all(peer).partition(b"\r\n")[::2]


def is_refused(guest: PretendGuest, address: str, port: int) -> bool:
    """Tell whether a connection is refused: at once, or by a RST when it was accepted already."""
    try:
        with guest.connect(address, port) as peer:
            return not peer.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True


def read_all(peer: socket.socket | ssl.SSLSocket) -> bytes:
    parts = []
    while part := peer.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


async def test_a_name_is_looked_up_and_connected_to(host: Host) -> None:
    guest = await host.attach("sb_1", NetworkPolicy())

    def visit() -> None:
        address = guest.look_up(SITE)
        assert address is not None
        assert address.startswith("198.1")
        status, rest = fetch(guest, address, SITE)
        assert status == b"HTTP/1.1 200 OK"
        assert SITE.encode() in rest
        status, rest = fetch(guest, address, "other.harbour.net")
        assert status.startswith(b"HTTP/1.1 403")
        context = ssl.create_default_context(cafile=host.internet.authority)
        with (
            guest.connect(address, 443) as plain,
            context.wrap_socket(plain, server_hostname=SITE) as secure,
        ):
            secure.sendall(f"GET /s HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n\r\n".encode())
            assert b'"service": "https"' in read_all(secure)
        with (
            guest.connect(address, 443) as plain,
            pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"),
        ):
            context.wrap_socket(plain, server_hostname="other.harbour.net")
        with guest.connect(address, GREETER) as peer:
            assert peer.recv(100) == GREETING

    await in_thread(visit)
    assert {each.address for each in host.internet.came("greeter")} == {ADDRESS}


async def test_any_resolver_and_any_clock_are_ours(host: Host) -> None:
    guest = await host.attach("sb_1", NetworkPolicy())
    query = b"\0\7\1\0\0\1\0\0\0\0\0\0\5files\7harbour\3net\0\0\1\0\1"

    def ask() -> None:
        address = guest.look_up(SITE)
        assert address is not None
        assert socket.inet_aton(address) in guest.ask(query, "8.8.8.8")
        with guest.connect("8.8.4.4", 53) as peer:
            peer.sendall(len(query).to_bytes(2) + query)
            peer.shutdown(socket.SHUT_WR)
            assert socket.inet_aton(address) in read_all(peer)
        request = bytes([4 << 3 | 3]) + bytes(47)
        assert len(guest.ask(request, "5.9.7.7", 123)) == 48

    await in_thread(ask)
    left = {each.destination for each in host.internet.packets}
    assert not left & {"8.8.8.8", "8.8.4.4", "5.9.7.7"}


async def test_what_is_not_public_cannot_be_reached(host: Host) -> None:
    guest = await host.attach("sb_1", NetworkPolicy())

    def try_all() -> None:
        for address in ("10.99.0.9", "10.99.0.2", "169.254.169.254", "198.18.9.9", "198.18.0.3"):
            assert is_refused(guest, address, ECHO)
        assert guest.look_up("inner.harbour.net") is None
        assert guest.look_up("nobody.harbour.net") is None
        assert guest.look_up("router") is None

    await in_thread(try_all)
    assert [each for each in host.internet.packets if each.destination == "10.99.0.9"] == []


async def test_a_denied_name_is_told_why(host: Host) -> None:
    guest = await host.attach("sb_1", DENY)

    def visit() -> None:
        address = guest.look_up(SITE)
        assert address is not None
        status, rest = fetch(guest, address, SITE)
        assert status.startswith(b"HTTP/1.1 403")
        assert b"--allow" in rest

    await in_thread(visit)
    assert (await host.record(Reason.NOT_ALLOWED)).name == SITE


async def test_guests_are_told_apart_by_their_taps(host: Host) -> None:
    one = await host.attach("sb_1", NetworkPolicy())
    other = await host.attach("sb_2", DENY)

    def visit() -> None:
        with one.connect(ADDRESS, ECHO) as peer:
            peer.sendall(b"one")
            assert peer.recv(3) == b"one"
        assert is_refused(other, ADDRESS, ECHO)

    await in_thread(visit)
    record = await host.record(Reason.NOT_ALLOWED)
    assert (record.sandbox_id, record.address) == ("sb_2", ADDRESS)


async def test_a_change_ends_what_it_denies(host: Host) -> None:
    guest = await host.attach("sb_1", None)
    assert await host.network.update("sb_1", NetworkPolicy()) == 0
    peer = await in_thread(guest.connect, ADDRESS, ECHO)
    with peer:
        peer.sendall(b"x")
        assert await in_thread(peer.recv, 1) == b"x"
        assert [each.port for each in await host.network.connections("sb_1")] == [ECHO]
        assert await host.network.update("sb_1", DENY) == 1
        with pytest.raises(ConnectionResetError):
            await in_thread(peer.recv, 1)
    info = await host.network.info("sb_1")
    assert info is not None
    assert (info.policy, info.connections, info.connections_total) == (DENY, 0, 1)


async def test_a_detached_guest_is_cut_off(host: Host) -> None:
    guest = await host.attach("sb_1", NetworkPolicy())
    peer = await in_thread(guest.connect, ADDRESS, ECHO)
    with peer:
        peer.sendall(b"x")
        assert await in_thread(peer.recv, 1) == b"x"
        await host.network.detach("sb_1")
        with pytest.raises(ConnectionResetError):
            await in_thread(peer.recv, 1)
    assert await host.network.info("sb_1") is None


async def test_the_names_outlive_a_gateway_that_is_killed(host: Host) -> None:
    guest = await host.attach("sb_1", NetworkPolicy())
    address = await in_thread(guest.look_up, SITE)
    assert address is not None
    gateway = ProcessId.of(host.network._gateway._child.pid)  # type: ignore[union-attr]
    peer = await in_thread(guest.connect, ADDRESS, ECHO)
    with peer:
        peer.sendall(b"x")
        assert await in_thread(peer.recv, 1) == b"x"
        assert gateway is not None
        gateway.kill()
        with pytest.raises(ConnectionResetError):  # no end that looks like one
            await in_thread(peer.recv, 1)

    def again() -> bytes:
        while True:  # up to the test's own limit of time
            with contextlib.suppress(OSError), guest.connect(address, ECHO) as peer:
                peer.sendall(b"y")
                if said := peer.recv(1):
                    return said

    assert await in_thread(again) == b"y"
    assert await in_thread(guest.look_up, SITE) == address
