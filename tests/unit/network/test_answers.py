"""What a guest is told over HTTP about what it may not."""

import json

import pytest

from hutch.network.answers import refusal, status_of, wants_json
from hutch.networking import Decision, Reason

DENIED = Decision(
    False, Reason.DENIED_BY_RULE, "*.example.com", "www.example.com is denied.", "Remove the rule."
)


def parts(answer: bytes) -> tuple[str, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("ascii").split("\r\n")
    fields = [line.split(": ", 1) for line in lines]
    return first, {name.lower(): value for name, value in fields}, body


def test_a_person_reads_why_by_which_rule_and_what_to_do() -> None:
    first, fields, body = parts(refusal(403, DENIED, as_json=False, bodiless=False))
    assert first == "HTTP/1.1 403 Forbidden"
    assert fields["content-type"] == "text/plain; charset=utf-8"
    assert fields["connection"] == "close"
    assert fields["content-length"] == str(len(body))
    assert fields["proxy-status"] == ('hutch; error=http_request_denied; details="denied_by_rule"')
    assert body.decode() == (
        "Hutch refused this request: www.example.com is denied.\n"
        "Rule: *.example.com\n"
        "What to do: Remove the rule.\n"
        "Reason: denied_by_rule\n"
    )


def test_a_program_reads_the_same() -> None:
    _, fields, body = parts(refusal(403, DENIED, as_json=True, bodiless=False))
    assert fields["content-type"] == "application/json"
    assert json.loads(body) == {
        "error": {
            "code": "denied_by_rule",
            "message": "www.example.com is denied.",
            "rule": "*.example.com",
            "hint": "Remove the rule.",
        }
    }


def test_an_answer_to_head_has_no_body() -> None:
    _, fields, body = parts(refusal(403, DENIED, as_json=False, bodiless=True))
    assert body == b""
    assert int(fields["content-length"]) > 0


def test_what_was_said_of_a_rule_does_not_get_into_the_head() -> None:
    evil = Decision(False, Reason.NOT_ALLOWED, "a\r\nX: y", "b\r\n\r\n\udcff", "c")
    for as_json in (True, False):
        _, fields, body = parts(refusal(403, evil, as_json=as_json, bodiless=False))
        assert "x" not in fields
        assert fields["content-length"] == str(len(body))


@pytest.mark.parametrize("reason", Reason)
def test_each_reason_has_a_status(reason: Reason) -> None:
    status = status_of(reason)
    assert 400 <= status < 600
    answer = refusal(status, Decision(False, reason), as_json=False, bodiless=False)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"Refused" not in answer.partition(b"\r\n")[0]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", True),
        ("application/json;q=0.9, text/plain", True),
        ("text/html,application/json", False),
        ("application/vnd.github+json", True),
        ("image/png, application/problem+json", True),
    ],
)
def test_json_for_those_who_ask_for_it(accept: str, expected: bool) -> None:
    assert wants_json(accept) == expected
