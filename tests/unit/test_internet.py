"""The pretend internet is what tests of the network believe: it has to be right itself."""

import os
import socket
import ssl
import struct
from collections.abc import Iterator

import pytest

from tests.harness.internet import ECHO, GREETER, GREETING, RESOLVER, Internet, Zone
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces take root")

SITE, ADDRESS = "files.harbour.net", "5.9.1.1"


@pytest.fixture(scope="module")
def internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    zone = Zone(hosts={SITE: [ADDRESS, "2a01:4f8::1"]}, aliases={"www.harbour.net": SITE})
    with Internet(zone, tmp_path_factory.mktemp("internet")) as made:
        yield made


def dial(internet: Internet, address: str, port: int) -> socket.socket:
    return internet.host.call(lambda: socket.create_connection((address, port), 20))


def test_names_are_resolved(internet: Internet) -> None:
    asked = internet.host.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with asked:
        asked.settimeout(20)
        name = b"\3www\7harbour\3net\0"
        asked.sendto(struct.pack("!6H", 7, 256, 1, 0, 0, 0) + name + b"\0\1\0\1", (RESOLVER, 53))
        answer = asked.recv(512)

    assert answer[:2] == b"\0\7"
    assert answer.endswith(socket.inet_aton(ADDRESS))


def test_servers_answer_on_every_address_and_write_it_down(internet: Internet) -> None:
    with dial(internet, "5.9.200.200", GREETER) as peer:
        assert peer.recv(100) == GREETING
    with dial(internet, "2a01:4f8::77", ECHO) as peer:
        peer.sendall(b"hello")
        assert peer.recv(100) == b"hello"

    assert [each.address for each in internet.came("greeter")] == ["5.9.200.200"]
    assert [each.address for each in internet.came("echo")] == ["2a01:4f8::77"]
    wait_until(lambda: [each.port for each in internet.left_for("5.9.200.200")][:1] == [GREETER])


def test_its_certificates_hold(internet: Internet) -> None:
    context = ssl.create_default_context(cafile=internet.authority)
    with (
        dial(internet, ADDRESS, 443) as plain,
        context.wrap_socket(plain, server_hostname=SITE) as secure,
    ):
        secure.sendall(f"GET /a HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n\r\n".encode())
        assert secure.recv(4096).startswith(b"HTTP/1.1 200")

    assert [each.said for each in internet.came("https")] == [f"GET {SITE}/a"]


def test_the_machine_itself_has_nothing_of_it(internet: Internet) -> None:
    inside = internet.host.call(lambda: {name for _, name in socket.if_nameindex()})

    assert "wan0" in inside
    assert "wan0" not in {name for _, name in socket.if_nameindex()}
