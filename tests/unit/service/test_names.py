"""Names: what users may choose, and what is chosen for them."""

import pytest

from hutch.errors import HutchError
from hutch.models import NAME_PATTERN
from hutch.service import names


class Everything:
    """A container that holds all names of two words."""

    def __contains__(self, name: object) -> bool:
        return str(name).count("-") == 1


def test_friendly_names_are_names() -> None:
    for _ in range(100):
        assert NAME_PATTERN.fullmatch(names.check_name(names.friendly_name(set())))


def test_a_third_part_when_all_are_taken() -> None:
    assert names.friendly_name(Everything()).count("-") == 2


def test_ids_are_fresh() -> None:
    ids = {names.new_id("sb_") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(made) == 15 for made in ids)


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "x" * 64, "sb_a", "ü", "..", "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(HutchError) as caught:
        names.check_name(name)
    assert caught.value.code == "bad_name"
