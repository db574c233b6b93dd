"""What the namespace lets through, shown with raw frames on the TAPs of a real netd."""

import asyncio
import contextlib
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch import process
from hutch.errors import HutchError
from hutch.network import firewall, tap
from hutch.network.firewall import RULES_FRAMES
from hutch.network.nfnetlink import FrameFilter
from hutch.network.rtnetlink import Netlink
from hutch.network.tap import PORT
from tests.unit.network.guest_frames import (
    ACK,
    RST,
    SYN,
    Guest,
    arp,
    checksum,
    ethernet,
    ipv4,
    tcp,
    udp,
)
from tests.unit.network.netspace import Netd, Place, host_state, in_namespace, needs_taps

pytestmark = needs_taps

IP_PKTINFO = 8
OUTSIDE = "93.184.215.14"
SYN_OUTSIDE = tcp(OUTSIDE, 80, SYN)


@pytest.fixture(scope="module")
def netd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Netd]:
    made = Netd(tmp_path_factory.mktemp("netd"))
    yield made
    made.close()


@pytest.fixture
def pair(netd: Netd) -> Iterator[tuple[Place, Place]]:
    """Two TAPs, whose guests have the same addresses."""
    one, other = netd.create("sb_one"), netd.create("sb_other")
    yield one, other
    for place in (one, other):
        place.close()
        place.guest.close()


def echo_request(to: str) -> bytes:
    body = struct.pack("!BBHHH", 8, 0, 0, 1, 1)
    return ipv4(body[:2] + struct.pack("!H", checksum(body)) + body[4:], 1, to)


def ipv6(payload: bytes = b"") -> bytes:
    source = socket.inet_pton(socket.AF_INET6, "fe80::2")
    to = socket.inet_pton(socket.AF_INET6, "ff02::1")
    return struct.pack("!IHBB", 6 << 28, len(payload), 58, 255) + source + to + payload


def test_equal_tuples_of_two_guests_reach_their_own_listeners(pair: tuple[Place, Place]) -> None:
    streams = [place.guest.connect(OUTSIDE, 22) for place in pair]
    accepted = [place.accept() for place in pair]
    for place, sock, stream in zip(pair, accepted, streams, strict=True):
        assert sock is not None
        assert sock.getsockname() == (OUTSIDE, 22)
        assert sock.getpeername() == ("198.18.0.2", 40000)
        assert place.accept() is None
        sock.sendall(place.interface.encode())
        assert stream.receive() == place.interface.encode()
        stream.send(b"to " + place.interface.encode())
        assert sock.recv(100) == b"to " + place.interface.encode()
    for place, other in (pair, pair[::-1]):
        assert all(other.interface.encode() not in frame.raw for frame in place.guest.waiting())


