"""Where the host itself would send a packet for an address.

An address is public only if the table of special ones does not know it and the kernel would send to
it through a default route. What is local, on-link or behind a more specific route (a VPN, bridges
of containers, the host's own public addresses) is not, whatever it looks like.
"""

import itertools
import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv6Network, ip_network

from hutch.network.addresses import Address, AddressKind, Network, canonical, special

_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_NLM_F_REQUEST, _NLMSG_ERROR = 1, 2
_RTM_F_CLONED, _RTM_F_FIB_MATCH = 0x200, 0x2000
_RTA_DST = 1
_RTN_UNICAST, _RTN_LOCAL = 1, 2

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, lengths, tos, table, protocol, scope, type
_ERROR = struct.Struct("=i")
_ATTRIBUTE = struct.Struct("=HH")

_TIMEOUT = 1.0
_STALE_MAX = 64


class Routes:
    """Asks the kernel of the network namespace in which it was first asked.

    `public_routes` are routes that count as default ones, for hosts that have several instead;
    `translators` prefixes of NAT64 that the host's network uses. Not for use by several threads.
    """

    def __init__(
        self, public_routes: Sequence[Network] = (), translators: Sequence[IPv6Network] = ()
    ) -> None:
        self._public = frozenset(public_routes)
        self._translators = tuple(translators)
        self._socket: socket.socket | None = None
        self._numbers = itertools.cycle(range(1, 1 << 31))

    def kind(self, address: Address) -> AddressKind:
        """Return where an address leads: what cannot be found out is SPECIAL, which is closed."""
        address = canonical(address)
        return special(address, self._translators) or self._routed(address)

    def close(self) -> None:
        """Close the socket; the next question opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _routed(self, address: Address) -> AddressKind:
        try:
            kind, length = self._matched(address)
        except (OSError, struct.error):
            self.close()  # what is still to come on this socket answers nothing that is asked later
            return AddressKind.SPECIAL
        if kind == _RTN_LOCAL:
            return AddressKind.HOST
        if kind != _RTN_UNICAST:
            return AddressKind.SPECIAL
        if length == 0 or ip_network((int(address), length), strict=False) in self._public:
            return AddressKind.PUBLIC
        return AddressKind.LAN

    def _matched(self, address: Address) -> tuple[int, int]:
        """Return type and prefix length of the route that the kernel would use.

        Raises OSError where there is none, or no answer.
        """
        number = next(self._numbers)
        kernel = self._opened()
        kernel.send(_question(address, number))
        for _ in range(_STALE_MAX):
            answer = kernel.recv(65536)
            length, what, _, answered, _ = _HEADER.unpack_from(answer)
            if answered != number or length > len(answer):
                continue
            if what == _NLMSG_ERROR:
                raise OSError(-_ERROR.unpack_from(answer, _HEADER.size)[0], "no route")
            if what != _RTM_NEWROUTE:
                continue
            family, prefix, *_, kind, flags = _ROUTE.unpack_from(answer, _HEADER.size)
            if family != _family(address) or flags & _RTM_F_CLONED:
                raise OSError(0, "the kernel does not tell which route matched")
            return kind, prefix
        raise TimeoutError("no answer among the kernel's")

    def _opened(self) -> socket.socket:
        if self._socket is None:
            kernel = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
            )
            kernel.settimeout(_TIMEOUT)
            kernel.bind((0, 0))
            kernel.connect((0, 0))
            self._socket = kernel
        return self._socket


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _question(address: Address, number: int) -> bytes:
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address.packed), _RTA_DST) + address.packed
    route = _ROUTE.pack(_family(address), address.max_prefixlen, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH)
    length = _HEADER.size + len(route) + len(attribute)
    return _HEADER.pack(length, _RTM_GETROUTE, _NLM_F_REQUEST, number, 0) + route + attribute
