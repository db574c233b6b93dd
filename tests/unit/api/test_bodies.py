import pytest

from hutch.api.bodies import GuestPath, MoveBody, RunStart, validated
from hutch.errors import InvalidInput


def test_values_are_made() -> None:
    made = validated(RunStart, {"spec": {"image": "x"}, "size": {"rows": 1, "cols": 2}})
    assert made.spec.image == "x"
    assert made.size is not None
    assert made.size.cols == 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "first.spec"),
        ({"spec": {}}, "first.spec.image"),
        ({"spec": {"image": "x", "env": {"A": 1}}}, "first.spec.env.A"),
        ({"spec": {"image": "x"}, "size": {"rows": "x", "cols": 1}}, "first.size.rows"),
    ],
)
def test_the_field_is_named(body: object, field: str) -> None:
    with pytest.raises(InvalidInput, match=field) as caught:
        validated(RunStart, body, "first")
    assert caught.value.code == "bad_request"


def test_paths_may_be_no_utf8_but_hold_no_nul() -> None:
    odd = b"/a\xff".decode("utf-8", "surrogateescape")
    assert validated(MoveBody, {"source": odd, "target": "/b"}).source == odd
    for wrong in ("/a\0", 5, None):
        with pytest.raises(InvalidInput):
            validated(GuestPath, wrong)  # type: ignore[arg-type]
