"""What policies say: each mode and kind of rule."""

from ipaddress import ip_address

import pytest

from hutch.errors import InvalidInput
from hutch.network import addresses
from hutch.network.addresses import AddressKind
from hutch.network.policy import HOST_PORTS_MAX, RULES_MAX, Rules
from hutch.networking import Decision, NetworkMode, NetworkPolicy, Reason

PUBLIC, DENY, OPEN, NONE = NetworkMode.PUBLIC, NetworkMode.DENY, NetworkMode.OPEN, NetworkMode.NONE
KINDS = {
    "1.1.1.1": AddressKind.PUBLIC,
    "10.0.0.1": AddressKind.LAN,
    "127.0.0.1": AddressKind.HOST,
    "169.254.169.254": AddressKind.METADATA,
    "240.0.0.1": AddressKind.SPECIAL,
}


def rules(
    mode: NetworkMode = PUBLIC,
    allow: str = "",
    deny: str = "",
    *,
    host: tuple[int, ...] = (),
    lan: bool = False,
    internal: tuple[str, ...] = (),
) -> Rules:
    return Rules.of(
        NetworkPolicy(mode, allow.split(), deny.split(), list(host), lan), internal=internal
    )


def at(known: Rules, address: str, port: int = 443, name: str | None = None) -> Decision:
    kind = KINDS.get(address) or addresses.special(ip_address(address)) or AddressKind.PUBLIC
    return known.address(ip_address(address), kind, port, name)


def said(decision: Decision) -> tuple[bool, str, str | None]:
    """What a test compares; a denial always tells why, and how to change it unless nobody can."""
    assert decision.text
    assert decision.allowed == (decision.reason is Reason.ALLOWED)
    return decision.allowed, decision.reason.value, decision.rule


def reason(decision: Decision) -> str:
    return said(decision)[1]


# Names


@pytest.mark.parametrize("mode", [PUBLIC, OPEN])
def test_public_and_open_find_what_is_no_private_name(mode: NetworkMode) -> None:
    known = rules(mode, internal=("corp.example.com",))
    assert said(known.lookup("EXAMPLE.com.")) == (True, "allowed", None)
    assert said(known.connect("example.com", 12345)) == (True, "allowed", None)
    for name in (
        "intranet",
        "a.local",
        "metadata.google.internal",
        "git.corp.example.com",
        "x.hutch",
    ):
        assert reason(known.lookup(name)) == "internal_name", name
        assert reason(known.connect(name, 443)) == "internal_name", name


def test_a_rule_opens_a_private_name() -> None:
    known = rules(PUBLIC, "nas.local git.corp:22")
    assert said(known.lookup("nas.local")) == (True, "allowed", "nas.local")
    assert said(known.connect("git.corp", 22)) == (True, "allowed", "git.corp:22")
    assert said(known.connect("git.corp", 443)) == (False, "port_not_allowed", "git.corp:22")


def test_deny_finds_what_rules_allow() -> None:
    known = rules(DENY, "example.com *.example.org:22 api.example.net:*")
    assert said(known.lookup("example.com")) == (True, "allowed", "example.com")
    assert said(known.lookup("a.b.example.org")) == (True, "allowed", "*.example.org:22")
    assert reason(known.lookup("example.org")) == "not_allowed"
    assert reason(known.lookup("www.example.com")) == "not_allowed"
    assert reason(known.lookup("intranet")) == "internal_name"
    assert said(known.connect("example.com", 443)) == (True, "allowed", "example.com")
    assert said(known.connect("example.com", 80)) == (True, "allowed", "example.com")
    assert said(known.connect("example.com", 22)) == (False, "port_not_allowed", "example.com")
    assert said(known.connect("a.example.org", 22)) == (True, "allowed", "*.example.org:22")
    assert reason(known.connect("a.example.org", 443)) == "port_not_allowed"
    assert said(known.connect("api.example.net", 9)) == (True, "allowed", "api.example.net:*")


def test_denied_names_stay_so() -> None:
    known = rules(PUBLIC, "a.example.com", "*.example.com b.example:22")
    assert said(known.lookup("A.example.com")) == (False, "denied_by_rule", "*.example.com")
    assert said(known.connect("a.example.com.", 443)) == (False, "denied_by_rule", "*.example.com")
    assert known.lookup("example.com").allowed
    assert known.lookup("b.example").allowed, "only one of its ports is denied"
    assert said(known.connect("b.example", 22)) == (False, "denied_by_rule", "b.example:22")
    assert known.connect("b.example", 23).allowed


