"""What a manifest checks: digests of sparse files, and hosts that fit."""

import os
from pathlib import Path

import pytest

from hutch.engine.base import Frozen
from hutch.errors import HutchError
from hutch.service import manifest
from hutch.service.manifest import digest_of, digests_of, read_manifest

MIB = 1 << 20


def sparse(path: Path, size: int, **pieces: bytes) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces.items():
            os.pwrite(file.fileno(), data, int(offset.removeprefix("at")))
    return path


def test_the_digest_is_of_the_contents_not_of_their_holes(tmp_path: Path) -> None:
    one = sparse(tmp_path / "one", 20 * MIB, at0=b"a", at9000000=b"b")
    two = tmp_path / "two"
    two.write_bytes(one.read_bytes())
    assert two.stat().st_blocks > one.stat().st_blocks
    assert digest_of(one) == digest_of(two)


@pytest.mark.parametrize(
    "change",
    [
        lambda fd: os.pwrite(fd, b"\1", 5_000_000),
        lambda fd: os.pwrite(fd, b"c", 9_000_000),
        lambda fd: os.pwrite(fd, b"\0", 0),
        lambda fd: os.ftruncate(fd, 20 * MIB - 1),
        lambda fd: os.ftruncate(fd, 20 * MIB + 1),
    ],
)
def test_every_change_changes_it(tmp_path: Path, change: object) -> None:
    path = sparse(tmp_path / "file", 20 * MIB, at0=b"a", at9000000=b"b")
    before = digest_of(path)
    fd = os.open(path, os.O_RDWR)
    change(fd)  # type: ignore[operator]
    os.close(fd)
    assert digest_of(path) != before


def test_what_moves_changes_it(tmp_path: Path) -> None:
    one = sparse(tmp_path / "one", 20 * MIB, at0=b"a")
    two = sparse(tmp_path / "two", 20 * MIB, at8388608=b"a")
    assert digest_of(one) != digest_of(two)
    assert digest_of(sparse(tmp_path / "empty", 0)) != digest_of(sparse(tmp_path / "hole", MIB))


def test_what_is_over_others_is_named_by_its_state(tmp_path: Path) -> None:
    frozen = Frozen(tmp_path, MIB)
    frozen.state.write_bytes(b"state")
    sparse(frozen.image, MIB)
    assert digests_of(frozen).keys() == {"state", "memory"}
    sparse(frozen.over(1), MIB)
    assert digests_of(frozen).keys() == {"state"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 3}', '{"format": 3, "info": 3}'])
def test_what_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / manifest.MANIFEST).write_text(text)
    with pytest.raises(HutchError) as caught:
        read_manifest(tmp_path, "name")
    assert caught.value.code == "snapshot_damaged"


@pytest.mark.parametrize(
    ("then", "now", "same"),
    [
        (None, None, True),
        (1000, None, False),
        (2_100_000, 2_100_900, True),
        (2_100_000, 2_110_000, False),
    ],
)
def test_clock_rates_are_measured(then: int | None, now: int | None, same: bool) -> None:
    assert manifest._same_rate(then, now) is same