@pytest.mark.parametrize("port", [1, 53, 80, 443, 8443, 65535])
def test_every_tcp_port_of_every_address_is_taken(pair: tuple[Place, Place], port: int) -> None:
    for to in ("198.18.0.1", "198.18.0.2", "127.0.0.1", "10.0.0.1", "169.254.169.254", OUTSIDE):
        # The kernel takes the one from nobody outside, and would have to forward the other.
        if to in ("127.0.0.1", "198.18.0.2"):
            told = pair[0].guest.answers(ethernet(ipv4(tcp(to, port, SYN), 6, to)))
            assert to not in [answer.source for answer in told]  # others may be sent again
        else:
            pair[0].guest.connect(to, port)
            sock = pair[0].accept()
            assert sock is not None
            assert sock.getsockname() == (to, port)
            sock.close()
    assert pair[1].untouched()
    assert [frame for frame in pair[1].guest.waiting() if frame.kind == 0x0800] == []


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(ethernet(echo_request("198.18.0.1")), id="icmp"),
        pytest.param(ethernet(echo_request(OUTSIDE)), id="icmp outside"),
        pytest.param(ethernet(ipv6(), 0x86DD, to="33:33:00:00:00:01"), id="ipv6"),
        pytest.param(ethernet(b"\0\5\x08\0" + ipv4(SYN_OUTSIDE, 6, OUTSIDE), 0x8100), id="vlan"),
        pytest.param(
            ethernet(b"\0\5\x08\0" + ipv4(SYN_OUTSIDE, 6, OUTSIDE), 0x88A8), id="provider vlan"
        ),
        pytest.param(ethernet(ipv4(SYN_OUTSIDE, 6, OUTSIDE), 0x88CC), id="other ethertype"),
        pytest.param(ethernet(ipv4(SYN_OUTSIDE, 6, OUTSIDE, fragment=0x2000)), id="fragment"),
        pytest.param(ethernet(ipv4(SYN_OUTSIDE, 6, OUTSIDE, fragment=0x0010)), id="late fragment"),
        pytest.param(
            ethernet(ipv4(SYN_OUTSIDE, 6, OUTSIDE, options=b"\x83\x07\x04\x0a\0\0\1\0")),
            id="source route",
        ),
        pytest.param(
            ethernet(ipv4(SYN_OUTSIDE, 6, OUTSIDE, options=b"\x94\x04\0\0")), id="router alert"
        ),
        pytest.param(
            ethernet(
                ipv4(tcp(OUTSIDE, 80, SYN, source="198.18.0.9"), 6, OUTSIDE, source="198.18.0.9")
            ),
            id="spoofed address",
        ),
        pytest.param(
            ethernet(ipv4(tcp(OUTSIDE, 80, SYN, source="0.0.0.0"), 6, OUTSIDE, source="0.0.0.0")),
            id="no address",
        ),
        pytest.param(
            ethernet(ipv4(SYN_OUTSIDE, 6, OUTSIDE), source="52:54:00:00:00:99"), id="spoofed mac"
        ),
        pytest.param(ethernet(ipv4(bytes(40), 132, OUTSIDE)), id="sctp"),
        pytest.param(ethernet(ipv4(bytes(40), 47, OUTSIDE)), id="gre"),
        pytest.param(ethernet(ipv4(b"", 2, "224.0.0.1"), to="01:00:5e:00:00:01"), id="igmp"),
        pytest.param(
            ethernet(
                ipv4(udp(b"x", "224.0.0.251", 5353), 17, "224.0.0.251"), to="01:00:5e:00:00:fb"
            ),
            id="multicast dns",
        ),
        pytest.param(
            ethernet(ipv4(tcp("255.255.255.255", 80, SYN), 6, "255.255.255.255")), id="broadcast"
        ),
        pytest.param(ethernet(ipv4(tcp(OUTSIDE, 80, ACK), 6, OUTSIDE)[:30]), id="cut off"),
        pytest.param(arp("198.18.0.3"), id="arp for another"),
        pytest.param(arp(OUTSIDE), id="arp for anything"),
        pytest.param(arp("198.18.0.2"), id="arp for oneself"),
        pytest.param(arp("198.18.0.1", source="198.18.0.9"), id="arp from another"),
        pytest.param(arp("198.18.0.1", operation=2), id="arp reply"),
    ],
)
def test_nothing_else_gets_in_or_is_answered(pair: tuple[Place, Place], frame: bytes) -> None:
    one, other = pair
    told = [answer for answer in one.guest.answers(frame) if answer.protocol != 1]
    assert told == []
    assert one.untouched()
    assert other.untouched()
    assert [frame for frame in other.guest.waiting() if frame.kind != 0x86DD] == []


def test_the_gateway_is_found_by_arp(pair: tuple[Place, Place]) -> None:
    one, other = pair
    one.guest.send(arp("198.18.0.1"))
    answer = one.guest.next().raw
    assert answer[12:14] == b"\x08\x06"
    assert answer[20:22] == b"\0\2"
    assert answer[22:28] == bytes.fromhex("525400687500")
    assert answer[28:32] == socket.inet_aton("198.18.0.1")
    assert other.guest.waiting() == []