def test_what_is_no_name_does_not_exist() -> None:
    for known in (rules(OPEN), rules(DENY, "example.com")):
        for name in ("", "127.0.0.1", "a..b", "0x7f.1", "x" * 64 + ".com", "a\n.example"):
            assert reason(known.lookup(name)) == "name_not_found", name
            assert reason(known.connect(name, 443)) == "name_not_found", name
            assert "\n" not in known.lookup(name).text


def test_services_are_judged_by_whose_they_are() -> None:
    known = rules(DENY, "example.com", "secret.example")
    assert known.lookup("_http._tcp.example.com").allowed
    assert not known.lookup("_http._tcp.example.net").allowed
    assert not known.lookup("_0123456789abcdef.example.com").allowed, "no room for much data"
    assert not known.connect("_http._tcp.example.com", 443).allowed
    assert reason(rules(OPEN, "", "a.example").lookup("_x._tcp.a.example")) == "denied_by_rule"
    assert reason(rules(OPEN).lookup("_ldap._tcp.intranet")) == "internal_name"


def test_none_is_nothing() -> None:
    known = rules(NONE, "example.com 0.0.0.0/0 169.254.169.254", host=(80,), lan=True)
    for decision in (
        known.lookup("example.com"),
        known.lookup("host.hutch"),
        known.connect("example.com", 443),
        known.connect(None, 443),
        known.host_port(80),
        known.server_name("example.com", "example.com", 443),
        known.server_name(None, None, 443),
        known.host("example.com", "example.com", 80),
        *(at(known, address) for address in KINDS),
    ):
        assert said(decision) == (False, "network_down", None)
        assert decision.hint


# Addresses


def test_public_leads_to_public_addresses_alone() -> None:
    known = rules()
    for name in (None, "example.com"):
        assert said(at(known, "1.1.1.1", 25, name)) == (True, "allowed", None)
        assert reason(at(known, "10.0.0.1", 443, name)) == "address_lan"
        assert reason(at(known, "127.0.0.1", 443, name)) == "address_host"
        assert reason(at(known, "169.254.169.254", 80, name)) == "address_metadata"
        assert reason(at(known, "240.0.0.1", 443, name)) == "address_special"
    assert known.connect(None, 443).allowed
    denial = at(known, "10.0.0.1", 5432, "db.example.com")
    assert (
        denial.text
        == "db.example.com is at 10.0.0.1, which is on a network of the host, or behind one"
    )
    assert denial.hint is not None
    assert "`--allow 10.0.0.1:5432`" in denial.hint
    assert "`--allow-lan`" in denial.hint


def test_what_only_a_route_makes_private_is_told_so() -> None:
    denial = rules().address(ip_address("8.8.8.8"), AddressKind.LAN, 443)
    assert reason(denial) == "address_lan"
    assert denial.text == "8.8.8.8 is reached by a route of the host that is not its default one"
    assert denial.hint is not None
    assert "`network_public_routes`" in denial.hint


def test_open_leads_everywhere_but_to_the_host_and_metadata() -> None:
    known = rules(OPEN)
    found = {address: reason(at(known, address)) for address in KINDS}
    assert found == {
        "1.1.1.1": "allowed",
        "10.0.0.1": "allowed",
        "127.0.0.1": "address_host",
        "169.254.169.254": "address_metadata",
        "240.0.0.1": "allowed",
    }


def test_deny_leads_where_rules_say() -> None:
    known = rules(DENY, "example.com 1.1.1.0/24:53 10.0.0.0/8")
    assert said(at(known, "1.1.1.1", 53)) == (True, "allowed", "1.1.1.0/24:53")
    assert said(at(known, "1.1.1.1", 443)) == (False, "port_not_allowed", "1.1.1.0/24:53")
    assert reason(at(known, "9.9.9.9", 53)) == "not_allowed"
    assert said(at(known, "10.0.0.1", 22)) == (True, "allowed", "10.0.0.0/8")
    assert said(at(known, "9.9.9.9", 443, "example.com")) == (True, "allowed", "example.com")
    assert reason(at(known, "9.9.9.9", 22, "example.com")) == "port_not_allowed"
    assert reason(at(known, "1.1.1.1", 53, "other.example")) == "not_allowed"
    assert known.connect(None, 9).allowed, "10.0.0.0/8 may be meant"
    assert reason(rules(DENY, "example.com 1.1.1.1:53").connect(None, 443)) == "not_allowed"
    assert rules(DENY, "1.1.1.1:53").connect(None, 53).allowed


