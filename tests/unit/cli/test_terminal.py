"""The terminal: raw mode and its end in every way, size, ^C as a key, detach keys."""

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Iterator

import pytest

from hutch.cli.terminal import DETACH_KEYS, DetachScanner, RawMode, is_tty
from tests.unit.cli.conftest import Child, Cli

SH = ("exec", "-it", "box", "sh", "-c")


class Terminal:
    """A pseudo-terminal with a command on it."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(30, 100)
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""

    def run(self, hutch: Cli, *args: str) -> Child:
        return hutch.start(*args, stdin=self.slave, stdout=self.slave, stderr=self.slave)

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def expect(self, text: bytes, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, (text, self.seen)
            if select.select([self.master], [], [], left)[0]:
                self.seen += os.read(self.master, 65536)
        self.seen = self.seen.split(text, 1)[1]

    def is_restored(self) -> bool:
        return termios.tcgetattr(self.slave) == self.before

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    os.close(made.master)
    os.close(made.slave)


def test_keys_go_through_and_the_terminal_comes_back(hutch: Cli, terminal: Terminal) -> None:
    with terminal.run(
        hutch, "exec", "-it", "box", "sh", "-c", "echo r''eady; cat; exit 5"
    ) as child:
        terminal.expect(b"ready")
        assert terminal.is_raw()
        terminal.type(b"hello\r")
        terminal.expect(b"hello\r\nhello\r\n")  # the guest's terminal echoes, once
        terminal.type(b"\x04")
        assert child.wait(60) == 5
    assert terminal.is_restored()


def test_size_at_the_start_and_later(hutch: Cli, terminal: Terminal) -> None:
    script = "trap 'stty size' WINCH; stty size; echo r''eady; while :; do sleep 0.1; done"
    with terminal.run(hutch, *SH, script) as child:
        terminal.expect(b"30 100")
        terminal.expect(b"ready")
        terminal.resize(40, 120)
        child.send_signal(signal.SIGWINCH)  # no controlling terminal here, so nobody else does
        terminal.expect(b"40 120")
        terminal.type(b"\x03")
        assert child.wait(60) == 130
    assert terminal.is_restored()


def test_interrupt_is_a_key(hutch: Cli, terminal: Terminal) -> None:
    script = "trap 'echo caught; exit 3' INT; echo r''eady; while :; do sleep 0.1; done"
    with terminal.run(hutch, *SH, script) as child:
        terminal.expect(b"ready")
        terminal.type(b"\x03")
        terminal.expect(b"caught")
        assert child.wait(60) == 3


def test_detach_keys_let_go(hutch: Cli, terminal: Terminal) -> None:
    script = f"echo r''eady; sleep 1; touch {hutch.base}/lived"
    with terminal.run(hutch, *SH, script) as child:
        terminal.expect(b"ready")
        terminal.type(DETACH_KEYS[:1])
        terminal.type(DETACH_KEYS[1:])
        assert child.wait(60) == 0
    assert terminal.is_restored()
    deadline = time.monotonic() + 20
    while not (hutch.base / "lived").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_was_typed_before_the_detach_keys_arrives(hutch: Cli, terminal: Terminal) -> None:
    """The daemon has output to send all the time: it notices at once when the client is gone."""
    script = (
        f"(until [ -e {hutch.base}/typed ]; do echo noise; done) & echo r''eady;"
        f" read line; touch {hutch.base}/$line"
    )
    with terminal.run(hutch, *SH, script) as child:
        terminal.expect(b"ready")
        terminal.type(b"typed\r" + DETACH_KEYS)
        assert child.wait(60) == 0
    deadline = time.monotonic() + 60
    while not (hutch.base / "typed").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_terminal_is_restored_after_a_signal(
    hutch: Cli, terminal: Terminal, number: signal.Signals
) -> None:
    with terminal.run(
        hutch, "exec", "-it", "box", "sh", "-c", "echo r''eady; exec sleep 60"
    ) as child:
        terminal.expect(b"ready")
        child.send_signal(number)
        assert child.wait(60) == 128 + number
    assert terminal.is_restored()


def test_terminal_is_restored_when_the_program_is_not_found(hutch: Cli, terminal: Terminal) -> None:
    with terminal.run(hutch, "exec", "-it", "box", "nosuch") as child:
        terminal.expect(b"(command_not_found)")
        assert child.wait(60) == 127
    assert terminal.is_restored()


def test_shell_is_interactive_on_a_terminal(hutch: Cli, terminal: Terminal) -> None:
    with terminal.run(hutch, "shell", "-e", "PS1=% ", "-e", "SHELL=/bin/sh", "box") as child:
        terminal.expect(b"% ")
        terminal.type(b"echo a$((1+1))b; exit 4\r")
        terminal.expect(b"a2b")
        assert child.wait(60) == 4


def test_t_without_a_terminal_of_ours(hutch: Cli) -> None:
    done = hutch("exec", "-t", "box", "sh", "-c", "[ -t 1 ] && stty size")
    assert done.stdout == b"24 80\r\n"


def test_detach_scanner_over_pieces() -> None:
    scanner = DetachScanner()
    assert scanner.feed(b"a\x10") == (b"a", False)
    assert scanner.feed(b"b") == (b"\x10b", False)
    assert scanner.feed(b"\x10") == (b"", False)
    assert scanner.feed(b"\x11rest") == (b"", True)
    assert scanner.feed(b"x\x10\x11") == (b"x", True)


def test_raw_mode_ends_with_an_exception(terminal: Terminal) -> None:
    def fail() -> None:
        with RawMode(terminal.slave):
            assert terminal.is_raw()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert terminal.is_restored()


def test_closed_descriptor_is_no_terminal() -> None:
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    assert not is_tty(read)
