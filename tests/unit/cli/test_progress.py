"""Progress on a terminal, and nothing anywhere else."""

import os
import pty

import pytest

from hutch.cli import progress
from hutch.cli.progress import Progress, Transfer

STEP = {"stage": "pull", "id": "sha256:\x1b1", "done": 512, "total": 1024}


def test_silent_off_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress() as shown:
        shown(STEP)
    with Transfer("f", 10) as transfer:
        transfer.add(10)
    assert capfd.readouterr() == ("", "")
    assert transfer.done == 10


def test_lines_are_drawn_and_taken_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "is_tty", lambda fd: True)
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((80, 24)))
    monkeypatch.delenv("TERM", raising=False)
    with Progress() as shown:
        shown(STEP)
        drawn = capsys.readouterr().err
        assert "[############------------]  512B of 1.0K" in drawn.replace("1K", "1.0K")
        assert "\\x1b1" in drawn
    assert capsys.readouterr().err == "\x1b[1A\x1b[J"


def test_a_real_terminal_sees_no_more_lines_than_it_has() -> None:
    master, slave = pty.openpty()
    pid = os.fork()
    if pid == 0:
        os.dup2(slave, 2)
        os.environ["TERM"] = "xterm"
        shown = Progress()
        shown._due = -1
        for number in range(40):
            shown._items["pull", str(number)] = STEP
        shown(STEP)
        os._exit(0 if 0 < shown._shown <= 24 else 1)
    os.close(slave)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(master)
