import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from hutch.service.durable import sync, write_json


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were synced, in their order."""
    found: list[str] = []
    really = os.fsync

    def note(fd: int) -> None:
        found.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        really(fd)

    monkeypatch.setattr(os, "fsync", note)
    return found


def test_a_file_takes_the_place_of_another(tmp_path: Path, synced: list[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")
    write_json(path, {"a": [1]})
    assert json.loads(path.read_text()) == {"a": [1]}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]
    assert synced == ["a.json.part", tmp_path.name]


def test_what_need_not_last_is_not_waited_for(tmp_path: Path, synced: list[str]) -> None:
    write_json(tmp_path / "a.json", {}, lasting=False)
    assert synced == []
    sync(tmp_path / "a.json")
    assert synced == ["a.json"]


def test_what_cannot_be_written_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")

    def full(fd: int) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        write_json(path, {})
    assert path.read_text() == "before"


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "a.json.part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        write_json(tmp_path / "a.json", {})
    assert not (tmp_path / "elsewhere").exists()
