"""How rules are written, and finding the one of thousands."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import InvalidInput
from hutch.network.rules import Rule, RuleSet, parse_rule


@pytest.mark.parametrize(
    ("text", "name", "below", "ports", "raw"),
    [
        ("example.com", "example.com", False, (80, 443), False),
        ("Example.COM.", "example.com", False, (80, 443), False),
        ("*.example.com", "example.com", True, (80, 443), False),
        ("example.com:22", "example.com", False, (22,), False),
        ("*.example.com:*", "example.com", True, (), False),
        ("example.com:443/tcp", "example.com", False, (443,), True),
        ("example.com:*/tcp", "example.com", False, (), True),
        ("bücher.example", "xn--bcher-kva.example", False, (80, 443), False),
        ("*.bücher.example", "xn--bcher-kva.example", True, (80, 443), False),
        ("nas", "nas", False, (80, 443), False),
    ],
)
def test_names(text: str, name: str, below: bool, ports: tuple[int, ...], raw: bool) -> None:
    rule = parse_rule(text, allow=True)
    assert rule == Rule(text, name, below, None, ports, raw)
    if not raw:
        denied = parse_rule(text, allow=False)
        assert denied.ports == (() if ports == (80, 443) else ports)


@pytest.mark.parametrize(
    ("text", "network", "ports", "raw"),
    [
        ("10.1.2.3", "10.1.2.3/32", (), False),
        ("10.0.0.0/8", "10.0.0.0/8", (), False),
        ("10.0.0.0/8:5432", "10.0.0.0/8", (5432,), False),
        ("10.1.2.3:443/tcp", "10.1.2.3/32", (443,), True),
        ("10.0.0.0/8:*/tcp", "10.0.0.0/8", (), True),
        ("2001:db8::1", "2001:db8::1/128", (), False),
        ("2001:db8::/32", "2001:db8::/32", (), False),
        ("[2001:db8::1]", "2001:db8::1/128", (), False),
        ("[2001:db8::1]:443", "2001:db8::1/128", (443,), False),
        ("[2001:db8::/32]:443", "2001:db8::/32", (443,), False),
        ("[2001:db8::]/32:443/tcp", "2001:db8::/32", (443,), True),
        ("0.0.0.0/0", "0.0.0.0/0", (), False),
        ("::/0", "::/0", (), False),
        ("::ffff:10.1.2.3", "10.1.2.3/32", (), False),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8", (), False),
    ],
)
def test_networks(text: str, network: str, ports: tuple[int, ...], raw: bool) -> None:
    rule = parse_rule(text, allow=True)
    assert rule == Rule(text, None, False, ip_network(network), ports, raw)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "it is empty"),
        ("   ", "spaces around"),
        ("example.com ", "spaces around"),
        ("example.com:443/TCP", "is no port"),
        (None, "it is no text"),
        (443, "it is no text"),
        ("x" * 500, "it is too long"),
        ("https://example.com/", "it is a URL"),
        ("example.com/tcp", "needs a port"),
        ("example.com:53/udp", "only TCP"),
        ("example.com:0", "is no port"),
        ("example.com:65536", "is no port"),
        ("example.com:http", "is no port"),
        ("example.com:", "is no port"),
        ("example.com:٢٢", "is no port"),
        ("example.com:-1", "is no port"),
        ("[2001:db8::1]443", "is no port"),
        ("[2001:db8::1", "the brackets hold no"),
        ("[example.com]:443", "the brackets hold no"),
        ("[10.0.0.1]:443", "the brackets hold no"),
        ("[2001:db8::/32]/32", "the brackets hold no"),
        ("a.b.example:1:2", "it is no address"),
        ("fe80::1%eth0", "it is no address"),
        ("10.0.0.0/33", "it is no address"),
        ("10.0.0.0/", "it is no address"),
        ("10.0.0.0/08", "it is no address"),
        ("10.0.0.0/255.0.0.0", "it is no address"),
        ("10.0.0.1/8", "its address is not the network's"),
        ("example.com/path", "it has a path"),
        ("2001:db8::/32:80", "it is no address"),
        ("127.1", "it is an address"),
        ("0x7f.0.0.1", "it is an address"),
        ("2130706433", "it is an address"),
        ("*", "it is for everything"),
        ("**.example.com", "only be the first label"),
        ("*example.com", "only be the first label"),
        ("a.*.example.com", "only be the first label"),
        ("*.", "it is empty"),
        ("a..example.com", "empty label"),
        ("user@example.com", "characters that no name has"),
        ("host.hutch:80", "Hutch's own"),
        ("*.hutch", "Hutch's own"),
        ("web.hutch", "Hutch's own"),
    ],
)
def test_what_is_no_rule(text: str, what: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_rule(text, allow=True)
    assert caught.value.code == "bad_policy"
    assert what in caught.value.message
    assert "`allow`" in caught.value.message
    assert caught.value.hint
    assert len(caught.value.message) < 300


@given(st.text(max_size=60) | st.from_regex(r"[\[\]*./:0-9a-f%]{0,40}(/tcp|:[0-9]{1,5})?"))
def test_whatever_is_written_is_a_rule_or_told_to_be_none(text: str) -> None:
    try:
        rule = parse_rule(text, allow=True)
    except InvalidInput as cause:
        told = cause
    else:
        told = None
    if told is not None:
        assert told.code == "bad_policy"
        assert told.hint
        return
    assert rule.text == text
    assert (rule.name is None) != (rule.network is None)
    assert all(0 < port < 65536 for port in rule.ports)
    again = rule.name if rule.network is None else str(rule.network)
    assert again is not None
    found = parse_rule("*." * rule.below + again, allow=True)
    assert (found.name, found.below, found.network) == (rule.name, rule.below, rule.network)


def test_the_message_in_full() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_rule("10.0.0.1/8", allow=False)
    assert caught.value.to_json() == {
        "code": "bad_policy",
        "message": "'10.0.0.1/8' cannot be a rule of `deny`: its address is not the network's",
        "hint": "write 10.0.0.0/8",
        "details": {"rule": "10.0.0.1/8", "list": "deny"},
    }


def test_what_only_deny_does_not_take() -> None:
    with pytest.raises(InvalidInput, match="for every protocol"):
        parse_rule("example.com:443/tcp", allow=False)
    assert parse_rule("host.hutch:80", allow=False).name == "host.hutch"


def rules(*texts: str) -> RuleSet:
    return RuleSet(parse_rule(text, allow=True) for text in texts)


def text_of(rule: Rule | None) -> str | None:
    return None if rule is None else rule.text


def test_the_nearest_name_is_found() -> None:
    known = rules("*.example.com", "*.b.example.com:22", "a.example.com:8080")
    assert text_of(known.name("a.example.com", 8080)) == "a.example.com:8080"
    assert text_of(known.name("a.example.com", 443)) == "*.example.com"
    assert text_of(known.name("x.b.example.com", 22)) == "*.b.example.com:22"
    assert text_of(known.name("x.b.example.com", 80)) == "*.example.com"
    assert text_of(known.name("x.b.example.com", None)) == "*.b.example.com:22"
    assert known.name("b.example.com", 22) is None
    assert known.name("example.com", None) is None, "*. does not hold the name itself"
    assert known.name("badexample.com", 443) is None
    assert known.whole_name("a.example.com") is None
    assert text_of(rules("*.com:*").whole_name("a.example.com")) == "*.com:*"


def test_the_narrowest_network_is_found() -> None:
    known = rules("10.0.0.0/8", "10.1.0.0/16:22", "10.1.2.3:22", "[2001:db8::]/32:80")
    look = lambda text, port: text_of(known.network(ip_address(text), port))  # noqa: E731
    assert look("10.1.2.3", 22) == "10.1.2.3:22"
    assert look("10.1.2.4", 22) == "10.1.0.0/16:22"
    assert look("10.1.2.3", 80) == "10.0.0.0/8"
    assert look("10.2.0.0", None) == "10.0.0.0/8"
    assert look("11.0.0.0", 22) is None
    assert look("2001:db8::1", 80) == "[2001:db8::]/32:80"
    assert look("2001:db8::1", 443) is None
    assert look("2001:db8::1", None) == "[2001:db8::]/32:80"
    every = [rule.text for rule in known.networks(ip_address("10.1.2.3"), 22)]
    assert every == ["10.1.2.3:22", "10.1.0.0/16:22", "10.0.0.0/8"]
    assert text_of(known.any_network(12345)) == "10.0.0.0/8"
    assert rules("10.0.0.0/8:1").any_network(2) is None


def test_any_protocol() -> None:
    known = rules("a.example:443/tcp", "*.a.example:*/tcp", "b.example", "10.0.0.0/8:80/tcp")
    assert known.is_raw_name("a.example", 443)
    assert not known.is_raw_name("a.example", 80)
    assert known.is_raw_name("x.a.example", 1)
    assert not known.is_raw_name("b.example", 443)
    assert known.is_raw_address(ip_address("10.1.1.1"), 80)
    assert not known.is_raw_address(ip_address("10.1.1.1"), 443)


def test_both_ports_of_the_web_belong_to_one_rule_and_others_may_follow() -> None:
    known = rules("a.example", "a.example:443/tcp", "a.example:22")
    assert text_of(known.name("a.example", 443)) == "a.example"
    assert text_of(known.name("a.example", 22)) == "a.example:22"
    assert known.is_raw_name("a.example", 443)
