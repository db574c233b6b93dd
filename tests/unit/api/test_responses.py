import json

import pytest

from hutch.api.responses import answer, encode, error_body
from hutch.errors import error
from hutch.models import SandboxState


def test_names_that_are_no_utf8_survive() -> None:
    odd = b"\xff".decode("utf-8", "surrogateescape")
    assert json.loads(encode({"name": odd}))["name"] == odd


def test_values_become_json() -> None:
    response = answer([SandboxState.RUNNING], 201, {"x": "y"})
    assert (response.status_code, response.body) == (201, b'["running"]')
    assert response.headers["x"] == "y"


def test_a_bug_is_logged_and_told(caplog: pytest.LogCaptureFixture) -> None:
    body = error_body(ZeroDivisionError("a bug"))["error"]
    assert body["code"] == "internal"
    assert "a bug" in body["message"]
    assert caplog.records[0].exc_info


def test_an_error_is_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    assert error_body(error("bad_name", "no"))["error"]["code"] == "bad_name"
    assert not caplog.records
