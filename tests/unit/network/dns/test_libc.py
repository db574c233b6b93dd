"""What programs make of our answers: glibc's own resolver, asking in a namespace of its own."""

import asyncio
import contextlib
import json
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hutch.network.dns.client import Limits, Resolver
from hutch.network.dns.guest import GuestResolver
from hutch.network.dns.message import framed
from hutch.network.synthetic import NameTable
from hutch.networking import GATEWAY_ADDRESS, HOST_ADDRESS
from tests.harness.namespaces import Namespace
from tests.unit.network.dns.desk import ZONE, Rules
from tests.unit.network.dns.nameserver import NameServer, serving

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces")

ASK = """
import json, socket, sys
found = {}
for name in sys.argv[1:]:
    try:
        told = socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)
        found[name] = sorted({one[4][0] for one in told})
    except socket.gaierror as failure:
        found[name] = [failure.errno == socket.EAI_NONAME and "no name" or str(failure)]
    if found[name][0][0].isdigit():
        found[name].append(socket.getnameinfo((found[name][0], 80), 0)[0])
print(json.dumps(found))
"""


@contextlib.asynccontextmanager
async def answering(namespace: Namespace, resolver: GuestResolver) -> AsyncIterator[list[bool]]:
    """Have a guest's resolver answer where guests find it, in a namespace.

    Yields what it was asked: True for each query over TCP.
    """
    loop = asyncio.get_running_loop()
    ways: list[bool] = []

    async def answered(query: bytes, tcp: bool) -> bytes:
        ways.append(tcp)
        return await resolver.answer(query, tcp) or b""

    def sockets() -> tuple[socket.socket, socket.socket]:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind((GATEWAY_ADDRESS, 53))
        udp.setblocking(False)
        return udp, socket.create_server((GATEWAY_ADDRESS, 53))

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size = int.from_bytes(await reader.readexactly(2), "big")
                query = await reader.readexactly(size)
                writer.write(framed(await answered(query, True)))
        writer.close()

    async def datagrams(udp: socket.socket) -> None:
        async def answer(query: bytes, address: object) -> None:
            await loop.sock_sendto(udp, await answered(query, False), address)

        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(answer(*await loop.sock_recvfrom(udp, 4096)))

    udp, tcp = namespace.call(sockets)
    async with await asyncio.start_server(stream, sock=tcp), asyncio.TaskGroup() as group:
        task = group.create_task(datagrams(udp))
        yield ways
        task.cancel()
    udp.close()


@pytest.mark.parametrize("way", ["udp", "tcp"])
async def test_glibc_understands(tmp_path: Path, way: str) -> None:
    configuration = tmp_path / "resolv.conf"
    option = "use-vc edns0" if way == "tcp" else "attempts:2"
    configuration.write_text(f"nameserver {GATEWAY_ADDRESS}\noptions timeout:20 {option}\n")
    rules = Rules(denied={"denied.test"}, host=True)
    asked = ["web.test", "six.test", "denied.test", "inside.test", "within.test", "no.test"]
    argv = [sys.executable, "-I", "-c", ASK, *asked, "host.hutch"]
    sources = tmp_path / "nsswitch.conf"
    sources.write_text("hosts: files dns\n")
    inside = (
        'set -e; mount --bind "$0" "$(readlink -f /etc/resolv.conf)"; '
        '[ ! -e /etc/nsswitch.conf ] || mount --bind "$1" /etc/nsswitch.conf; shift; exec "$@"'
    )
    limits = Limits(attempt=20, total=40, other_family=20)
    with Namespace() as namespace, tempfile.TemporaryFile() as file:
        namespace.run("ip", "address", "add", f"{GATEWAY_ADDRESS}/32", "dev", "lo")
        names = NameTable(file.fileno())
        async with serving(NameServer(ZONE)) as server:
            upstream = Resolver([server.place], limits)
            resolver = GuestResolver(rules, names, upstream, lambda *_, **__: None)
            async with answering(namespace, resolver) as ways:
                said = await asyncio.to_thread(
                    namespace.run,
                    *("unshare", "--mount", "sh", "-c", inside, str(configuration), str(sources)),
                    *argv,
                )
            await upstream.close()
        web, six, denied = (str(names.address_of(name)) for name in asked[:3])
    assert set(ways) == {way == "tcp"}
    assert json.loads(said) == {
        "web.test": [web, "web.test"],
        "six.test": [six, "six.test"],
        "denied.test": [denied, "denied.test"],
        "inside.test": ["no name"],
        "within.test": ["no name"],
        "no.test": ["no name"],
        "host.hutch": [HOST_ADDRESS, "host.hutch"],
    }
