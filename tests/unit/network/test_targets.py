"""What a person may ask a policy about."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import InvalidInput
from hutch.network.addresses import Address, AddressKind, special
from hutch.network.policy import Rules
from hutch.network.routes import Routes
from hutch.network.targets import judge, parse_target
from hutch.networking import NetworkMode, NetworkPolicy


class Abroad(Routes):
    """A host of whose networks nothing is known."""

    def kind(self, address: Address) -> AddressKind:
        return special(address) or AddressKind.PUBLIC


@pytest.mark.parametrize(
    ("text", "name", "address", "port"),
    [
        ("example.com", "example.com", None, 443),
        ("Example.COM.:22", "example.com", None, 22),
        ("bücher.example", "xn--bcher-kva.example", None, 443),
        ("10.0.0.1", None, "10.0.0.1", 443),
        ("10.0.0.1:80", None, "10.0.0.1", 80),
        ("2001:db8::1", None, "2001:db8::1", 443),
        ("[2001:db8::1]", None, "2001:db8::1", 443),
        ("[2001:db8::1]:22", None, "2001:db8::1", 22),
        ("https://user:secret@Example.com/path?q#f", "example.com", None, 443),
        ("http://example.com", "example.com", None, 80),
        ("http://example.com:8080/", "example.com", None, 8080),
        ("http://[::ffff:10.0.0.1]/", None, "10.0.0.1", 80),
        ("ssh://git@git.example.com/x", "git.example.com", None, 22),
        ("postgres://db.example.com/x", "db.example.com", None, 5432),
        ("other://example.com:7/", "example.com", None, 7),
    ],
)
def test_targets(text: str, name: str | None, address: str | None, port: int) -> None:
    found = parse_target(text)
    assert (found.text, found.name, found.port) == (text, name, port)
    assert found.address == (None if address is None else ip_address(address))


@pytest.mark.parametrize(
    "text",
    ["", "a..b", "example.com:0", "example.com:x", "example.com:", "127.1", "[::1", "[::1]x"]
    + ["https://", "https:///x", "other://example.com", "https://example.com:70000", "http://[::1"]
    + ["10.0.0.0/8", "example.com:65536", "example.com:٢٢", "x" * 500, "http://127.1/"],
)
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_target(text)
    assert caught.value.code == "bad_request"
    assert caught.value.hint
    assert len(caught.value.message) < 200


@given(st.text(max_size=60) | st.from_regex(r"[a-z+]{0,8}://[\[\]@.:0-9a-f%?#/]{0,40}"))
def test_whatever_is_asked_is_a_target_or_told_to_be_none(text: str) -> None:
    try:
        found = parse_target(text)
    except InvalidInput:
        return
    assert (found.name is None) != (found.address is None)
    assert 0 < found.port < 65536


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("example.com", "allowed"),
        ("example.com:22", "port_not_allowed"),
        ("other.example", "not_allowed"),
        ("nas.local", "internal_name"),
        ("bad.example", "denied_by_rule"),
        ("9.9.9.9:53", "allowed"),
        ("9.9.9.9:54", "port_not_allowed"),
        ("8.8.8.8:53", "not_allowed"),
        ("10.0.0.1:53", "address_lan"),
        ("169.254.169.254:80", "address_metadata"),
        ("host.hutch:80", "allowed"),
        ("host.hutch:81", "port_not_allowed"),
    ],
)
def test_what_a_policy_says_to_them(target: str, reason: str) -> None:
    policy = NetworkPolicy(
        NetworkMode.DENY, ["example.com", "9.9.9.9:53"], ["bad.example"], allow_host=[80]
    )
    decision = judge(Rules.of(policy), Abroad(), parse_target(target))
    assert decision.reason.value == reason
