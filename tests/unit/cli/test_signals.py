"""Signals as readable numbers, and impatience."""

import os
import select
import signal

import pytest

from hutch.cli.signals import REPEAT_WITHIN, Repeats, Signals


def test_signals_are_read_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        assert signals.take() == []
        os.kill(os.getpid(), signal.SIGINT)
        assert select.select([signals], [], [], 5)[0]
        assert signals.take() == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before


def test_ignored_ones_stay_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.take() == []
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("moments", "final"),
    [
        ([0.0], [False]),
        ([0.0, REPEAT_WITHIN], [False, True]),
        ([0.0, REPEAT_WITHIN + 0.1], [False, False]),
        ([0.0, 60.0, 120.0], [False, False, True]),
    ],
)
def test_repeats(moments: list[float], final: list[bool]) -> None:
    repeats = Repeats()
    assert [repeats.is_final(moment) for moment in moments] == final
