"""Where the host itself would send a packet for an address.

An address is public only if the table of special ones does not know it and the kernel would send to
it through a default route. What is local, on-link or behind a more specific route (a VPN, bridges
of containers, the host's own public addresses) is not, whatever it looks like.
"""

import itertools
import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv6Network

from hutch.network.addresses import Address, AddressKind, Network, canonical, special

_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_NLM_F_REQUEST, _NLMSG_ERROR = 1, 2
_RTM_F_FIB_MATCH = 0x2000
_RTA_DST = 1
_RTN_UNICAST, _RTN_LOCAL = 1, 2

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, lengths, tos, table, protocol, scope, type
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
        raise NotImplementedError