@pytest.mark.parametrize(("port", "to"), [(53, "8.8.8.8"), (53, "198.18.0.1"), (123, OUTSIDE)])
def test_dns_and_time_are_answered_from_the_address_that_was_asked(
    pair: tuple[Place, Place], port: int, to: str
) -> None:
    one, other = pair
    for place in pair:
        place.guest.send(ethernet(ipv4(udp(b"asked", to, port), 17, to)))
    for place in pair:
        sock = place.dns if port == 53 else place.sntp
        data, ancillary, _, peer = sock.recvmsg(100, 100)
        assert data == b"asked"
        assert peer == ("198.18.0.2", 40000)
        address = next(content for _, kind, content in ancillary if kind == IP_PKTINFO)[8:12]
        assert socket.inet_ntoa(address) == to
        info = struct.pack("=I4s4s", 0, address, bytes(4))
        sock.sendmsg([place.interface.encode()], [(socket.SOL_IP, IP_PKTINFO, info)], 0, peer)
        frame = place.guest.next()
        assert (frame.source, frame.datagram) == (to, (port, place.interface.encode()))
        assert place.untouched()
    assert one.guest.waiting() == other.guest.waiting() == []


def test_other_udp_is_refused_at_once_and_to_none_but_who_sent_it(
    pair: tuple[Place, Place],
) -> None:
    for place, neighbour in (pair, pair[::-1]):
        quic = ethernet(ipv4(udp(b"x" * 1200, OUTSIDE, 443), 17, OUTSIDE))
        answers = place.guest.answers(quic)
        assert [answer.packet[:2] for answer in answers] == [b"\3\3"]
        assert answers[0].source == OUTSIDE
        assert neighbour.guest.waiting() == []
        assert place.untouched()


def test_refusals_are_limited(pair: tuple[Place, Place]) -> None:
    frame = ethernet(ipv4(udp(b"x", OUTSIDE, 443), 17, OUTSIDE))
    pair[0].guest.waiting()
    for _ in range(400):
        pair[0].guest.send(frame)
    # A slow host may let some more through in the time that 400 take, never nearly all.
    assert 1 <= len(pair[0].guest.waiting()) < 300
    assert pair[0].untouched()


def test_what_is_begun_and_asked_is_limited_for_each_tap() -> None:
    """With so slow a rate that only the bursts get through, however slow the host is."""
    rules, limited = re.subn(r"over \d+/second burst \d+", "over 1/hour burst 5", RULES_FRAMES)
    assert limited == 4
    counted = ("tcp flags & (syn | ack) == syn", "tcp flags ack", "udp dport 53", "udp dport 123")
    chain = "".join(f"{what} counter drop\n" for what in counted)
    seen = (
        f"table ip seen {{ chain c {{ type filter hook prerouting priority -500;\n{chain} }}\n}}\n"
    )
    frames = [
        ethernet(ipv4(tcp(OUTSIDE, 22, SYN), 6, OUTSIDE)),
        ethernet(ipv4(tcp(OUTSIDE, 22, ACK), 6, OUTSIDE)),
        ethernet(ipv4(udp(b"x", OUTSIDE, 53), 17, OUTSIDE)),
        ethernet(ipv4(udp(b"x", OUTSIDE, 123), 17, OUTSIDE)),
    ]

    def passed() -> list[int]:
        shown = subprocess.run(
            ["nft", "list", "table", "ip", "seen"], check=True, capture_output=True, text=True
        )
        return [int(count) for count in re.findall(r"counter packets (\d+)", shown.stdout)]

    def run() -> None:
        subprocess.run(["nft", "-f", "-"], check=True, input=rules + seen, text=True)
        with Netlink() as netlink:
            filters = FrameFilter()
            guests = []
            for name in ("ht0", "ht1"):
                guests.append(Guest(tap.open_tap(name, "sb", netlink)[0]))
                filters.add(name)
            for frame in frames:
                for _ in range(12):
                    guests[0].send(frame)
            assert passed() == [5, 12, 5, 5]
            for frame in frames:
                guests[1].send(frame)
            assert passed() == [6, 13, 6, 6]
            for guest in guests:
                guest.close()
            filters.close()

    in_namespace(run)


def test_a_reset_goes_to_none_but_who_caused_it(pair: tuple[Place, Place]) -> None:
    """A stray segment with the other's ports must not end the other's connection."""
    one, other = pair
    stream = one.guest.connect(OUTSIDE, 22)
    sock = one.accept()
    assert sock is not None
    stray = ethernet(ipv4(tcp(OUTSIDE, 22, ACK, sequence=1001, acknowledged=5), 6, OUTSIDE))
    answers = other.guest.answers(stray)
    assert [bool(answer.segment.flags & RST) for answer in answers] == [True]
    other.guest.send(ethernet(ipv4(tcp(OUTSIDE, 22, RST, sequence=1001), 6, OUTSIDE)))
    sock.sendall(b"on")
    assert stream.receive() == b"on"


