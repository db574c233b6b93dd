import asyncio
import os
import signal

import pytest

from hutch.engine.base import ExitKind
from hutch.engine.machine import LAST_WORDS, LastWords, explain

CASES = [
    # reason, exit code, killed by us, console -> kind
    ("guest-shutdown", 0, False, b"", ExitKind.POWEROFF),
    ("guest-shutdown", -signal.SIGKILL, True, b"", ExitKind.POWEROFF),
    ("guest-reset", 0, False, b"", ExitKind.REBOOT),
    ("guest-reset", 0, False, b"Kernel panic - not syncing: oops", ExitKind.PANIC),
    ("guest-panic", 1, False, b"", ExitKind.PANIC),
    ("host-signal", 0, False, b"", ExitKind.KILLED),
    ("host-qmp-quit", 0, False, b"", ExitKind.KILLED),
    ("host-error", 1, False, b"", ExitKind.CRASHED),
    (None, -signal.SIGKILL, True, b"", ExitKind.KILLED),
    (None, None, True, b"", ExitKind.KILLED),
    (None, -signal.SIGKILL, False, b"", ExitKind.CRASHED),
    (None, 1, False, b"", ExitKind.CRASHED),
    (None, None, False, b"", ExitKind.CRASHED),
    (None, 0, False, b"", ExitKind.POWEROFF),
]


@pytest.mark.parametrize(("reason", "code", "killed", "console", "kind"), CASES)
def test_explain(
    reason: str | None, code: int | None, killed: bool, console: bytes, kind: ExitKind
) -> None:
    outcome = explain(reason, code, killed=killed, console=console, words="qemu: hm")
    assert outcome.kind is kind
    if kind is ExitKind.CRASHED:
        assert outcome.message.endswith(": qemu: hm")


@pytest.mark.parametrize(
    ("code", "text"),
    [(-signal.SIGKILL, "lack of memory"), (-signal.SIGSYS, "sandbox denies"), (-200, "200")],
)
def test_a_signal_is_explained(code: int, text: str) -> None:
    assert text in explain(None, code, killed=False, console=b"", words="").message


async def test_last_words_are_bounded_and_without_noise() -> None:
    reader, writer = os.pipe()
    words = LastWords(reader)
    noise = b"qemu: warning: nic net0 has no peer\n"
    os.write(writer, noise + b"x" * (3 * LAST_WORDS))
    await asyncio.sleep(0)
    os.write(writer, b"\n" + noise + b"the end\n")
    os.close(writer)
    text = words.text()
    words.close()
    words.close()
    assert text.endswith("\nthe end")
    assert "no peer" not in text
    assert len(text) <= LAST_WORDS


async def test_last_words_of_a_living_process_do_not_block() -> None:
    reader, writer = os.pipe()
    words = LastWords(reader)
    assert words.text() == ""
    words.close()
    os.close(writer)
