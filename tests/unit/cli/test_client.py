"""Paths of requests, and the client's errors."""

import pytest

from hutch.cli.app import App
from hutch.cli.client import sandbox_path
from hutch.errors import HutchError, InvalidInput
from tests.unit.cli.conftest import Cli


def test_names_stay_one_segment() -> None:
    assert sandbox_path("web", "stop") == "/v1/sandboxes/web/stop"
    assert sandbox_path("../daemon") == "/v1/sandboxes/..%2Fdaemon"
    assert sandbox_path("a?b#c d") == "/v1/sandboxes/a%3Fb%23c%20d"


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InvalidInput):
        sandbox_path(name)


def test_work_reports_steps_and_results(hutch: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUTCH_HOME", str(hutch.home))
    client = App().client
    steps: list[object] = []
    result = client.work("/v1/images/pull", {"reference": "app"}, steps.append)
    assert result["references"] == ["app"]
    assert steps
    with pytest.raises(HutchError) as caught:
        client.work("/v1/images/pull", {"reference": "nosuch"}, steps.append)
    assert caught.value.code == "image_not_found"
    assert client.call("GET", "/v1/daemon")["api"] == "v1"  # the connection goes on
    client.close()


def test_suggestion_only_where_one_is_close(hutch: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUTCH_HOME", str(hutch.home))
    app = App()
    for name, hint in (("bax", "did you mean box?"), ("utterly-else", "see `hutch ps -a`")):
        with pytest.raises(HutchError) as caught:
            app.client.call("GET", sandbox_path(name))
        assert (app.explain(caught.value).hint or "").startswith(hint)
    app.client.close()
