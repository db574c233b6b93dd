"""Warnings about policies."""

import pytest

from hutch.network.cautions import CAUTIONS_MAX
from hutch.network.policy import Rules
from hutch.networking import NetworkMode, NetworkPolicy


def warnings(*allow: str, deny: tuple[str, ...] = ()) -> list[str]:
    return Rules.of(NetworkPolicy(NetworkMode.DENY, list(allow), list(deny))).warnings()


@pytest.mark.parametrize(
    ("rule", "part"),
    [
        ("*.com", "anybody can have a name below com"),
        ("*.co.uk", "anybody can have a name below co.uk"),
        ("*.github.io", "anybody can have a name below github.io"),
        ("d1.cloudfront.net", "serve others' sites"),
        ("*.eu-west-1.amazonaws.com", "serve others' sites"),
        ("example.com:443/tcp", "as they come"),
        ("10.0.0.1:*/tcp", "as they come"),
        ("0.0.0.0/0", "public addresses alone"),
        ("2000::/3", "public addresses alone"),
        ("169.254.169.254", "metadata service"),
        ("127.0.0.1", "`--allow-host PORT`"),
    ],
)
def test_of_one_rule(rule: str, part: str) -> None:
    (text,) = warnings(rule)
    assert text.startswith(rule)
    assert part in text


def test_what_is_usual_is_not_warned_of() -> None:
    assert warnings("example.com", "*.example.com:22", "example.com:22/tcp", "10.0.0.0/8") == []


@pytest.mark.parametrize(
    ("allow", "deny"),
    [
        ("a.example.com", "a.example.com"),
        ("a.example.com:22", "*.example.com"),
        ("*.example.com", "*.example.com"),
        ("*.a.example.com:*", "*.example.com"),
        ("10.0.0.1:22", "10.0.0.0/8"),
        ("10.0.0.1", "10.0.0.0/8"),
    ],
)
def test_what_is_denied_altogether(allow: str, deny: str) -> None:
    assert warnings(allow, deny=(deny,)) == [f"{allow} has no effect: {deny} denies it"]


@pytest.mark.parametrize(
    ("allow", "deny"),
    [
        ("a.example.com:*", "a.example.com:22"),
        ("a.example.com", "a.example.com:443"),
        ("*.example.com", "x.example.com"),
        ("*.example.com", "example.com"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.1", "10.0.0.1:22"),
    ],
)
def test_what_is_denied_in_part(allow: str, deny: str) -> None:
    assert warnings(allow, deny=(deny,)) == []


def test_mode_none() -> None:
    (text,) = Rules.of(NetworkPolicy(NetworkMode.NONE, allow_lan=True)).warnings()
    assert text.startswith("the mode is none")
    assert Rules.of(NetworkPolicy(NetworkMode.NONE)).warnings() == []


def test_there_is_an_end() -> None:
    many = warnings(*(f"n{number}.github.io" for number in range(500)))
    assert len(many) == CAUTIONS_MAX
    assert many[-1] == f"and {500 - CAUTIONS_MAX + 1} further warnings"