def test_data_in_a_first_packet_waits_for_the_handshake(pair: tuple[Place, Place]) -> None:
    guest = pair[0].guest
    fast_open = b"\x22\x02\1\1"  # asks for a cookie
    guest.send(ethernet(ipv4(tcp(OUTSIDE, 80, SYN, payload=b"GET", options=fast_open), 6, OUTSIDE)))
    answer = guest.next_segment()
    assert answer.flags & (SYN | ACK) == SYN | ACK
    assert answer.acknowledged == 1001
    assert pair[0].untouched()


def test_a_successor_of_a_removed_tap_gets_nothing(netd: Netd) -> None:
    before = netd.create("sb_before")
    before.guest.connect(OUTSIDE, 22)
    sock = before.accept()
    assert sock is not None
    netd.call("remove", {"sandbox_id": "sb_before"})
    after = netd.create("sb_before")
    assert after.interface != before.interface
    assert after.ifindex != before.ifindex
    with contextlib.suppress(OSError):  # what a gateway might still do
        sock.send(b"secret")
    assert [bool(answer.segment.flags & RST) for answer in _acknowledge(after.guest)] == [True]
    assert before.untouched()
    assert after.untouched()
    sock.close()
    before.close()
    assert [frame for frame in after.guest.waiting() if frame.kind == 0x0800] == []
    after.guest.connect(OUTSIDE, 22)
    found = after.accept()
    assert found is not None
    found.close()
    netd.call("remove", {"sandbox_id": "sb_before"})
    after.close()
    for place in (before, after):
        with pytest.raises(OSError, match="bad state"):
            place.guest.send(arp("198.18.0.1"))


def _acknowledge(guest: Guest) -> list:  # type: ignore[type-arg]
    return guest.answers(
        ethernet(ipv4(tcp(OUTSIDE, 22, ACK, sequence=1001, acknowledged=7), 6, OUTSIDE))
    )


def test_the_host_is_left_as_it_was(tmp_path: Path) -> None:
    def run() -> None:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        before = host_state()
        netd = Netd(tmp_path / "netd")
        place = netd.create("sb_one")
        place.guest.connect(OUTSIDE, 22)
        assert place.accept()
        assert host_state() == before
        netd.close()
        assert host_state() == before

    in_namespace(run)


def test_the_sysctls_are_checked_and_what_the_kernel_lacks_is_passed_over(tmp_path: Path) -> None:
    for name, value in (
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/rp_filter", "2"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/all/arp_ignore", "0"),
        ("ipv4/conf/default/arp_ignore", "0"),
        ("ipv4/tcp_fastopen", "1"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(value)
    firewall.sysctls(tmp_path)
    assert (tmp_path / "ipv4/ip_forward").read_text() == "0"
    assert (tmp_path / "ipv4/conf/all/rp_filter").read_text() == "0"
    assert (tmp_path / "ipv4/tcp_fastopen").read_text() == "0"
    assert not (tmp_path / "ipv6").exists()
    (tmp_path / "ipv4/ip_forward").unlink()
    with pytest.raises(FileNotFoundError):
        firewall.sysctls(tmp_path)


def test_rules_that_the_kernel_does_not_take_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "nft"
    monkeypatch.setattr(process, "require", lambda *_: str(program))

    def refuses(word: str) -> None:
        script = f"case $(cat) in *'{word}'*) echo 'Error: no' >&2; exit 1;; esac"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    refuses("nothing of the kind")
    assert asyncio.run(firewall.load())
    refuses("table netdev")
    assert not asyncio.run(firewall.load())
    refuses("table ip6")
    assert asyncio.run(firewall.load())
    refuses("tproxy")
    with pytest.raises(HutchError, match="does not take the rules") as told:
        asyncio.run(firewall.load())
    assert told.value.code == "network_missing"
    assert PORT == 1
