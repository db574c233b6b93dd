"""How failures are printed."""

import json

import pytest

from hutch.cli.failures import report_failure, warn
from hutch.errors import error


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    failure = error("bad_image", "layer \x1b[2J is\nbroken", hint="pull it again\n")
    assert report_failure(failure, json_output=False) == 125
    assert capsys.readouterr() == (
        "",
        "hutch: layer \\x1b[2J is\n  broken (bad_image)\nhint: pull it again\n",
    )


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    failure = error("command_not_found", "no ls", details={"argv": ["ls"]})
    assert report_failure(failure, json_output=True) == 127
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": failure.to_json()}
    assert err == ""


def test_warning(capsys: pytest.CaptureFixture[str]) -> None:
    warn("\x07 beeps")
    assert capsys.readouterr().err == "hutch: \\x07 beeps\n"
