"""`hutch config`: what is in force, and writing the file without harm to the rest of it."""

import json
import tomllib
from pathlib import Path

import pytest

from hutch.cli.config import with_setting
from hutch.cli.main import execute
from hutch.settings import SETTINGS, load_settings


@pytest.fixture
def file(short_tmp: Path) -> Path:
    return short_tmp / "config.toml"


def test_show_names_every_setting_and_its_origin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUTCH_CPUS", "3")
    assert execute(["config", "--json", "show"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert list(body) == [row.key for row in SETTINGS]
    assert body["cpus"] == {"value": 3, "origin": "environment"}
    assert body["disk"]["origin"] == "default"
    assert execute(["--home", "/x", "config"]) == 0
    assert "flag" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("memory", "1g"), ("cpus", "4"), ("jail", "no"), ("registry_mirrors", "a=b,c=d"),
        ("stop-timeout", "2m"), ("qemu", 'with "quotes" \\ and é'),
    ],
)  # fmt: skip
def test_what_is_set_is_read_back(file: Path, key: str, value: str) -> None:
    file.write_text("# mine\nlog_level = 'debug'\nmemory = '2g' # old\n")
    assert execute(["config", "set", key, value]) == 0
    row = next(row for row in SETTINGS if row.key == key.replace("-", "_"))
    assert getattr(load_settings(), row.key) == row.parse(value)
    assert file.read_text().startswith("# mine\n")
    assert load_settings().log_level == "debug"


def test_get_and_path(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert execute(["config", "get", "jail"]) == 0
    assert execute(["config", "path"]) == 0
    assert capsys.readouterr().out == f"true\n{file}\n"


def test_mistakes_leave_the_file_alone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("cpus = 2\n")
    assert execute(["config", "set", "memory", "lots"]) == 125
    assert execute(["config", "set", "colour", "red"]) == 125
    assert file.read_text() == "cpus = 2\n"
    assert "memory: 'lots' is not a size (bad_setting)" in capsys.readouterr().err
    file.write_text("not toml [")
    assert execute(["config", "set", "cpus", "1"]) == 125
    assert file.read_text() == "not toml ["


def test_only_the_line_of_the_key_changes() -> None:
    text = with_setting("cpus=1\ncpus_of_others = 2\n", "cpus", "4")
    assert tomllib.loads(text) == {"cpus": 4, "cpus_of_others": 2}
