import itertools
import os
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from hutch.network.addresses import Address, AddressKind
from hutch.network.dns.client import Resolver
from hutch.network.gateway.inforce import InForce
from hutch.network.gateway.limits import Limits
from hutch.network.gateway.records import Records
from hutch.network.policy import Rules
from hutch.network.synthetic import NameTable
from hutch.networking import Decision, NetworkLayer, NetworkMode, NetworkPolicy, Reason
from tests.unit.network.gateway.world import Kinds

LAN, OUTSIDE = ip_address("10.1.2.3"), ip_address("127.0.0.1")


@pytest.fixture
def table(tmp_path: Path) -> Iterator[NameTable]:
    fd = os.open(tmp_path / "names", os.O_RDWR | os.O_CREAT)
    yield NameTable(fd)
    os.close(fd)


@pytest.fixture
async def in_force() -> InForce:
    return InForce(
        records=Records("sb_1", lambda *_: None, sequence=itertools.count(1)),
        resolver=Resolver([]),
        routes=Kinds(),
        limits=Limits(rate_up=1000),
    )


def put(in_force: InForce, table: NameTable, policy: NetworkPolicy) -> None:
    in_force.put(policy, Rules.of(policy), table)


async def test_without_a_policy_all_is_denied(in_force: InForce, table: NameTable) -> None:
    assert in_force.lookup("a.example").reason is Reason.NETWORK_DOWN
    assert not in_force.permitted("a.example", [OUTSIDE]).allowed
    assert not in_force.opens_host()
    put(in_force, table, NetworkPolicy())
    assert in_force.lookup("a.example").allowed
    assert in_force.names is table
    in_force.withdraw()
    assert not in_force.lookup("a.example").allowed
    assert in_force.names is None
    assert in_force.generation == 2


async def test_a_name_needs_one_address_that_is_permitted(
    in_force: InForce, table: NameTable
) -> None:
    put(in_force, table, NetworkPolicy())
    assert in_force.permitted("a.example", [LAN, OUTSIDE]).allowed
    assert in_force.permitted("a.example", [LAN]).reason is Reason.ADDRESS_LAN
    assert not in_force.permitted("a.example", []).allowed


async def test_any_port_will_do(in_force: InForce, table: NameTable) -> None:
    put(in_force, table, NetworkPolicy(mode=NetworkMode.DENY, allow=["a.example:2222"]))
    assert in_force.permitted("a.example", [OUTSIDE]).allowed
    policy = NetworkPolicy(mode=NetworkMode.DENY, allow=["a.example:22", "10.1.2.3:22/tcp"])
    put(in_force, table, policy)
    assert in_force.permitted("a.example", [LAN]).allowed


async def test_only_ports_of_rules_for_it_are_tried(
    in_force: InForce, table: NameTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [f"n{number}.example:{number}" for number in range(1, 5000)]
    own = ["a.example:22", "*.example:23/tcp", "10.1.2.0/24:24", "8.8.8.8:25"]
    put(in_force, table, NetworkPolicy(mode=NetworkMode.DENY, allow=[*others, *own]))
    tried: list[int] = []
    judge = Rules.address

    def count(rules: Rules, address: Address, kind: AddressKind, port: int, name: str) -> Decision:
        tried.append(port)
        return judge(rules, address, kind, port, name)

    monkeypatch.setattr(Rules, "address", count)
    assert not in_force.permitted("a.example", [ip_address("10.9.9.9")]).allowed
    assert tried == [443, 80, 22, 23]
    tried.clear()
    assert in_force.permitted("b.example", [OUTSIDE]).allowed
    assert tried == [443, 80, 23]
    tried.clear()
    assert not in_force.permitted("c.test", [LAN]).allowed
    assert tried == [443, 80, 24]
    assert not in_force.permitted("no name", [OUTSIDE]).allowed


async def test_raw_addresses_need_a_rule_of_addresses(in_force: InForce, table: NameTable) -> None:
    allow = ["a.example", "*.arpa", "10.1.2.0/24:22"]
    put(in_force, table, NetworkPolicy(mode=NetworkMode.DENY, allow=allow))
    assert in_force.permitted(None, [LAN]).allowed
    assert not in_force.permitted(None, [OUTSIDE]).allowed
    assert not in_force.permitted(None, [ip_address("10.1.3.1")]).allowed
    put(in_force, table, NetworkPolicy())
    assert in_force.permitted(None, [OUTSIDE]).allowed
    assert in_force.permitted(None, [LAN]).reason is Reason.ADDRESS_LAN


async def test_the_host_is_open_by_its_own_list(in_force: InForce, table: NameTable) -> None:
    put(in_force, table, NetworkPolicy())
    assert not in_force.opens_host()
    put(in_force, table, NetworkPolicy(allow_host=[80]))
    assert in_force.opens_host()
    put(in_force, table, NetworkPolicy(mode=NetworkMode.NONE, allow_host=[80]))
    assert not in_force.opens_host()


async def test_what_fails_is_a_denial(
    in_force: InForce, table: NameTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    put(in_force, table, NetworkPolicy())
    monkeypatch.setattr(Rules, "lookup", fail)
    monkeypatch.setattr(Kinds, "kind", fail)
    assert not in_force.lookup("a.example").allowed
    assert not in_force.permitted("a.example", [OUTSIDE]).allowed


async def test_look_ups_are_recorded_and_rates_shared(in_force: InForce) -> None:
    in_force.looked_up(Decision(True, Reason.ALLOWED), name="a.example", detail="A")
    ((_, record),) = in_force.records.since(0)
    assert (record.layer, record.name, record.detail) == (NetworkLayer.DNS, "a.example", "A")
    assert in_force.up is not None
    assert in_force.down is None
