"""The key of encrypted snapshots, from the environment or a file."""

import base64
from pathlib import Path

import pytest

from hutch.cli.keys import VARIABLE, key_headers
from hutch.errors import HutchError

NAME = VARIABLE.decode()


def carried(file: Path | None = None, *, needed: bool = False) -> bytes | None:
    headers = key_headers(None if file is None else str(file), needed=needed)
    text = headers.get("hutch-snapshot-key")
    return None if text is None else base64.b64decode(text)


def code(file: Path | None, *, needed: bool = False) -> str:
    with pytest.raises(HutchError) as caught:
        carried(file, needed=needed)
    return caught.value.code


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "a key of mine")
    assert carried() == b"a key of mine"
    monkeypatch.delenv(NAME)
    assert carried() is None
    assert code(None, needed=True) == "wrong_key"


def test_the_environments_need_not_be_of_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(NAME, "a key of mine")
    (file := tmp_path / "key").write_bytes(b"a key of mine")
    mark = "hutch-snapshot-key-optional"
    assert mark in key_headers(None)
    assert mark not in key_headers(None, needed=True)
    assert mark not in key_headers(str(file))


def test_a_file_goes_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(NAME, "a key of mine")
    file = tmp_path / "key"
    for content in (b"\xff other\n", b"\xff other\r\n", b"\xff other"):
        file.write_bytes(content)
        assert carried(file) == b"\xff other"
    file.write_bytes(b"two\n\n")
    assert carried(file) == b"two\n"


def test_a_file_without_a_key_is_refused(tmp_path: Path) -> None:
    assert code(tmp_path / "none") == "path_not_found"
    (tmp_path / "empty").write_bytes(b"\n")
    assert code(tmp_path / "empty") == "wrong_key"
