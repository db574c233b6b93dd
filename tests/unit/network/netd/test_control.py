"""What netd does for the daemon, asked of a real one."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import hutch
from hutch.errors import HutchError
from hutch.network.netd import namespace
from tests.unit.network.guest_frames import ACK, RST, arp, ethernet, ipv4, tcp
from tests.unit.network.netspace import Netd, links_of, needs_taps

pytestmark = needs_taps

OUTSIDE = "93.184.215.14"
STRAY = ethernet(ipv4(tcp(OUTSIDE, 22, ACK, sequence=1001, acknowledged=5), 6, OUTSIDE))


@pytest.fixture
def netd(tmp_path: Path) -> Iterator[Netd]:
    made = Netd(tmp_path / "netd")
    yield made
    made.close()


def test_it_says_who_it_is_and_where(netd: Netd) -> None:
    values, fds = netd.call("hello")
    assert values == {
        "pid": netd.process.pid,
        "version": hutch.__version__,
        "held": False,
        "why": None,
    }
    (net,) = fds
    assert os.fstat(net).st_ino == os.stat(f"/proc/{netd.process.pid}/ns/net").st_ino
    assert os.fstat(net).st_ino == (netd.directory / "ns").stat().st_ino
    os.close(net)


def test_taps_are_listed_until_they_end_or_are_removed(netd: Netd) -> None:
    one, other = netd.create("sb_one"), netd.create("sb_other")
    assert {one.interface, other.interface} == {"ht0", "ht1"}
    told = [
        {"sandbox_id": name, "interface": place.interface, "ifindex": place.ifindex}
        for name, place in (("sb_one", one), ("sb_other", other))
    ]
    assert netd.call("list")[0]["taps"] == told
    one.guest.close()  # as when its VM ends
    assert netd.call("list")[0]["taps"] == told[1:]
    netd.call("remove", {"sandbox_id": "sb_other"})
    netd.call("remove", {"sandbox_id": "sb_other"})
    netd.call("remove", {"sandbox_id": "sb_one"})
    assert netd.call("list")[0]["taps"] == []
    assert links_of(netd.process.pid) == ["lo"]
    third = netd.create("sb_other")
    assert third.interface == "ht2"


def test_sockets_are_handed_on_again_without_what_waited_in_them(netd: Netd) -> None:
    place = netd.create("sb_one")
    stream = place.guest.connect(OUTSIDE, 22)
    values, fds = netd.call("sockets", {"sandbox_id": "sb_one"})
    assert values == {"interface": place.interface, "ifindex": place.ifindex}
    assert stream.receive() is None
    assert place.accept() is None
    again = [socket.socket(fileno=fd) for fd in fds]
    assert again[0].getsockname() == place.tcp.getsockname()
    place.guest.connect(OUTSIDE, 23)
    sock, _ = again[0].accept()
    assert sock.getsockname() == (OUTSIDE, 23)
    for one in (sock, *again):
        one.close()
    for unknown in ("sb_other", "sb_one"):
        place.guest.close()
        with pytest.raises(HutchError, match="has no TAP"):
            netd.call("sockets", {"sandbox_id": unknown})


def test_nonsense_is_refused_and_does_no_harm(netd: Netd) -> None:
    for method, values in (
        ("create", {}),
        ("remove", {}),
        ("x", {}),
        ("create", {"sandbox_id": "x" * 300}),
    ):
        with pytest.raises(HutchError) as told:
            netd.call(method, values)
        assert told.value.code == "network_failed"
    assert links_of(netd.process.pid) == ["lo"]
    assert netd.create("sb_one").interface


def test_a_successor_finds_taps_and_never_uses_a_number_again(tmp_path: Path, netd: Netd) -> None:
    kept, gone = netd.create("sb_kept"), netd.create("sb_gone")
    (net,) = netd.call("hello")[1]
    gone.guest.close()
    netd.process.kill()
    netd.process.wait()
    # Nobody has the sockets: nothing is answered, and what the kernel would say goes to nobody.
    kept.close()
    assert kept.guest.answers(STRAY) == []
    successor = Netd(netd.directory, net=net)
    os.close(net)
    try:
        assert [tap["sandbox_id"] for tap in successor.call("list")[0]["taps"]] == ["sb_kept"]
        other = successor.create("sb_other")
        assert other.interface == "ht1000"
        _, fds = successor.call("sockets", {"sandbox_id": "sb_kept"})
        listener, *rest = (socket.socket(fileno=fd) for fd in fds)
        kept.guest.connect(OUTSIDE, 22)
        sock, _ = listener.accept()
        assert sock.getsockname() == (OUTSIDE, 22)
        for one in (sock, listener, *rest):
            one.close()
        assert [bool(answer.segment.flags & RST) for answer in other.guest.answers(STRAY)] == [True]
        kept.guest.waiting()
        kept.guest.send(arp("198.18.0.1"))
        assert kept.guest.next().kind == 0x0806
    finally:
        successor.close()
    assert not namespace.pinned(netd.directory / "ns")


def test_two_hundred_taps_with_one_address(netd: Netd) -> None:
    places = [netd.create(f"sb_{number}") for number in range(200)]
    for place in places:
        place.guest.connect(OUTSIDE, 22)
    for place in places:
        sock = place.accept()
        assert sock is not None
        assert sock.getsockname() == (OUTSIDE, 22)
        assert place.accept() is None
    for place in places:
        place.close()
