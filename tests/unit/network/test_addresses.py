"""Addresses of special purpose, in every form that leads to them."""

import ipaddress
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.network.addresses import AddressKind, canonical, embedded, parse, special

PUBLIC = None
LAN, HOST = AddressKind.LAN, AddressKind.HOST
METADATA, SPECIAL = AddressKind.METADATA, AddressKind.SPECIAL


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        # plain
        ("8.8.8.8", PUBLIC),
        ("1.1.1.1", PUBLIC),
        ("99.255.255.255", PUBLIC),
        ("100.63.255.255", PUBLIC),
        ("100.128.0.0", PUBLIC),
        ("172.15.255.255", PUBLIC),
        ("172.32.0.0", PUBLIC),
        ("192.0.1.0", PUBLIC),
        ("198.17.255.255", PUBLIC),
        ("198.20.0.0", PUBLIC),
        ("223.255.255.255", PUBLIC),
        ("168.63.129.15", PUBLIC),
        ("2001:4860:4860::8888", PUBLIC),
        ("2001:200::1", PUBLIC),
        ("2606:4700::1111", PUBLIC),
        ("3ffe::1", PUBLIC),
        ("0.0.0.0", HOST),
        ("0.1.2.3", HOST),
        ("127.0.0.1", HOST),
        ("127.255.255.254", HOST),
        ("::", HOST),
        ("::1", HOST),
        ("10.0.0.1", LAN),
        ("100.64.0.1", LAN),
        ("100.127.255.255", LAN),
        ("172.16.0.1", LAN),
        ("172.31.255.255", LAN),
        ("192.168.1.1", LAN),
        ("fc00::1", LAN),
        ("fd12:3456::1", LAN),
        ("fe80::1", LAN),
        ("febf::1", LAN),
        ("fec0::1", LAN),
        ("192.0.0.8", SPECIAL),
        ("192.0.2.1", SPECIAL),
        ("192.88.99.1", SPECIAL),
        ("198.18.0.1", SPECIAL),
        ("198.19.255.255", SPECIAL),
        ("198.51.100.1", SPECIAL),
        ("203.0.113.1", SPECIAL),
        ("224.0.0.1", SPECIAL),
        ("239.255.255.250", SPECIAL),
        ("240.0.0.1", SPECIAL),
        ("255.255.255.255", SPECIAL),
        ("100::1", SPECIAL),
        ("2001:db8::1", SPECIAL),
        ("2001:2::1", SPECIAL),
        ("2001:10::1", SPECIAL),
        ("3fff::1", SPECIAL),
        ("4000::1", SPECIAL),
        ("5f00::1", SPECIAL),
        ("ff02::1", SPECIAL),
        ("ff0e::1", SPECIAL),
        # metadata services
        ("169.254.169.254", METADATA),
        ("169.254.170.2", METADATA),
        ("169.254.0.1", METADATA),
        ("100.100.100.200", METADATA),
        ("168.63.129.16", METADATA),
        ("192.0.0.192", METADATA),
        ("fd00:ec2::254", METADATA),
        ("fd20:ce::254", METADATA),
        ("fd00:42::42", METADATA),
        ("fe80::a9fe:a9fe", METADATA),
        # v4-mapped: the kernel connects to the IPv4 address
        ("::ffff:8.8.8.8", PUBLIC),
        ("::ffff:10.0.0.1", LAN),
        ("::ffff:127.0.0.1", HOST),
        ("::ffff:0.0.0.0", HOST),
        ("::ffff:169.254.169.254", METADATA),
        ("::ffff:168.63.129.16", METADATA),
        ("::ffff:224.0.0.1", SPECIAL),
        # v4-compatible and v4-translated
        ("::8.8.8.8", SPECIAL),
        ("::10.0.0.1", SPECIAL),
        ("::127.0.0.1", HOST),
        ("::169.254.169.254", METADATA),
        ("::ffff:0:127.0.0.1", HOST),
        ("::ffff:0:169.254.169.254", METADATA),
        ("::ffff:0:8.8.8.8", SPECIAL),
        # NAT64
        ("64:ff9b::8.8.8.8", PUBLIC),
        ("64:ff9b::10.0.0.1", LAN),
        ("64:ff9b::127.0.0.1", HOST),
        ("64:ff9b::169.254.169.254", METADATA),
        ("64:ff9b::168.63.129.16", METADATA),
        ("64:ff9b::198.18.0.1", SPECIAL),
        ("64:ff9b:1::8.8.8.8", LAN),
        ("64:ff9b:1::127.0.0.1", HOST),
        ("64:ff9b:1::169.254.169.254", METADATA),
        ("64:ff9b:1:a9fe:a9:fe00::", METADATA),  # /48
        ("64:ff9b:1:7f00:0:100::", HOST),
        ("64:ff9b:1:00a9:fe:a9fe::", METADATA),  # /56
        ("64:ff9b:1:0:a9:fea9:fe00:0", METADATA),  # /64
        # 6to4
        ("2002:808:808::1", SPECIAL),
        ("2002:a00:1::1", SPECIAL),
        ("2002:7f00:1::", HOST),
        ("2002:a9fe:a9fe::1", METADATA),
        # Teredo: the server in front, the client at the end with all bits turned
        ("2001:0:808:808::f7f7:f7f7", SPECIAL),
        ("2001:0:a9fe:a9fe::f7f7:f7f7", METADATA),
        ("2001:0:808:808:0:0:5601:5601", METADATA),
        ("2001:0:808:808:0:0:80ff:fffe", HOST),
        # ISATAP
        ("2606:4700::5efe:8.8.8.8", PUBLIC),
        ("2606:4700::200:5efe:8.8.8.8", PUBLIC),
        ("2606:4700::5efe:10.0.0.1", LAN),
        ("2606:4700::200:5efe:10.0.0.1", LAN),
        ("2606:4700::5efe:169.254.169.254", METADATA),
        ("fe80::5efe:127.0.0.1", HOST),
    ],
)
def test_table(address: str, kind: AddressKind | None) -> None:
    assert special(ip_address(address)) is kind


