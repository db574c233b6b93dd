"""Times that logs are asked for by, and how pieces are printed."""

import time

import pytest

from hutch.cli.logs import ConsoleEscape, Printer, parse_moment
from hutch.errors import InvalidInput
from hutch.models import parse_timestamp
from tests.unit.cli.conftest import Cli

SECOND = 1_700_000_000 * 10**9


def test_moments() -> None:
    assert abs(parse_timestamp(parse_moment("10m", "--since")) - (time.time() - 600)) < 5
    assert parse_moment("2026-01-31T12:00:00+02:00", "--since") == "2026-01-31T10:00:00.000Z"
    with pytest.raises(InvalidInput, match="--until"):
        parse_moment("yesterday", "--until")


def test_streams_and_bytes(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    printer = Printer(timestamps=False)
    printer.write(1, SECOND, b"o\0\xff")
    printer.write(2, SECOND, b"e\n")
    assert capfdbinary.readouterr() == (b"o\0\xff", b"e\n")


def test_each_line_gets_its_time_once(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    printer = Printer(timestamps=True)
    printer.write(1, SECOND, b"a\nb")
    printer.write(1, SECOND + 5, b"c\nd\n")
    mark = b"2023-11-14T22:13:20.000000000Z "
    later = b"2023-11-14T22:13:20.000000005Z "
    assert capfdbinary.readouterr().out == mark + b"a\n" + mark + b"bc\n" + later + b"d\n"


def test_the_console_is_made_harmless() -> None:
    harmless = ConsoleEscape()
    assert harmless(b"ok\r\n\t\x1b[2J\x07\x9b\xc3\xa4") == b"ok\n\t\\x1b[2J\\x07\\x9b\xc3\xa4"
    # A control character of two bytes, a letter of three: the pieces end inside of both.
    assert b"".join(map(harmless, (b"\xc2", b"\x9b1m\xe2\x80", b"\xa6\xff"))) == (
        b"\\x9b1m\xe2\x80\xa6\\xff"
    )


def test_of_what_is_not_there(hutch: Cli) -> None:
    assert b"(sandbox_not_found)" in hutch("logs", "bax", code=125).stderr
    assert hutch("logs", "-n", "5", "box").stdout == b""
