"""A client of the host's resolvers, over sockets of our own: never getaddrinfo.

So that neither the hosts file nor a search list, mDNS or split DNS answers for a name that a guest
made up. It asks for absolute names, believes only what answers its very question, and remembers
answers by their TTL. It knows nothing of guests or policies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from hutch.network.dns.message import Code, Message

Address = IPv4Address | IPv6Address
Server = tuple[str, int]
"""A numeric address, with its interface if need be (`fe80::1%eth0`), and a port."""

RESOLV_CONF: Final = Path("/etc/resolv.conf")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long is asked, and how much is remembered."""

    attempt: float = 2.0  # seconds for a datagram, and for an exchange over TCP
    rounds: int = 2  # through all servers
    other_family: float = 0.3  # seconds for the addresses of one family when the other's are known
    cached: int = 512  # answers
    cached_bytes: int = 4096  # of one
    longest: float = 3600.0  # seconds that an answer is remembered
    longest_negative: float = 60.0
    asked: int = 128  # questions at once


@dataclass(frozen=True, slots=True)
class Answer:
    """What a name resolves to: addresses of both families, for `ttl` seconds.

    Without addresses, `code` tells why: NOERROR (the name exists, but has none), NXDOMAIN, or
    SERVFAIL, also when nobody answered; `text` says more.
    """

    addresses: tuple[Address, ...]
    ttl: int
    code: Code
    text: str = ""


class Resolver:
    """One sandbox's client: what it asked tells no other sandbox anything."""

    def __init__(
        self,
        servers: Sequence[Server] | Callable[[], Sequence[Server]],
        limits: Limits = Limits(),
    ) -> None:
        """`servers` are asked in turn; a callable is asked for them each time."""
        self._servers = servers
        self._limits = limits

    async def addresses(self, name: str) -> Answer:
        """Return the addresses of an absolute name, in its normal form. Raises nothing."""
        raise NotImplementedError

    async def query(self, name: str, kind: int) -> Message:
        """Return what the host's resolvers say about one type of a name, CNAMEs followed.

        `answers` holds the CNAMEs and the records of that type that they lead to, nothing else;
        TTLs are what is left of them. The code is NOERROR, NXDOMAIN or SERVFAIL. Raises nothing.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """End all questions; those who wait for them are answered SERVFAIL."""


def host_servers(path: Path = RESOLV_CONF) -> list[Server]:
    """Return the resolvers that the host is configured with; its loopback when there is none."""
    raise NotImplementedError


def host_domains(path: Path = RESOLV_CONF) -> list[str]:
    """Return the host's search domains: names of its own network."""
    raise NotImplementedError
