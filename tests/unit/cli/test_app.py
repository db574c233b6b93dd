"""What a command finds in its context."""

from pathlib import Path

import pytest

from hutch.cli.app import App
from hutch.errors import error


def test_flags_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUTCH_CPUS", "2")
    app = App()
    app.flags["home"] = "/elsewhere"
    assert app.parsed_flags() == {"home": Path("/elsewhere")}
    assert (app.settings.home, app.settings.cpus) == (Path("/elsewhere"), 2)
    assert app.settings is app.settings


def test_failures_without_a_client_stay_as_they_are() -> None:
    failure = error("sandbox_not_found", "no sandbox x")
    assert App().explain(failure) is failure
