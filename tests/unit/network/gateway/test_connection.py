from ipaddress import IPv4Address, ip_address

import pytest

from hutch.network.addresses import AddressKind
from hutch.network.gateway.connection import HOSTS_LIMIT, Connection, Phase, Place
from hutch.network.policy import Rules
from hutch.networking import NetworkMode, NetworkPolicy, Reason

SYNTHETIC = IPv4Address("198.18.1.7")
PUBLIC = (ip_address("192.0.2.1"), AddressKind.PUBLIC)


def rules(*allow: str, deny: tuple[str, ...] = (), **more: object) -> Rules:
    policy = NetworkPolicy(
        mode=NetworkMode.DENY,
        allow=list(allow),
        deny=list(deny),
        **more,  # type: ignore[arg-type]
    )
    return Rules.of(policy)


def named(port: int = 443) -> Connection:
    return Connection(1, SYNTHETIC, port, Place.NAME, "a.example")


def test_all_that_is_known_is_judged() -> None:
    connection = named()
    assert connection.verdict(rules("a.example")).allowed
    assert connection.verdict(rules("a.example:80")).reason is Reason.PORT_NOT_ALLOWED
    assert connection.verdict(rules()).reason is Reason.NOT_ALLOWED

    connection.candidates = (PUBLIC,)
    assert connection.verdict(rules("a.example")).allowed
    denied = rules("a.example", deny=("192.0.2.0/24",))
    assert connection.verdict(denied).reason is Reason.DENIED_BY_RULE

    connection.hello, connection.server_name = True, "b.example"
    assert connection.verdict(rules("a.example")).reason is Reason.SERVER_NAME_MISMATCH
    connection.server_name = "A.example"
    assert connection.verdict(rules("a.example")).allowed


def test_hosts_are_judged_and_bounded() -> None:
    connection = named(80)
    assert connection.add_host("a.example")
    assert connection.add_host("A.EXAMPLE.")
    assert connection.hosts == {"a.example"}
    assert connection.verdict(rules("a.example")).allowed
    assert connection.add_host("b.example")
    assert connection.verdict(rules("a.example")).reason is Reason.HOST_MISMATCH
    for number in range(HOSTS_LIMIT - 2):
        assert connection.add_host(f"n{number}.example")
    assert not connection.add_host("one-too-many.example")
    assert connection.add_host("b.example")


def test_what_was_not_looked_at_may_stay_so_only() -> None:
    connection = named()
    connection.raw = True
    assert connection.verdict(rules("a.example:443/tcp")).allowed
    assert connection.verdict(rules("a.example:443")).reason is Reason.POLICY_CHANGED


def test_other_places_have_rules_of_their_own() -> None:
    host = Connection(1, IPv4Address("198.18.0.3"), 3000, Place.HOST)
    assert host.verdict(rules(allow_host=[3000])).allowed
    assert not host.verdict(rules("a.example:3000")).allowed
    assert host.label == "host.hutch"
    nothing = Connection(1, SYNTHETIC, 80, Place.NOTHING)
    assert nothing.verdict(rules("0.0.0.0/0")).reason is Reason.ADDRESS_UNKNOWN
    resolver = Connection(1, IPv4Address("8.8.8.8"), 53, Place.RESOLVER)
    assert resolver.verdict(rules()).allowed
    assert resolver.verdict(None).reason is Reason.NETWORK_DOWN


def test_what_cannot_be_judged_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(Rules, "connect", fail)
    assert not named().verdict(rules("a.example")).allowed


def test_how_long_it_keeps_us_waiting() -> None:
    connection = named()
    assert not connection.overdue("head", True, 10.0, 5.0)
    assert not connection.overdue("head", True, 15.0, 5.0)
    assert connection.overdue("head", True, 15.5, 5.0)
    assert not connection.overdue("head", False, 16.0, 5.0)
    assert not connection.overdue("head", True, 100.0, 5.0)
    assert not connection.overdue("half", True, 100.0, 5.0, progress=7)
    assert not connection.overdue("half", True, 106.0, 5.0, progress=8)
    assert not connection.overdue("half", True, 111.0, 5.0, progress=8)
    assert connection.overdue("half", True, 112.0, 5.0, progress=8)


def test_what_is_told_of_it() -> None:
    connection = named()
    connection.phase = Phase.CONNECTING
    view = connection.view()
    assert (view.name, view.address, view.port) == ("a.example", "198.18.1.7", 443)
    assert (view.state, view.sent, view.received) == ("connecting", 0, 0)
    assert view.opened_at.endswith("Z")
    assert connection.told_address is None  # the guest's address for it tells people nothing
    connection.candidates = (PUBLIC,)
    assert connection.view().address == connection.told_address == "192.0.2.1"
