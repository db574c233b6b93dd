"""A TAP: the network card of a VM seen from outside, and the sockets that answer on it.

Everything here happens in the network namespace that the calling thread is in. Each socket is bound
to its TAP, and so is every connection that it accepts: that is what tells sandboxes apart, as all
of them have the same addresses.
"""

import contextlib
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from hutch.network import rtnetlink
from hutch.network.rtnetlink import Message, Netlink
from hutch.networking import GATEWAY_MAC, GUEST_ADDRESS, GUEST_MAC

DEVICE: Final = Path("/dev/net/tun")
PREFIX: Final = "ht"
PORT: Final = 1
"""Where a TAP's listener is bound, and TPROXY sends its TCP; a guest does not see the number."""
BACKLOG: Final = 256
DATAGRAMS: Final = 1024

_TUNSETIFF: Final = 0x400454CA
_TAP, _NO_PACKET_INFO, _VNET_HEADER = 0x0002, 0x1000, 0x4000
_IP_TRANSPARENT: Final = 19
_IP_PKTINFO: Final = 8
_GUEST: Final = IPv4Network(GUEST_ADDRESS)


def make(name: str, device: Path = DEVICE) -> int:
    """Return a descriptor of a new TAP, which lives as long as the descriptor. Raises OSError."""
    fd = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = _TAP | _NO_PACKET_INFO | _VNET_HEADER
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError:
        os.close(fd)
        raise
    return fd


def configuration(index: int, owner: str) -> list[Message]:
    """Return what makes a new TAP carry packets. `owner` is kept as its alias.

    The metric is what makes the route to the guest, which each TAP has, a different one.
    """
    return [
        rtnetlink.set_link(index, up=True, mac=GATEWAY_MAC, alias=owner),
        rtnetlink.add_route(_GUEST, index, metric=index),
        rtnetlink.set_neighbour(index, GUEST_ADDRESS, GUEST_MAC),
    ]


@dataclass(frozen=True, slots=True)
class Sockets:
    """What answers on a TAP: TCP to any address, DNS and time."""

    tcp: socket.socket
    dns: socket.socket
    sntp: socket.socket

    def filenos(self) -> list[int]:
        """Return the descriptors, in the order in which they are handed on."""
        return [self.tcp.fileno(), self.dns.fileno(), self.sntp.fileno()]

    def close(self) -> None:
        """Close them here; what was handed on stays."""
        for sock in (self.tcp, self.dns, self.sntp):
            sock.close()

    def drain(self) -> None:
        """Reset the connections, and drop the packets, that wait for nobody any more.

        What comes at the same time may stay: a guest that floods its TAP keeps nobody here.
        """
        with contextlib.suppress(OSError):  # nothing waits any more
            for _ in range(BACKLOG):
                waiting, _ = self.tcp.accept()
                reset(waiting)
        for sock in (self.dns, self.sntp):
            with contextlib.suppress(OSError):  # nothing waits any more
                for _ in range(DATAGRAMS):
                    sock.recv(1)


def reset(sock: socket.socket) -> None:
    """Close a connection so that its peer gets a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def sockets(name: str) -> Sockets:
    """Return new sockets bound to a TAP. Raises OSError."""
    made: list[socket.socket] = []
    try:
        for kind, port in (
            (socket.SOCK_STREAM, PORT),
            (socket.SOCK_DGRAM, 53),
            (socket.SOCK_DGRAM, 123),
        ):
            sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
            made.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
                # Connections of the listener before, which a gateway that died held, may linger.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            else:
                sock.setsockopt(socket.SOL_IP, _IP_PKTINFO, 1)
            sock.bind(("0.0.0.0", port))
        made[0].listen(BACKLOG)
    except OSError:
        for sock in made:
            sock.close()
        raise
    return Sockets(*made)


def open_tap(name: str, owner: str, netlink: Netlink, device: Path = DEVICE) -> tuple[int, int]:
    """Make a TAP that carries packets; return its descriptor and its number. Raises OSError."""
    fd = make(name, device)
    try:
        index = socket.if_nametoindex(name)
        netlink.change(configuration(index, owner))
    except OSError:
        os.close(fd)
        raise
    return fd, index
