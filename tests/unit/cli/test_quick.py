"""The quick way to a running daemon agrees with the thorough one."""

import json
import os
from pathlib import Path

import pytest

from hutch.api import runtime
from hutch.cli import quick
from hutch.sdk.start import find_daemon
from hutch.settings import default_home, load_settings
from tests.unit.cli.conftest import Cli


def test_finds_what_the_thorough_way_finds(own_hutch: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert quick.running_daemon(str(own_hutch.home)) is None
    own_hutch("ps")
    found = quick.running_daemon(str(own_hutch.home))
    assert found is not None
    found.close()
    monkeypatch.setenv("HUTCH_HOME", str(own_hutch.home))
    assert find_daemon(load_settings()) is not None
    found = quick.running_daemon(None)
    assert found is not None
    found.close()


def test_names_agree() -> None:
    assert quick.LOCK_NAME == runtime.LOCK_NAME


def test_default_home_agrees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for user in (0, 1000):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        assert quick._default_home() == str(default_home())
        monkeypatch.delenv("XDG_DATA_HOME")
        assert quick._default_home() == str(default_home())


def test_a_configuration_file_is_for_the_thorough_way(
    monkeypatch: pytest.MonkeyPatch, short_tmp: Path
) -> None:
    monkeypatch.delenv("HUTCH_HOME")
    (short_tmp / "config.toml").write_text("home = '/elsewhere'\n")
    assert quick._default_home() is None
    assert quick.running_daemon(None) is None


@pytest.mark.parametrize(
    "record", [b"", b"{", b"[]", b'{"version": "0.0.0", "socket": "/x"}', b'{"socket": 3}']
)
def test_records_that_do_not_help(short_tmp: Path, record: bytes) -> None:
    (short_tmp / quick.LOCK_NAME).write_bytes(record)
    assert quick.running_daemon(str(short_tmp)) is None


def test_a_stale_record(short_tmp: Path) -> None:
    body = {"pid": 1, "version": quick.__version__, "socket": str(short_tmp / "none.sock")}
    (short_tmp / quick.LOCK_NAME).write_text(json.dumps(body))
    assert quick.running_daemon(str(short_tmp)) is None
