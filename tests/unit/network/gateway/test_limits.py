import pytest

from hutch.errors import HutchError
from hutch.network.gateway.limits import DEFAULTS, Limits


def test_what_is_not_said_is_as_ever() -> None:
    assert Limits.of({}) == DEFAULTS
    assert Limits.of({"connections": 3, "hello_time": 2, "rate_up": 0}) == Limits(
        connections=3, hello_time=2
    )


@pytest.mark.parametrize(
    "values",
    [
        {"unknown": 1},
        {"farewell_time": 2.0},
        {"connections": 0},
        {"connections": True},
        {"connections": "3"},
        {"connections": 2.5},
        {"hello_time": 0},
        {"rate_down": -1},
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(HutchError) as caught:
        Limits.of(values)
    assert caught.value.code == "bad_setting"
