"""The ranges of a download; downloads themselves are in test_registry."""

from hypothesis import given
from hypothesis import strategies as st

from hutch.images.download import Ranges


def test_pieces_of_what_is_missing() -> None:
    ranges = Ranges(100)
    assert ranges.missing(40) == [(0, 40), (40, 80), (80, 100)]
    ranges.add(10, 20)
    ranges.add(90, 100)
    assert ranges.missing(40) == [(0, 10), (20, 60), (60, 90)]
    assert Ranges(0).missing(40) == []


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60))), st.integers(1, 70))
def test_done_and_missing_make_the_whole(intervals: list[tuple[int, int]], step: int) -> None:
    ranges = Ranges(60)
    covered: set[int] = set()
    for low, high in intervals:
        ranges.add(low, max(low, high))
        covered.update(range(low, high))
    assert ranges.total == len(covered)
    missing = ranges.missing(step)
    assert all(0 < high - low <= step for low, high in missing)
    left = [n for low, high in missing for n in range(low, high)]
    assert sorted(left) == sorted(set(range(60)) - covered)
