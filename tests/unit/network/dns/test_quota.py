"""What names may carry that no rule names."""

import pytest

from hutch.network.dns.quota import LEAST, Bucket, Quota, left_open
from hutch.networking import Reason
from tests.unit.network.dns.nameserver import Clock

WIDE = "*.wide.test:443/tcp"


def quota(clock: Clock, new_names: float = 2, questions: float = 3) -> Quota:
    return Quota(
        label_bytes=10, new_names=new_names, questions=questions, answer_bytes=100, clock=clock
    )


@pytest.mark.parametrize(
    ("rule", "name", "open_bytes"),
    [
        (None, "a.test", None),
        ("a.test", "a.test", None),
        ("a.test:443/tcp", "a.test", None),
        ("*.wide.test", "wide.test", None),
        ("*.wide.test", "a.wide.test", 1),
        (WIDE, "ab.c.wide.test", 4),
        ("a.test", "_http._tcp.a.test", 10),
        ("192.0.2.0/24", "a.test", None),
    ],
)
def test_what_a_rule_leaves_open(rule: str | None, name: str, open_bytes: int | None) -> None:
    assert left_open(rule, name) == open_bytes


def test_a_bucket_fills_again() -> None:
    clock = Clock()
    bucket = Bucket(0.5, 2, clock)
    assert [bucket.take(1) for _ in range(3)] == [True, True, False]
    clock.now += 2
    assert [bucket.take(1) for _ in range(2)] == [True, False]


def test_names_that_a_rule_names_have_no_limit() -> None:
    none = quota(Clock(), 0, 0)
    for rule in (None, "a-long-name.test"):
        assert none.beyond(rule, "a-long-name.test") is None
        assert none.ask(rule, "a-long-name.test") == 0.0
        assert none.answered(rule, "a-long-name.test", 1 << 20) is None


def test_new_names_and_their_length_are_limited() -> None:
    clock = Clock()
    some = quota(clock)
    reasons = [some.beyond(WIDE, f"{number}.wide.test") for number in range(3)]
    assert reasons[:2] == [None, None]
    assert reasons[2] is not None
    assert reasons[2].reason is Reason.LIMIT
    assert some.beyond(WIDE, "0.wide.test") is None, "it is not new"
    clock.now += 60
    assert some.beyond(WIDE, "x" * 11 + ".wide.test") is not None
    assert len(some) == 2


def test_questions_are_limited_for_known_names_too() -> None:
    clock = Clock()
    some = quota(clock)
    assert [some.ask(WIDE, "a.wide.test") for _ in range(4)] == [LEAST] * 3 + [None]
    clock.now += 20
    assert some.ask(WIDE, "a.wide.test") == LEAST
    assert some.ask(WIDE, "x" * 11 + ".wide.test") is None


def test_answers_are_limited() -> None:
    clock = Clock()
    some = quota(clock)
    assert some.answered(WIDE, "a.wide.test", 60) is None
    refused = some.answered(WIDE, "a.wide.test", 60)
    assert refused is not None
    assert (refused.reason, refused.rule) == (Reason.LIMIT, WIDE)
    clock.now += 12
    assert some.answered(WIDE, "a.wide.test", 60) is None
