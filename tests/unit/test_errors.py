import re
from pathlib import Path

import pytest

from hutch import errors
from hutch.errors import CODES, HutchError, error, from_json


def test_an_error_knows_its_row_and_its_next_step() -> None:
    failure = error(
        "image_not_found", "no image nope", hint="pull it", details={"reference": "nope"}
    )
    assert type(failure) is errors.NotFound
    assert failure.status == 404
    assert failure.exit_code == 125
    assert str(failure) == "no image nope (hint: pull it)"
    assert str(error("in_use", "kernel k is used")) == "kernel k is used"


@pytest.mark.parametrize("code", CODES)
def test_json_brings_back_the_same_error(code: str) -> None:
    sent = error(code, "what failed", hint="do this", details={"argv": ["a", 1]})
    got = from_json(sent.to_json())
    assert type(got) is type(sent) is CODES[code].cls
    assert (got.code, got.message, got.hint, got.details, got.status) == (
        code,
        "what failed",
        "do this",
        {"argv": ["a", 1]},
        CODES[code].status,
    )


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"code": "from_the_future", "message": "later"},
        {"code": None, "message": None, "hint": None, "details": "not a map"},
    ],
)
def test_a_foreign_body_still_becomes_an_error(body: dict[str, object]) -> None:
    got = from_json(body)
    assert got.code == "internal"
    assert got.message
    assert got.details == {}


def test_an_unknown_code_keeps_its_text() -> None:
    assert from_json({"code": "from_the_future", "message": "later"}).message == "later"


def test_codes_are_never_made_up() -> None:
    with pytest.raises(KeyError):
        HutchError("no_such_code", "x")
    with pytest.raises(KeyError):
        error("no_such_code", "x")


def test_exit_codes_are_those_of_container_tools() -> None:
    assert error("command_not_found", "x").exit_code == 127
    assert error("command_not_executable", "x").exit_code == 126
    assert {row.cls.exit_code for row in CODES.values()} == {125, 126, 127}


def test_every_row_can_be_sent_over_http() -> None:
    for code, row in CODES.items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code)
        assert 400 <= row.status < 600
        assert row.meaning
        assert not row.meaning.endswith(".")


def test_every_class_stands_in_the_tree_of_the_docstring() -> None:
    tree = errors.__doc__ or ""
    for row in CODES.values():
        assert row.cls.__name__ in tree


def test_the_code_uses_only_codes_of_the_table() -> None:
    """`error("...")` with a misspelt code would fail only when that error happens."""
    source = Path(errors.__file__).parent
    used = {
        (path.name, code)
        for path in source.rglob("*.py")
        for code in re.findall(r'\berror\(\s*"([a-z_]+)"', path.read_text())
    }
    assert {(name, code) for name, code in used if code not in CODES} == set()
