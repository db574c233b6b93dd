"""Addresses of special purpose: our own table, which looks into every embedded form.

The library's `is_global` lets metadata services, translated and tunnelled private addresses pass.
What the table does not know may be public: `hutch.network.routes` then asks the kernel.
"""

import ipaddress
from collections.abc import Iterator, Sequence
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class AddressKind(StrEnum):
    """Where an address leads."""

    PUBLIC = "public"
    LAN = "lan"  # a network that the host is on, or that it knows a way to
    HOST = "host"  # the host itself
    METADATA = "metadata"  # what a cloud tells its machines, credentials among it
    SPECIAL = "special"  # multicast, reserved, tunnels: no host that anybody means


# The most dangerous first: an address is judged by the first that any form of it is.
_ORDER = (AddressKind.METADATA, AddressKind.HOST, AddressKind.SPECIAL, AddressKind.LAN)

# The longest match decides.
_TABLE: dict[AddressKind, str] = {
    AddressKind.METADATA: (
        "169.254.0.0/16"  # most clouds are at 169.254.169.254, containers at .170.2 and .170.23
        " 100.100.100.200/32 168.63.129.16/32 192.0.0.192/32"
        " fd00:ec2::/32 fd00:42::42/128 fd20:ce::/32 fe80::a9fe:a9fe/128"
    ),
    AddressKind.HOST: "0.0.0.0/8 127.0.0.0/8 ::/128 ::1/128",
    AddressKind.LAN: (
        "10.0.0.0/8 100.64.0.0/10 172.16.0.0/12 192.168.0.0/16"
        " fc00::/7 fe80::/10 fec0::/10 64:ff9b:1::/48"
    ),
    AddressKind.SPECIAL: (
        "192.0.0.0/24 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.175.48.0/24"
        " 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/3"
        # Of IPv6 only 2000::/3 is given out, but for the well-known prefix of NAT64.
        " ::/3 4000::/2 8000::/1"
        " 2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20"
    ),
}
_TRANSLATORS = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
_OPEN = "64:ff9b::/96"
_IPV4 = 0xFFFFFFFF


def _lengths(version: int) -> tuple[tuple[int, dict[int, AddressKind | None]], ...]:
    """Return (shift, {the network's bits: kind}) for all prefixes of one IP version."""
    rows = [(text, kind) for kind, networks in _TABLE.items() for text in networks.split()]
    tables: dict[int, dict[int, AddressKind | None]] = {}
    for text, kind in [*rows, (_OPEN, None)]:
        network = ipaddress.ip_network(text)
        if network.version == version:
            shift = network.max_prefixlen - network.prefixlen
            tables.setdefault(shift, {})[int(network.network_address) >> shift] = kind
    return tuple(sorted(tables.items()))


_LENGTHS = {4: _lengths(4), 6: _lengths(6)}


def parse(text: str) -> Address:
    """Return the address of a text in its usual notation, those in brackets included.

    Raises ValueError for all else: zones, leading zeros, short forms.
    """
    if text.startswith("[") and text.endswith("]"):
        return canonical(IPv6Address(_plain(text[1:-1])))
    return canonical(ipaddress.ip_address(_plain(text)))


def _plain(text: str) -> str:
    if not text.isascii() or "%" in text or len(text) > 45:
        raise ValueError(f"{text[:50]!r} is not an address")
    return text


def canonical(address: Address) -> Address:
    """Return the IPv4 address of a v4-mapped one, which the kernel treats as the same."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def embedded(address: Address, translators: Sequence[IPv6Network] = ()) -> Iterator[IPv4Address]:
    """Yield the IPv4 addresses that lie in an IPv6 one, in any known form: where it may lead.

    `translators` are prefixes of NAT64 beside the well-known ones.
    """
    if isinstance(address, IPv4Address):
        return
    value = int(address)
    if value >> 32 in (0, 0xFFFF, 0xFFFF << 16):  # v4-compatible, -mapped, -translated
        yield IPv4Address(value & _IPV4)
    if value >> 112 == 0x2002:  # 6to4
        yield IPv4Address(value >> 80 & _IPV4)
    if value >> 96 == 0x20010000:  # Teredo: the server, then the client
        yield IPv4Address(value >> 64 & _IPV4)
        yield IPv4Address(~value & _IPV4)
    if value >> 32 & 0xFDFFFFFF == 0x5EFE:  # ISATAP, whatever its prefix
        yield IPv4Address(value & _IPV4)
    for network in (*_TRANSLATORS, *translators):
        if address in network:
            yield from _translated(value, network.prefixlen)


def _translated(value: int, prefix: int) -> Iterator[IPv4Address]:
    """Yield the address behind a NAT64, for each length that its prefix may have (RFC 6052)."""
    bits = value >> 64 << 56 | value & (1 << 56) - 1  # without the octet that is always 0
    for length in (32, 40, 48, 56, 64):
        if length >= prefix:
            yield IPv4Address(bits >> 120 - length - 32 & _IPV4)
    yield IPv4Address(value & _IPV4)


def special(address: Address, translators: Sequence[IPv6Network] = ()) -> AddressKind | None:
    """Return what an address is kept for, or None for one that may be public.

    An IPv6 address is as dangerous as the most dangerous IPv4 address in it.
    """
    address = canonical(address)
    found = [_look_up(address)]
    for inner in embedded(address, translators):
        if int(inner) >> 24:  # no form leads to 0.0.0.0/8: such bits are of another form
            found.append(_look_up(inner))
    return next((kind for kind in _ORDER if kind in found), None)


def _look_up(address: Address) -> AddressKind | None:
    value = int(address)
    for shift, networks in _LENGTHS[address.version]:
        bits = value >> shift
        if bits in networks:
            return networks[bits]
    return None
