import re
from pathlib import Path

import pytest

from hutch.errors import CODES, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND
from hutch.guest import failures
from hutch.guest.messages import GuestProtocolError

SPEC = Path(__file__).resolve().parents[3] / "spec/guest-protocol.md"


def guest_codes() -> list[str]:
    section = SPEC.read_text().split("## 4. Errors")[1].split("## 5.")[0]
    return [code for code in re.findall(r"`([a-z_]+)`", section) if code not in ("code", "errno")]


@pytest.mark.parametrize("code", guest_codes())
def test_every_code_of_the_protocol_has_a_meaning(code: str) -> None:
    failure = failures.from_guest("fs.stat", "/x", {"code": code, "message": "m", "errno": None})
    assert failure.code in CODES
    assert code in failures._BY_CODE
    assert failure.details["guest_code"] == code
    assert "/x: m" in str(failure)


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        ("fs.read", "path_not_found"),
        ("exec.start", "command_not_found"),
        ("exec.attach", "exec_not_found"),
        ("exec.release", "exec_not_found"),
        ("tunnel", "guest_refused"),
    ],
)
def test_what_was_not_found_depends_on_the_operation(operation: str, code: str) -> None:
    assert failures.from_guest(operation, "x", {"code": "not_found"}).code == code


def test_exit_codes_of_programs_that_cannot_start() -> None:
    for guest_code, code in (
        ("not_found", EXIT_NOT_FOUND),
        ("not_executable", EXIT_NOT_EXECUTABLE),
    ):
        assert failures.from_guest("exec.start", "x", {"code": guest_code}).exit_code == code


def test_the_words_of_a_guest_harm_no_terminal() -> None:
    words = "\x1b[2J\r\n\x07" + "x" * 10_000
    failure = failures.from_guest("fs.stat", "/x", {"code": "io", "message": words})
    assert failure.message.isprintable()
    assert len(failure.message) < 400


def test_an_unknown_code_is_a_failure_of_the_guest() -> None:
    failure = failures.from_guest("fs.stat", "/x", {"code": "\x1bnew", "message": ""})
    assert failure.code == "guest_failed"
    assert str(failure.details["guest_code"]).isprintable()


@pytest.mark.parametrize("message", [{}, {"code": 1}, {"code": "io", "errno": -1}])
def test_a_malformed_error_is_a_violation(message: dict[str, object]) -> None:
    with pytest.raises(GuestProtocolError):
        failures.from_guest("fs.stat", "/x", message)
