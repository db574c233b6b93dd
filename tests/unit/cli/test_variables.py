"""Variables and labels."""

from pathlib import Path

import pytest

from hutch.cli.variables import collect_env, parse_labels
from hutch.errors import InvalidInput


def test_later_ones_win_and_files_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", "here")
    monkeypatch.delenv("NOT_SET", raising=False)
    file = tmp_path / "env"
    file.write_text("\ufeff# comment\n  A=1\n\nB=x=y \nMINE\nNOT_SET\n", encoding="utf-8")
    assert collect_env(["A=2", "C="], [str(file)]) == {
        "A": "2",
        "B": "x=y ",
        "MINE": "here",
        "C": "",
    }


@pytest.mark.parametrize("text", ["=x", "A B=1", "", "A=\0"])
def test_no_variable(text: str) -> None:
    with pytest.raises(InvalidInput):
        collect_env([text], [])


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        collect_env([], [str(tmp_path / "none")])
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match="UTF-8"):
        collect_env([], [str(tmp_path / "binary")])


def test_labels() -> None:
    assert parse_labels(["a=b=c", "d"]) == {"a": "b=c", "d": ""}
    with pytest.raises(InvalidInput):
        parse_labels(["=b"])
