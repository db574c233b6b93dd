"""The table of a sandbox's names: nothing that a guest was told ever becomes untrue."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hutch.errors import HutchError
from hutch.network.synthetic import NameTable, TableFull
from hutch.networking import GATEWAY_ADDRESS, GUEST_ADDRESS, HOST_ADDRESS, SYNTHETIC_RANGE

RANGE = IPv4Network(SYNTHETIC_RANGE)
OURS = {GATEWAY_ADDRESS, GUEST_ADDRESS, HOST_ADDRESS}


@contextmanager
def table(path: Path, limit: int = 4096, network: str = SYNTHETIC_RANGE) -> Iterator[NameTable]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield NameTable(descriptor, limit=limit, network=network)
    finally:
        os.close(descriptor)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "names"


def test_a_name_has_one_address_and_an_address_one_name(path: Path) -> None:
    with table(path) as names:
        told = {f"n{number}.test": names.address_of(f"n{number}.test") for number in range(500)}
        assert len(set(told.values())) == len(names) == 500
        for name, address in told.items():
            assert names.address_of(name) == address
            assert names.name_of(address) == name
            assert name in names
            assert address in RANGE
            assert address >= IPv4Address("198.18.1.0")
            assert int(address) % 256 not in (0, 255)
        assert "other.test" not in names
        assert names.name_of(IPv4Address(HOST_ADDRESS)) is None
    with table(path) as again:
        assert {name: again.address_of(name) for name in told} == told


def test_an_address_is_in_the_file_before_it_is_told(path: Path) -> None:
    with table(path) as names:
        address = names.address_of("web.test")
        assert path.read_text().splitlines()[1:] == [f"{address} web.test"]


def test_the_order_tells_nothing(path: Path, tmp_path: Path) -> None:
    wanted = [f"n{number}.test" for number in range(200)]
    with table(path) as one, table(tmp_path / "other") as other:
        first = [int(one.address_of(name)) for name in wanted]
        second = [int(other.address_of(name)) for name in wanted]
    assert first != sorted(first)
    near = sum(abs(here - there) < 256 for here, there in pairwise(first))
    assert near < 20
    assert sum(here == there for here, there in zip(first, second, strict=True)) < 5


def test_a_copy_goes_on_and_reassigns_nothing(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with table(path) as source:
        told = {name: source.address_of(name) for name in ("a.test", "b.test")}
        copy.write_bytes(path.read_bytes())
        with table(copy) as fork:
            children = {name: fork.address_of(name) for name in ("c.test", "d.test", "a.test")}
            assert children["a.test"] == told["a.test"]
            assert fork.name_of(told["b.test"]) == "b.test"
            assert source.name_of(children["c.test"]) is None, "nothing comes back"
            mine = source.address_of("e.test")
            assert mine not in told.values()
        with table(copy) as again:
            assert {name: again.address_of(name) for name in children} == children


def test_only_so_many_names(path: Path) -> None:
    with table(path, limit=3) as names:
        told = [names.address_of(f"{number}.test") for number in range(3)]
        before = path.read_bytes()
        with pytest.raises(TableFull):
            names.address_of("3.test")
        assert names.address_of("1.test") == told[1]
        assert path.read_bytes() == before


def test_a_crowded_range(path: Path) -> None:
    with table(path, limit=300, network="198.18.0.0/23") as names:
        told = {names.address_of(f"{number}.test") for number in range(200)}
        assert len(told) == 200
        assert all(IPv4Address("198.18.1.0") < one < IPv4Address("198.18.1.255") for one in told)


def test_the_range_of_a_table_stays(path: Path) -> None:
    with table(path, network="10.99.0.0/16") as names:
        address = names.address_of("web.test")
    with table(path) as names:
        assert names.address_of("web.test") == address
        assert names.address_of("new.test") in names.network == IPv4Network("10.99.0.0/16")


@pytest.mark.parametrize("name", ["", "a b.test", "a\nb.test", "é.test", "a" * 254, "a\x7fb"])
def test_what_cannot_stand_in_a_line_is_no_name(path: Path, name: str) -> None:
    with table(path) as names:
        with pytest.raises(ValueError, match="normal form"):
            names.address_of(name)


@pytest.mark.parametrize(
    "text",
    [
        "something else\n",
        "hutch-names 2 198.18.0.0/15 00112233445566778899aabbccddeeff\n",
        "hutch-names 1 198.18.0.0/15 00\n",
        "hutch-names 1 198.18.0.0/15 x0112233445566778899aabbccddeeff\n",
        "hutch-names 1 example 00112233445566778899aabbccddeeff\n",
        "\n",
        "\xff\n",
    ],
)
def test_what_is_no_table_is_left_alone(path: Path, text: str) -> None:
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(HutchError, match="broken"), table(path):
        pass
    assert path.read_bytes() == text.encode("latin-1")


def test_a_huge_file_is_not_read(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(HutchError, match="larger"), table(path):
        pass


def whole(path: Path, count: int) -> bytes:
    with table(path) as names:
        for number in range(count):
            names.address_of(f"n{number}.test")
    return path.read_bytes()


@given(cut=st.integers(0, 400))
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_what_a_crash_left_of_a_line_is_dropped(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "names"
    data = whole(path, 8)[:cut]
    path.write_bytes(data)
    lines = data.split(b"\n")[1:-1]  # without the first, and without what follows the last newline
    with table(path) as names:
        assert len(names) == len(lines)
        for line in lines:
            address, name = line.decode().split(" ")
            assert names.name_of(IPv4Address(address)) == name
        names.address_of("new.test")
    with table(path) as again:
        assert len(again) == len(lines) + 1
        assert "new.test" in again


@pytest.mark.parametrize(
    "line",
    [b"\0" * 24 + b"\n", b"198.18.3.4\n", b"203.0.113.1 a.test\n", b"x a.test\n", b"198.18.3.4 \n"],
)
def test_from_a_broken_line_on_nothing_counts(path: Path, line: bytes) -> None:
    data = whole(path, 2)
    path.write_bytes(data + line + b"198.18.3.9 later.test\n")
    with table(path) as names:
        assert len(names) == 2
    assert path.read_bytes() == data


def test_an_address_is_never_two_names_whatever_the_file_says(path: Path) -> None:
    data = whole(path, 1)
    path.write_bytes(data + data.splitlines(keepends=True)[1].replace(b"n0", b"n1"))
    with table(path) as names:
        assert len(names) == 1
    path.write_bytes(data + b"198.18.3.4 n0.test\n")
    with table(path) as names:
        assert len(names) == 1


def test_what_cannot_be_written_is_not_told(path: Path) -> None:
    data = whole(path, 1)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        names = NameTable(descriptor)
        with pytest.raises(OSError, match=r"Bad file|Invalid argument"):
            names.address_of("new.test")
        assert "new.test" not in names
        assert len(names) == 1
    finally:
        os.close(descriptor)
    assert path.read_bytes() == data


def test_half_a_write_is_taken_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with table(path) as names:
        names.address_of("one.test")
        data = path.read_bytes()
        write = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda to, what, at: write(to, what[:5], at))
        with pytest.raises(OSError, match="5 of"):
            names.address_of("two.test")
        assert path.read_bytes() == data
        monkeypatch.setattr(os, "pwrite", write)
        address = names.address_of("two.test")
    with table(path) as again:
        assert again.name_of(address) == "two.test"


def test_nothing_of_ours_is_ever_given_out(path: Path) -> None:
    with table(path) as names:
        assert OURS.isdisjoint(str(names.address_of(f"{number}.test")) for number in range(300))