def test_the_lan() -> None:
    known = rules(DENY, "example.com", lan=True)
    assert known.connect(None, 22).allowed
    assert said(at(known, "10.0.0.1", 22)) == (True, "allowed", "allow_lan")
    assert said(at(known, "10.0.0.1", 443, "example.com")) == (True, "allowed", "allow_lan")
    assert reason(at(known, "1.1.1.1", 22)) == "not_allowed"
    assert reason(at(known, "127.0.0.1", 22)) == "address_host"
    assert reason(at(known, "169.254.169.254", 80)) == "address_metadata"
    assert reason(at(rules(lan=True, deny="10.0.0.1:22"), "10.0.0.1", 22)) == "denied_by_rule"


def test_a_name_does_not_open_the_lan() -> None:
    assert reason(at(rules(DENY, "a.example"), "10.0.0.1", 443, "a.example")) == "address_lan"
    known = rules(DENY, "a.example 10.0.0.1:443")
    assert said(at(known, "10.0.0.1", 443, "a.example")) == (True, "allowed", "10.0.0.1:443")


@pytest.mark.parametrize("mode", [PUBLIC, DENY, OPEN])
@pytest.mark.parametrize(
    "address", ["169.254.169.254", "168.63.129.16", "100.100.100.200", "fd00:ec2::254", "127.0.0.1"]
)
def test_the_most_dangerous_need_a_rule_of_their_own(mode: NetworkMode, address: str) -> None:
    wide = "0.0.0.0/0 ::/0 169.254.0.0/16 169.254.169.254/31 168.63.129.16/31 100.64.0.0/10"
    wide += " fd00:ec2::254/127 fc00::/7 127.0.0.0/8 127.0.0.0/31"
    known = rules(mode, wide, lan=True)
    assert reason(at(known, address, 80)) in ("address_metadata", "address_host")
    exact = rules(mode, address)
    assert said(at(exact, address, 80)) == (True, "allowed", address)
    assert not at(rules(mode, address, address), address, 80).allowed


def test_rules_for_the_whole_internet_open_nothing_private() -> None:
    known = rules(DENY, "0.0.0.0/0 ::/0")
    assert at(known, "1.1.1.1").allowed
    assert at(known, "2606:4700::1").allowed
    assert reason(at(known, "10.0.0.1")) == "address_lan"
    assert reason(at(known, "fd12::1")) == "address_lan"
    assert at(rules(DENY, "10.0.0.0/8 fc00::/7"), "fd12::1").allowed


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::", "::8.8.8.8"]
)
def test_a_denied_address_is_so_in_every_form(address: str) -> None:
    assert reason(at(rules(OPEN, "", "8.8.8.0/24"), address)) == "denied_by_rule"


def test_an_allowed_address_is_so_as_it_stands() -> None:
    known = rules(DENY, "8.8.8.8 10.0.0.0/8")
    assert at(known, "::ffff:8.8.8.8").allowed, "the kernel sees no difference"
    assert not at(known, "64:ff9b::8.8.8.8").allowed
    assert not at(known, "64:ff9b::10.0.0.1").allowed
    assert not at(known, "2002:a00:1::").allowed


# What a client says


def test_the_server_name_is_that_of_the_connection() -> None:
    for known in (rules(DENY, "a.example b.example bücher.example"), rules(), rules(OPEN)):
        assert known.server_name("a.example", "A.Example.", 443).allowed
        assert known.server_name("xn--bcher-kva.example", "bücher.example", 443).allowed
        assert reason(known.server_name("a.example", "b.example", 443)) == "server_name_mismatch"
        assert reason(known.server_name("a.example", None, 443)) == "server_name_missing"
        for odd in ("", "1.2.3.4", "a.example\0", "a.example:443", "a.example.."):
            assert reason(known.server_name("a.example", odd, 443)) == "server_name_mismatch"
    denial = rules(DENY, "a.example b.example").server_name("a.example", "b.example", 443)
    assert denial.text == "the connection is to a.example, but what is sent is for b.example"
    assert denial.hint == "connect by the name that is meant, or allow `a.example:443/tcp`"


