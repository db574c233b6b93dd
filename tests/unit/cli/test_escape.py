"""Text that comes from elsewhere, on a terminal."""

import pytest

from hutch.cli.escape import escape, escape_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本", "plain é 日本"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\nb\tc", "a\\x0ab\\x09c"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udcff", "\\xff"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_escape(text: str, shown: str) -> None:
    assert escape(text) == shown
    assert shown.isprintable()


def test_lines_stay_lines() -> None:
    assert escape_lines("one\r\ntwo\x1b\n") == "one\n  two\\x1b"
