"""How a snapshot is found: by id, name and the beginning of an id, while it is there for good."""

import pytest

from hutch.errors import HutchError
from hutch.service.registry import Registry
from hutch.service.shelf import Shelf
from hutch.state.base import LayerRow, SnapshotRow
from tests.unit.snapshots import snapshot


def row(
    snapshot_id: str, name: str, *, ready: bool = True, checkpoint: bool = False
) -> SnapshotRow:
    info = snapshot(snapshot_id, name, checkpoint=checkpoint)
    return SnapshotRow(info, ready, f"ly_{snapshot_id}")


@pytest.fixture
def shelf() -> Shelf:
    made = Shelf(Registry())
    rows = [
        row("sn_aaaa1", "one"),
        row("sn_aaab2", "two", checkpoint=True),
        row("sn_cccc3", "three", ready=False),
    ]
    made.update({each.info.id: each for each in rows})
    return made


@pytest.mark.parametrize("ref", ["one", "sn_aaaa1", "aaaa", "sn_aaaa"])
def test_what_names_one(shelf: Shelf, ref: str) -> None:
    assert shelf.find(ref).info.id == "sn_aaaa1"


@pytest.mark.parametrize("ref", ["three", "sn_cccc3", "aaa", "sn_aaa", "sn_", "", "four"])
def test_what_names_none(shelf: Shelf, ref: str) -> None:
    with pytest.raises(HutchError) as caught:
        shelf.find(ref)
    assert caught.value.code == "snapshot_not_found"


def test_what_is_being_removed_is_not_found(shelf: Shelf) -> None:
    shelf.leaving.add("sn_aaaa1")
    with pytest.raises(HutchError):
        shelf.find("one")
    shelf.leaving.add("sn_aaab2")
    assert shelf.checkpoints() == []


def test_those_of_a_sandbox_that_may_be_gone(shelf: Shelf) -> None:
    for ref in ("web", "sb_1", None):
        assert [each.info.name for each in shelf.of(ref)] == ["one", "two"]
    assert shelf.of("other") == []
    assert [each.name for each in shelf.checkpoints("sb_1")] == ["two"]
    assert shelf.checkpoints("sb_2") == []


def test_the_nearest_in_a_chain(shelf: Shelf) -> None:
    def layer(layer_id: str) -> LayerRow:
        return LayerRow(layer_id, None, None, "")

    top, two, one = layer("ly_9"), layer("ly_sn_aaab2"), layer("ly_sn_aaaa1")
    assert shelf.nearest([top, two, one]) == "sn_aaab2"
    assert shelf.nearest([top, layer("ly_sn_cccc3"), one]) == "sn_aaaa1"
    assert shelf.nearest([top]) is None