def test_any_protocol_may_say_what_it_likes() -> None:
    known = rules(DENY, "a.example:443/tcp a.example:80/tcp 1.1.1.1:443/tcp")
    assert known.is_raw("A.example", 443)
    assert not known.is_raw("b.example", 443)
    assert not known.is_raw("a..example", 443)
    assert known.is_raw(None, 443, ip_address("1.1.1.1"))
    assert not known.is_raw(None, 443, ip_address("1.1.1.2"))
    assert not known.is_raw(None, 443)
    assert known.server_name("a.example", "b.example", 443).allowed
    assert known.server_name("a.example", None, 443).allowed
    assert known.host("a.example", "\0", 80).allowed
    assert not known.server_name("b.example", "a.example", 443).allowed


def test_a_raw_connection_says_any_name_but_a_denied_one() -> None:
    for known in (rules(PUBLIC, "", "*.a.example"), rules(DENY, "1.1.1.1", "*.a.example")):
        assert known.server_name(None, None, 443).allowed
        assert known.server_name(None, "b.example", 443).allowed
        assert known.server_name(None, "1.1.1.1", 443).allowed
        assert reason(known.server_name(None, "X.a.example.", 443)) == "denied_by_rule"
        assert reason(known.server_name(None, "x.a.example\0", 443)) == "server_name_mismatch"
        assert known.host(None, "1.1.1.1", 80).allowed
        assert known.host(None, "[2001:db8::1]:80", 80).allowed
        assert reason(known.host(None, "x.A.example:80", 80)) == "denied_by_rule"
        assert reason(known.host(None, "0x1.1", 80)) == "host_mismatch"
    assert reason(rules(DENY, "b.example").server_name(None, "b.example", 443)) == "not_allowed"


def test_the_host_is_that_of_the_connection() -> None:
    for known in (rules(DENY, "a.example a.example:8080"), rules(PUBLIC), rules(OPEN)):
        for host in ("a.example", "A.example.", "a.example:80", "A.EXAMPLE.:80"):
            assert known.host("a.example", host, 80).allowed, host
        assert known.host("a.example", "a.example:8080", 8080).allowed
        for host in (
            *("", ":80", "b.example", "a.example:8080", "a.example:", "a.example:080"),
            *("a.example:80:80", "[a.example]", "user@a.example", "a.example/", "1.2.3.4"),
            *("[::1]:80", "a.example:٨٠", " a.example", "a.example,b.example"),
        ):
            assert reason(known.host("a.example", host, 80)) == "host_mismatch", host
    known = rules(PUBLIC, "", "b.example")
    assert reason(known.host("a.example", "b.example", 80)) == "denied_by_rule"


# The host


def test_ports_that_rules_for_a_name_or_address_are_about() -> None:
    known = rules(DENY, "a.example:22 *.example:23/tcp a.example 10.0.0.0/8:24 b.example:26")
    address = ip_address("::ffff:10.1.2.3")
    assert known.ports("A.Example.", address) == [443, 80, 22, 23, 24]
    assert known.ports("b.test", ip_address("1.1.1.1")) == [443, 80]
    assert known.ports("no name", address) == []


def test_ports_of_the_host() -> None:
    known = rules(DENY, host=(5432, 80))
    assert known.lookup("host.hutch").allowed
    assert said(known.host_port(5432)) == (True, "allowed", "allow_host 5432")
    assert said(known.connect("HOST.hutch.", 80)) == (True, "allowed", "allow_host 80")
    assert reason(known.connect("host.hutch", 22)) == "port_not_allowed"
    assert known.host("host.hutch", "host.hutch", 80).allowed
    assert at(known, "127.0.0.1", 80, "host.hutch").allowed
    for address in KINDS.keys() - {"127.0.0.1"}:
        assert reason(at(known, address, 80, "host.hutch")) == "address_unknown"
    assert not at(known, "127.0.0.1", 80).allowed
    assert not at(known, "127.0.0.1", 80, "evil.example").allowed
    kept = Rules.of(known.policy, reserved=[5432])
    assert reason(kept.host_port(5432)) == "not_allowed"
    assert not at(kept, "127.0.0.1", 5432, "host.hutch").allowed
    assert kept.host_port(80).allowed
    assert known.may_open_host()
    denied = rules(OPEN, "", "host.hutch:80", host=(80, 81))
    assert said(denied.host_port(80)) == (False, "denied_by_rule", "host.hutch:80")
    assert denied.host_port(81).allowed


