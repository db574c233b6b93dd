"""Words for sizes and times, and tables."""

import pytest

from hutch.cli import render
from hutch.models import timestamp


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"),
        (512 << 20, "512 MiB"), (10 << 30, "10 GiB"), (3 << 40, "3 TiB"), (5000 << 40, "5000 TiB"),
    ],
)  # fmt: skip
def test_size(count: int | None, text: str) -> None:
    assert render.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (59.9, "59s"), (3600, "1h"), (90061, "1d 1h"), (3661, "1h 1m")],
)
def test_duration(seconds: float, text: str) -> None:
    assert render.duration(seconds) == text


def test_age() -> None:
    assert render.age(None) == "-"
    assert render.age(timestamp()) == "0s"


def test_table_is_plain_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    render.table(["A", "LONGER"], [("xxx", "y\x1b"), ("z", "")], flexible=1)
    assert capsys.readouterr().out == "A    LONGER\nxxx  y\\x1b\nz\n"


def test_table_fits_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "no_color", lambda: False)
    monkeypatch.setenv("COLUMNS", "40")
    render.table(["STATE", "TEXT"], [("running", "w" * 80)], flexible=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("\x1b[32mrunning\x1b[0m  www")
    assert lines[1].endswith("…")


def test_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    render.pairs([("a", "1"), ("bcd", "2\x07")])
    assert capsys.readouterr().out == "a:    1\nbcd:  2\\x07\n"


def test_json_is_pure_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_json({"a": "\x9b\udcff"})
    assert capsys.readouterr().out.isascii()
