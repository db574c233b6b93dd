"""Attachments that outlive the daemon: killed in the middle, the bytes go on where they were."""

import os
import signal
import subprocess
import threading

from hutch.api.runtime import LOCK_NAME, read_record
from tests.unit.cli.conftest import Cli
from tests.unit.cli.local_host import pattern
from tests.waiting import wait_until

SIZE = 32 << 20


def kill_daemon(hutch: Cli) -> None:
    record = read_record(hutch.home / LOCK_NAME)
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)


def test_output_goes_on_after_the_daemon_was_killed(own_hutch: Cli) -> None:
    own_hutch("ps")
    with own_hutch.start("exec", "box", "pattern", str(SIZE)) as child:
        assert child.stdout is not None
        got = bytearray(child.stdout.read(5 << 20))
        kill_daemon(own_hutch)
        got += child.stdout.read(5 << 20)
        kill_daemon(own_hutch)
        got += child.stdout.read()
        assert child.wait(60) == 0
    assert got == pattern(SIZE)


def test_input_that_may_be_lost_is_a_failure(own_hutch: Cli) -> None:
    own_hutch("ps")
    args = ("exec", "-i", "box", "sh", "-c", "echo ready; sleep 60")
    with own_hutch.start(*args, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        fed: list[int] = []
        feeder = threading.Thread(target=_feed, args=(child.stdin.fileno(), fed), daemon=True)
        feeder.start()
        wait_until(lambda: len(fed) > 4, what="more than the pipe takes is under way")
        count = -1
        while count != len(fed):  # until all pipes are full
            count = len(fed)
            feeder.join(0.5)
        kill_daemon(own_hutch)
        assert child.wait(60) == 125
        assert child.stderr is not None
        assert b"bytes of input under way" in child.stderr.read()
    feeder.join(60)


def _feed(fd: int, fed: list[int]) -> None:
    try:
        for _ in range(64):
            fed.append(os.write(fd, bytes(65536)))
    except OSError:
        return  # its reader is gone, as it should be


def test_program_that_is_gone_is_told(own_hutch: Cli) -> None:
    own_hutch("ps")
    with own_hutch.start("exec", "box", "sh", "-c", "echo ready; exec sleep 60") as child:
        assert child.stdout is not None
        child.stdout.readline()
        kill_daemon(own_hutch)
        assert child.wait(60) == 125
        assert child.stderr is not None
        assert b"(exec_not_found)" in child.stderr.read()


def test_signal_while_it_reconnects_gives_up(own_hutch: Cli) -> None:
    own_hutch("ps")
    broken = own_hutch.env | {"PYTHONPATH": own_hutch.env["PYTHONPATH"].split(":", 1)[1]}
    broken["HUTCH_EXEC_ORPHAN_GRACE"] = "60s"
    # Without the stand-in and with a home that cannot be written, no daemon starts again.
    with own_hutch.start("exec", "box", "pattern", str(SIZE), env=broken) as child:
        assert child.stdout is not None
        child.stdout.read(1 << 20)
        record = read_record(own_hutch.home / LOCK_NAME)
        assert record is not None
        (own_hutch.home / LOCK_NAME).unlink()
        (own_hutch.home / LOCK_NAME).mkdir()
        os.kill(record.pid, signal.SIGKILL)
        child.send_signal(signal.SIGINT)
        child.stdout.read()
        assert child.wait(60) in (125, 130)
    (own_hutch.home / LOCK_NAME).rmdir()