@pytest.mark.parametrize(
    ("prefix", "address"),
    [
        ("2a00:64::/32", "2a00:64:a9fe:a9fe::"),
        ("2a00:64::/40", "2a00:64:a9:fea9:fe::"),
        ("2a00:64::/48", "2a00:64:0:a9fe:a9:fe00::"),
        ("2a00:64::/56", "2a00:64:0:a9:fe:a9fe::"),
        ("2a00:64::/64", "2a00:64::a9:fea9:fe00:0"),
        ("2a00:64::/96", "2a00:64::a9fe:a9fe"),
    ],
)
def test_prefixes_of_the_hosts_own_nat64(prefix: str, address: str) -> None:
    inner = ip_address(address)
    assert special(inner, [IPv6Network(prefix)]) is METADATA
    assert special(inner) is PUBLIC


@pytest.mark.parametrize("hole", ["10.0.0.1", "169.254.169.254", "127.0.0.1", "168.63.129.16"])
@given(st.integers(0, 2**48 - 1))
def test_nothing_private_is_public_in_another_form(hole: str, noise: int) -> None:
    inner = int(IPv4Address(hole))
    forms = [
        inner,
        0xFFFF << 32 | inner,
        0xFFFF << 48 | inner,
        0x64FF9B << 96 | inner,
        0x64FF9B0001 << 80 | noise << 32 | inner,
        0x2002 << 112 | inner << 80 | noise,
        0x20010000 << 96 | inner << 64 | noise,
        0x20010000 << 96 | noise << 32 | (~inner & 0xFFFFFFFF),
        0x2606 << 112 | (noise & 0xFFFFFFFF) << 64 | 0x5EFE << 32 | inner,
        0x2606 << 112 | (noise & 0xFFFFFFFF) << 64 | 0x2005EFE << 32 | inner,
    ]
    assert [str(IPv6Address(form)) for form in forms if special(IPv6Address(form)) is None] == []


@given(st.ip_addresses())
def test_the_library_knows_nothing_private_that_we_do_not(
    address: IPv4Address | IPv6Address,
) -> None:
    if address.is_private or address.is_multicast or address.is_reserved:
        nat64 = address in IPv6Network("64:ff9b::/96")
        assert nat64 or special(address) is not None or canonical(address) != address


def test_what_lies_in_an_address() -> None:
    assert list(embedded(ip_address("8.8.8.8"))) == []
    assert list(embedded(ip_address("2606:4700::1"))) == []
    assert IPv4Address("10.0.0.1") in list(embedded(ip_address("2002:a00:1::1")))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.168.0.1", "192.168.0.1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
    ],
)
def test_parse(text: str, address: str) -> None:
    assert parse(text) == ipaddress.ip_address(address)


@pytest.mark.parametrize(
    "text",
    [
        *("", "127.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.0.0.01", "fe80::1%eth0"),
        *("[1.1.1.1]", "１.1.1.1", "[::1", "::1]", "1.1.1.1 ", " 1.1.1.1", "1.1.1.1:80"),
        *("[[::1]]", "1" * 5000),
    ],
)
def test_odd_notations_are_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the words are the library's
        parse(text)