def test_no_rule_for_an_address_of_the_host_opens_what_is_published() -> None:
    known = rules(PUBLIC, "127.0.0.1 ::1 203.0.113.9 x.example")
    kept = Rules.of(known.policy, reserved=[8080])
    for name in (None, "x.example"):
        assert at(known, "127.0.0.1", 8080, name).allowed
        for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
            assert reason(at(kept, address, 8080, name)) == "not_allowed"
            assert at(kept, address, 8081, name).allowed
    own = ip_address("203.0.113.9")
    assert not kept.address(own, AddressKind.HOST, 8080).allowed
    assert kept.address(own, AddressKind.PUBLIC, 8080).allowed
    assert kept.may_open_host()
    assert not rules(OPEN, "x.example 127.0.0.0/31 10.0.0.0/8", lan=True).may_open_host()


@pytest.mark.parametrize("mode", [PUBLIC, DENY, OPEN])
def test_the_host_is_closed_unless_told(mode: NetworkMode) -> None:
    known = rules(mode)
    assert said(known.lookup("host.hutch")) == (False, "internal_name", None)
    denial = known.host_port(8080)
    assert said(denial) == (False, "not_allowed", None)
    assert denial.hint == "open it with `--allow-host 8080`"


# What cannot be


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (NetworkPolicy(allow=["10.0.0.1/8"]), "'10.0.0.1/8' cannot be a rule of `allow`"),
        (NetworkPolicy(deny=["*"]), "'*' cannot be a rule of `deny`: it is for everything"),
        (NetworkPolicy(allow=["a.example"] * (RULES_MAX + 1)), "entries of `allow` are too many"),
        (NetworkPolicy(allow_host=[0]), "'0' in `allow_host` is no port"),
        (NetworkPolicy(allow_host=[65536]), "'65536' in `allow_host` is no port"),
        (NetworkPolicy(allow_host=[True]), "'True' in `allow_host` is no port"),
        (
            NetworkPolicy(allow_host=[80] * (HOST_PORTS_MAX + 1)),
            "entries of `allow_host` are too many",
        ),
    ],
)
def test_broken_policies(policy: NetworkPolicy, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Rules.of(policy)
    assert caught.value.code == "bad_policy"
    assert message in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "policy",
    [
        NetworkPolicy(mode="none"),  # type: ignore[arg-type]
        NetworkPolicy(mode=None),  # type: ignore[arg-type]
        NetworkPolicy(allow_lan="false"),  # type: ignore[arg-type]
        NetworkPolicy(allow="a.example"),  # type: ignore[arg-type]
        NetworkPolicy(deny=("a.example",)),  # type: ignore[arg-type]
        NetworkPolicy(deny=None),  # type: ignore[arg-type]
    ],
)
def test_fields_of_a_wrong_type_open_nothing(policy: NetworkPolicy) -> None:
    with pytest.raises(InvalidInput) as caught:
        Rules.of(policy)
    assert caught.value.code == "bad_policy"


def test_what_the_host_searches_may_be_nonsense() -> None:
    known = rules(internal=(".", "a..b", "Corp.Example.", "bücher.example"))
    assert reason(known.lookup("git.corp.example")) == "internal_name"
    assert reason(known.lookup("xn--bcher-kva.example")) == "internal_name"
    assert known.lookup("example.com").allowed


def test_every_denial_tells_how_to_go_on() -> None:
    known = rules(DENY, "a.example", "b.example 9.9.9.9")
    for decision in (
        known.lookup("c.example"),
        known.connect("a.example", 22),
        known.connect("b.example", 443),
        known.connect("nas.local", 443),
        known.connect(None, 443),
        known.host_port(80),
        known.server_name("a.example", None, 443),
        *(at(known, address, 443) for address in (*KINDS, "9.9.9.9")),
    ):
        assert not decision.allowed
        assert decision.hint
        assert decision.text[0] != " "
    assert known.connect("c.example", 22).hint == (
        "allow it with `--allow c.example:22`, also in a running sandbox (`hutch network update`)"
    )
