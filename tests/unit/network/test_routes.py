"""Which addresses the host reaches through its default route, in namespaces of the test's own."""

import json
import shutil
import socket
import subprocess
import sys
from ipaddress import ip_address

import pytest

from hutch.network.addresses import AddressKind
from hutch.network.routes import Routes

ASK = """
import json, sys
from ipaddress import IPv6Network, ip_address, ip_network
from hutch.network.routes import Routes
words = json.load(sys.stdin)
routes = Routes([ip_network(text) for text in words["public"]],
                [IPv6Network(text) for text in words["translators"]])
json.dump({text: routes.kind(ip_address(text)) for text in words["addresses"]}, sys.stdout)
"""

# 9.9.9.0/28 is a public network that the host is on, 8.8.0.0/16 is reached through a VPN, say.
NETWORK = """
ip link set lo up
ip link add wan type veth peer name far
ip link set far up
ip link set wan up
ip addr add 203.0.113.2/24 dev wan
ip addr add 9.9.9.9/28 dev wan
ip route add default via 203.0.113.1
ip route add 8.8.0.0/16 via 203.0.113.7
ip route add 128.0.0.0/1 via 203.0.113.8
ip route add blackhole 7.7.7.0/24
ip route add unreachable 5.5.0.0/16
ip route add prohibit 4.4.0.0/16
"""
NETWORK_6 = """
ip addr add 2a00::2/64 dev wan nodad
ip -6 route add default via 2a00::1
ip -6 route add 2a02::/16 via 2a00::7
"""


def inside(setup: str, *addresses: str, public: tuple[str, ...] = ()) -> dict[str, str]:
    """Ask in a network namespace that ends with this call."""
    words = {"addresses": addresses, "public": public, "translators": ["2a09:64::/96"]}
    script = f'set -e\n{setup}\nexec "$0" -c "$1"\n'
    done = subprocess.run(
        ["unshare", "-Urn", "sh", "-c", script, sys.executable, ASK],
        input=json.dumps(words),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def namespaces() -> bool:
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return False
    script = "ip link add wan type veth peer name far"
    tried = subprocess.run(
        ["unshare", "-Urn", "sh", "-c", script], capture_output=True, check=False
    )
    return tried.returncode == 0


def ipv6() -> bool:
    script = "ip link set lo up && ip addr add 2a00::2/64 dev lo nodad"
    tried = subprocess.run(
        ["unshare", "-Urn", "sh", "-c", script], capture_output=True, check=False
    )
    return tried.returncode == 0


needs_namespaces = pytest.mark.skipif(
    not namespaces(), reason="needs unprivileged user namespaces, veth and iproute2"
)


@needs_namespaces
def test_only_what_the_default_route_leads_to_is_public() -> None:
    expected = {
        "1.1.1.1": "public",
        "8.7.255.255": "public",
        "8.8.8.8": "lan",
        "9.9.9.9": "host",
        "9.9.9.10": "lan",
        "9.9.9.15": "special",
        "200.1.1.1": "lan",
        "7.7.7.7": "special",
        "5.5.5.5": "special",
        "4.4.4.4": "special",
        "127.0.0.1": "host",
        "10.0.0.1": "lan",
        "169.254.169.254": "metadata",
        "203.0.113.2": "special",
        "::ffff:1.1.1.1": "public",
        "::ffff:9.9.9.9": "host",
    }
    assert inside(NETWORK, *expected) == expected


@needs_namespaces
def test_routes_that_count_as_default_ones() -> None:
    found = inside(NETWORK, "200.1.1.1", "192.168.1.1", "8.8.8.8", public=("128.0.0.0/1",))
    assert found == {"200.1.1.1": "public", "192.168.1.1": "lan", "8.8.8.8": "lan"}


@needs_namespaces
@pytest.mark.skipif(not ipv6(), reason="needs IPv6")
def test_the_same_of_ipv6() -> None:
    expected = {
        "2a01::1": "public",
        "2a00::2": "host",
        "2a00::5": "lan",
        "2a02::1": "lan",
        "64:ff9b::1.1.1.1": "public",
        "64:ff9b::10.0.0.1": "lan",
        "2a09:64::1.1.1.1": "public",
        "2a09:64::10.0.0.1": "lan",
        "2a09:64::169.254.169.254": "metadata",
        "fe80::1": "lan",
    }
    assert inside(NETWORK + NETWORK_6, *expected) == expected


@needs_namespaces
def test_a_host_without_a_way_out_knows_no_public_address() -> None:
    expected = {"1.1.1.1": "special", "2a01::1": "special", "10.0.0.1": "lan"}
    assert inside("", *expected) == expected


def test_a_kernel_that_does_not_answer_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = Routes()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.settimeout(0)
        monkeypatch.setattr(routes, "_opened", lambda: ours)
        assert routes.kind(ip_address("1.1.1.1")) is AddressKind.SPECIAL
        for nonsense in (b"", b"\0", b"\xff" * 15, b"\xff" * 64, b"\0" * 28):
            theirs.send(nonsense)
            assert routes.kind(ip_address("1.1.1.1")) is AddressKind.SPECIAL
        theirs.close()
        assert routes.kind(ip_address("1.1.1.1")) is AddressKind.SPECIAL
    assert routes.kind(ip_address("10.0.0.1")) is AddressKind.LAN


def test_it_may_be_closed_and_asked_again() -> None:
    routes = Routes()
    assert routes.kind(ip_address("127.0.0.1")) is AddressKind.HOST
    first = routes.kind(ip_address("1.1.1.1"))
    routes.close()
    routes.close()
    assert routes.kind(ip_address("1.1.1.1")) is first
    routes.close()
