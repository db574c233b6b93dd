"""The notation of published ports."""

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import HutchError
from hutch.networking import PublishedPort
from hutch.portspec import (
    PORTS_MAX,
    check_ports,
    exposed_ports,
    overlap,
    parse_host_port,
    parse_ports,
    port_list,
    show_address,
    show_port,
    show_ports,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", [PublishedPort(80)]),
        ("80/tcp", [PublishedPort(80)]),
        ("8080:80", [PublishedPort(80, 8080)]),
        ("8080:80/TCP", [PublishedPort(80, 8080)]),
        (":80", [PublishedPort(80)]),
        ("0:80", [PublishedPort(80)]),
        ("127.0.0.1:80", [PublishedPort(80)]),
        ("192.0.2.1::80", [PublishedPort(80, 0, "192.0.2.1")]),
        ("0.0.0.0:8080:80", [PublishedPort(80, 8080, "0.0.0.0")]),
        ("[::1]:8080:80", [PublishedPort(80, 8080, "::1")]),
        ("[0:0::1]:80", [PublishedPort(80, 0, "::1")]),
        ("[::ffff:127.0.0.2]:1:2", [PublishedPort(2, 1, "127.0.0.2")]),
        ("80-81", [PublishedPort(80), PublishedPort(81)]),
        ("8000-8001:80-81", [PublishedPort(80, 8000), PublishedPort(81, 8001)]),
        ("127.0.0.2:1-1:65535", [PublishedPort(65535, 1, "127.0.0.2")]),
    ],
)
def test_what_can_be_written(text: str, expected: list[PublishedPort]) -> None:
    assert parse_ports(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no port"),
        ("web", "no port"),
        ("80/", "no port"),
        ("80/udp", "only TCP"),
        ("8080:80/sctp", "only TCP"),
        ("0", "no port nor a range"),
        ("65536", "no port nor a range"),
        ("81-80", "no port nor a range"),
        ("1-65535", "more than a sandbox can publish"),
        ("8000-8001:80", "not of the same length"),
        ("80:8000-8001", "not of the same length"),
        ("0-1:80-81", "no port nor a range"),
        ("localhost:8080:80", "no numeric address"),
        ("::1:8080:80", "no port"),
        ("[127.0.0.1]:8080:80", "in brackets"),
        ("[]:8080:80", "no numeric address"),
        ("[fe80::1%eth0]:8080:80", "nothing can be published"),
        ("224.0.0.1:8080:80", "nothing can be published"),
        ("1:2:3:4", "no port"),
        (" 80", "no port"),
        ("+80", "no port"),
        ("٨٠", "no port"),
        ("8080:80\n", "no port"),
    ],
)
def test_what_cannot(text: str, why: str) -> None:
    with pytest.raises(HutchError, match=re.escape(why)) as caught:
        parse_ports(text)
    assert caught.value.code == "bad_port"
    assert caught.value.hint


_PORT = st.integers(1, 65535)
_ADDRESS = st.one_of(
    st.ip_addresses(v=4, network="127.0.0.0/8"), st.ip_addresses(v=6, network="2001:db8::/32")
)


@given(guest=_PORT, host=st.integers(0, 65535), address=_ADDRESS, protocol=st.booleans())
def test_what_is_written_is_understood(
    guest: int, host: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address, protocol: bool
) -> None:
    where = f"[{address}]" if address.version == 6 else str(address)
    text = f"{where}:{host or ''}:{guest}{'/tcp' if protocol else ''}"
    assert parse_ports(text) == [PublishedPort(guest, host, str(address))]


@given(
    st.one_of(
        st.text(max_size=40),
        st.text(alphabet="0123456789:-./[]tcpTCP%fF", max_size=40),
    )
)
def test_whatever_is_written_is_a_port_or_refused(text: str) -> None:
    for parse in (parse_ports, parse_host_port):
        try:
            found = parse(text)
        except HutchError as failure:
            assert failure.code == "bad_port"  # noqa: PT017 - refused, or as below
            continue
        if isinstance(found, list):
            assert found
            assert check_ports(found) == found or len(found) > 1
            for port in found:
                ipaddress.ip_address(port.address)


@given(first=_PORT, length=st.integers(1, PORTS_MAX))
def test_ranges_are_shown_as_ranges(first: int, length: int) -> None:
    last = min(first + length - 1, 65535)
    ports = parse_ports(f"{first}-{last}:{first}-{last}")
    assert len(ports) == last - first + 1
    span = f"{first}-{last}" if last > first else str(first)
    assert show_ports(ports) == f"127.0.0.1:{span}->{span}/tcp"


def test_how_ports_are_shown() -> None:
    ports = [PublishedPort(443, 8443, "::1"), PublishedPort(80, 8080), PublishedPort(81, 8081)]
    assert show_address(ports[0]) == "[::1]:8443"
    assert show_port(ports[1]) == "127.0.0.1:8080->80/tcp"
    assert show_ports(ports) == "127.0.0.1:8080-8081->80-81/tcp, [::1]:8443->443/tcp"
    assert show_ports([]) == ""


def test_none_may_be_asked_for_twice() -> None:
    one = PublishedPort(80, 8080)
    for other in (
        one,
        PublishedPort(81, 8080),
        PublishedPort(81, 8080, "0.0.0.0"),
        PublishedPort(81, 8080, "0:0:0:0:0:ffff:7f00:1"),
    ):
        with pytest.raises(HutchError, match="asked for twice"):
            check_ports([one, other])
    with pytest.raises(HutchError, match="asked for twice"):
        check_ports([PublishedPort(80), PublishedPort(80)])
    fine = [
        one,
        PublishedPort(80, 8081),
        PublishedPort(80, 8080, "127.0.0.2"),
        PublishedPort(80, 8080, "::"),
        PublishedPort(80),
        PublishedPort(81),
    ]
    assert check_ports(fine) == fine
    assert check_ports([PublishedPort(80, error="old")]) == [PublishedPort(80)]


def test_addresses_overlap_within_their_kind() -> None:
    assert overlap("127.0.0.1", "0.0.0.0")
    assert overlap("::", "::1")
    assert not overlap("::", "127.0.0.1")
    assert not overlap("127.0.0.1", "127.0.0.2")


def test_what_images_expose() -> None:
    exposed = ["80/tcp", "53/udp", "8000-8001", "80"]
    assert exposed_ports(exposed) == [PublishedPort(80), PublishedPort(8000), PublishedPort(8001)]
    for text in ("0.0.0.0:80", "8080:80", "web/tcp", ""):
        with pytest.raises(HutchError, match="the image exposes it"):
            exposed_ports([text])


def test_ports_of_the_host() -> None:
    assert parse_host_port("8080") == (8080, None)
    assert parse_host_port("0.0.0.0:8080") == (8080, "0.0.0.0")
    assert parse_host_port("[::1]:8080") == (8080, "::1")
    for text in ("", "0", "80-81", "web", "web:80", ":80"):
        with pytest.raises(HutchError):
            parse_host_port(text)


def test_ports_may_be_given_in_any_way() -> None:
    given_ports: list[int | str | PublishedPort] = [8000, "8080:80", PublishedPort(81, 8081)]
    expected = [PublishedPort(8000), PublishedPort(80, 8080), PublishedPort(81, 8081)]
    assert port_list(given_ports) == expected
