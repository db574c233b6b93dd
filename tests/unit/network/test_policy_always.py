"""What always holds of policies, and that thousands of rules are as quick as few."""

import sys
from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from hutch.network.addresses import AddressKind
from hutch.network.policy import Rules
from hutch.networking import Decision, NetworkMode, NetworkPolicy, Reason

KINDS = {
    "1.1.1.1": AddressKind.PUBLIC,
    "10.0.0.1": AddressKind.LAN,
    "127.0.0.1": AddressKind.HOST,
    "169.254.169.254": AddressKind.METADATA,
    "240.0.0.1": AddressKind.SPECIAL,
}
NAMES = st.sampled_from(
    ["a.example", "x.a.example", "y.x.a.example", "b.example", "c.test", "nas", "host.hutch"]
)
PORTS = st.sampled_from([22, 80, 443, 8080])
ENDINGS = st.sampled_from(["", ":22", ":443", ":*"])
NAME_RULES = st.builds(
    lambda star, name, end: star + name + end,
    st.sampled_from(["", "*."]),
    st.sampled_from(["a.example", "x.a.example", "b.example", "c.test", "nas"]),
    ENDINGS,
)
ADDRESS_RULES = st.builds(
    lambda address, end: address + end,
    st.sampled_from(
        ["1.1.1.1", "1.0.0.0/8", "10.0.0.0/8", "10.0.0.1", "0.0.0.0/0", "169.254.0.0/16"]
        + ["169.254.169.254/31", "127.0.0.0/8", "240.0.0.0/8"]
    ),
    ENDINGS,
)
RULES = st.lists(NAME_RULES | ADDRESS_RULES, max_size=5)
POLICIES = st.builds(
    NetworkPolicy,
    st.sampled_from(list(NetworkMode)),
    RULES,
    RULES,
    st.lists(PORTS, max_size=2),
    st.booleans(),
)
MAYBE_NAMES = st.none() | NAMES


def verdicts(policy: NetworkPolicy, name: str | None, port: int, address: str) -> list[Decision]:
    """Everything that can be asked about a connection."""
    known = Rules.of(policy)
    spoken = name or "a.example"
    found = [
        known.connect(name, port),
        known.address(IPv4Address(address), KINDS[address], port, name),
        known.server_name(name, spoken, port),
        known.server_name(name, None, port),
        known.host(name, spoken, port),
        known.host_port(port),
    ]
    return found if name is None else [known.lookup(name), *found]


@given(POLICIES, MAYBE_NAMES, PORTS, st.sampled_from(list(KINDS)), NAME_RULES | ADDRESS_RULES)
def test_one_more_rule_only_does_what_it_says(
    policy: NetworkPolicy, name: str | None, port: int, address: str, rule: str
) -> None:
    before = verdicts(policy, name, port, address)
    more = NetworkPolicy(
        policy.mode, [*policy.allow, rule], policy.deny, policy.allow_host, policy.allow_lan
    )
    for old, new in zip(before, verdicts(more, name, port, address), strict=True):
        assert new.allowed >= old.allowed, "an allowed thing more closes nothing"
    less = NetworkPolicy(
        policy.mode, policy.allow, [*policy.deny, rule], policy.allow_host, policy.allow_lan
    )
    for old, new in zip(before, verdicts(less, name, port, address), strict=True):
        assert new.allowed <= old.allowed, "a denied thing more opens nothing"


@given(POLICIES, MAYBE_NAMES, PORTS, st.sampled_from(list(KINDS)))
def test_deny_wins(policy: NetworkPolicy, name: str | None, port: int, address: str) -> None:
    denied = [*policy.deny, f"{address}:{port}", *([] if name is None else [name])]
    closed = NetworkPolicy(
        policy.mode,
        [*policy.allow, address],
        denied,
        policy.allow_host,
        policy.allow_lan,
    )
    found = verdicts(closed, name, port, address)
    if name is None:
        assert not found[1].allowed
    else:
        assert not any(decision.allowed for decision in found[:-1])


@given(POLICIES, MAYBE_NAMES, PORTS)
def test_what_always_stays_closed(policy: NetworkPolicy, name: str | None, port: int) -> None:
    for address in ("169.254.169.254", "127.0.0.1"):
        known = Rules.of(policy)
        if name != "host.hutch" or address != "127.0.0.1":
            kind = KINDS[address]
            assert not known.address(IPv4Address(address), kind, port, name).allowed
    off = NetworkPolicy(
        NetworkMode.NONE, policy.allow, policy.deny, policy.allow_host, policy.allow_lan
    )
    for address in KINDS:
        assert not any(decision.allowed for decision in verdicts(off, name, port, address))


@given(POLICIES, st.text(max_size=80), st.text(max_size=80) | st.none(), st.integers(0, 70000))
def test_whatever_a_guest_says_is_judged(
    policy: NetworkPolicy, name: str, spoken: str | None, port: int
) -> None:
    known = Rules.of(policy, internal=[name])
    for decision in (
        known.lookup(name),
        known.connect(name, port),
        known.server_name(name, spoken, port),
        known.server_name(None, spoken, port),
        known.host(name, spoken or "", port),
        known.host(None, spoken or "", port),
        known.address(IPv4Address("1.1.1.1"), AddressKind.PUBLIC, port, name),
    ):
        assert decision.allowed == (decision.reason is Reason.ALLOWED)
        assert decision.text
        assert decision.text.isascii()
        assert len(decision.text) < 900


def rules(allow: str, deny: str) -> Rules:
    return Rules.of(NetworkPolicy(NetworkMode.DENY, allow.split(), deny.split()))


def test_thousands_of_rules_are_as_quick_as_few() -> None:
    many = rules(
        " ".join(f"n{number}.example.com *.w{number}.example.com" for number in range(4000))
        + " ".join(f" 10.{n // 250}.{n % 250}.0/24:22" for n in range(1000)),
        " ".join(
            f"d{number}.example.com 11.{number // 250}.{number % 250}.1" for number in range(4000)
        ),
    )
    few = rules("n1.example.com *.w1.example.com 10.1.0.0/16:22", "d1.example.com 11.0.0.1")
    assert many.connect("n3999.example.com", 443).allowed
    assert many.connect("x.w3999.example.com", 443).allowed
    assert not many.connect("d3999.example.com", 443).allowed
    lan = AddressKind.LAN
    assert many.address(IPv4Address("10.3.249.7"), lan, 22).allowed
    for question in (("n1.example.com", 443), ("a.b.c.d.e.f.example.net", 443)):
        assert steps(many, question) <= steps(few, question) + 50


def steps(known: Rules, question: tuple[str, int]) -> int:
    """Count the lines that are run for an answer, which no load of the machine changes."""
    count = 0

    def trace(*_: object) -> object:
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        known.connect(*question)
    finally:
        sys.settrace(before)
    return count
