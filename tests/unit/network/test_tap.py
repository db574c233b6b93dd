"""A TAP and its sockets, in a namespace of the test's own."""

import fcntl
import os
import socket
import struct
from pathlib import Path

import pytest

from hutch.network import tap
from hutch.network.rtnetlink import Netlink
from tests.unit.descriptors import descriptors
from tests.unit.network.netspace import in_namespace, needs_taps

pytestmark = needs_taps

TUNGETIFF = 0x800454D2


def test_a_tap_has_a_header_for_offloads_and_is_ready_to_carry() -> None:
    def run() -> None:
        with Netlink() as netlink:
            fd, index = tap.open_tap("ht0", "sb_one", netlink)
            told = fcntl.ioctl(fd, TUNGETIFF, bytes(40))
            name, flags = struct.unpack_from("16sH", told)
            assert name.rstrip(b"\0") == b"ht0"
            assert flags & 0x5003 == 0x5002
            assert not os.get_inheritable(fd)
            (link,) = [link for link in netlink.links() if link.index == index]
            assert (link.name, link.alias, link.up) == ("ht0", "sb_one", True)
            os.close(fd)
            assert [link.name for link in netlink.links()] == ["lo"]

    in_namespace(run)


def test_what_fails_leaves_nothing_open() -> None:
    def run() -> None:
        before = descriptors()
        with Netlink() as netlink:
            fd, _ = tap.open_tap("ht0", "sb_one", netlink)
            with pytest.raises(OSError, match="busy"):
                tap.open_tap("ht0", "sb_two", netlink)
            with pytest.raises(OSError, match="link"):
                tap.open_tap("ht1", "x" * 300, netlink)
            with pytest.raises(OSError, match="No such device"):
                tap.sockets("ht1")
            with pytest.raises(FileNotFoundError):
                tap.make("ht2", Path("/nowhere"))
            held = tap.sockets("ht0")
            with pytest.raises(OSError, match="in use"):
                tap.sockets("ht0")
            held.close()
            tap.sockets("ht0").close()
            os.close(fd)
        assert descriptors() == before

    in_namespace(run)


def test_what_waits_on_sockets_is_reset_and_dropped() -> None:
    def run() -> None:
        with Netlink() as netlink:
            netlink.change([tap.rtnetlink.set_link(1, up=True)])
        sockets = tap.sockets("lo")
        clients = []
        for _ in range(3):
            client = socket.create_connection(("127.0.0.1", tap.PORT))
            clients.append(client)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for port in (53, 123):
                sender.sendto(b"x" * 1000, ("127.0.0.1", port))
                sender.sendto(b"", ("127.0.0.1", port))
        sockets.drain()
        for client in clients:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            client.close()
        for sock in (sockets.dns, sockets.sntp):
            with pytest.raises(BlockingIOError):
                sock.recv(1)
        sockets.drain()
        assert len(set(sockets.filenos())) == 3
        sockets.close()

    in_namespace(run)
