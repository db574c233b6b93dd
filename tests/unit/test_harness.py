"""The harness must see what it promises to see: a check that finds nothing proves nothing."""

import subprocess
from pathlib import Path

import pytest

from hutch.process import ProcessId
from tests.harness.hutch import Hutch
from tests.waiting import until, wait_until


@pytest.fixture
def hutch(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Hutch:
    monkeypatch.setattr("tests.harness.hutch.LEAVING", 0.05)
    home, runtime = short_tmp / "home", short_tmp / "run"
    home.mkdir()
    runtime.mkdir()
    return Hutch(home, runtime, {"log_level": "debug"})


def test_a_clean_home_closes(hutch: Hutch) -> None:
    hutch.close()
    assert not hutch.home.exists()


@pytest.mark.parametrize("trace", ["environment", "argument", "open file"])
def test_a_process_left_over_is_told_and_killed(hutch: Hutch, trace: str) -> None:
    file = hutch.home / "disk"
    file.touch()
    argv = ["sh", "-c", "sleep 600; exit", str(file) if trace == "argument" else "x"]
    with open(file) as opened:
        child = subprocess.Popen(
            argv,
            env=hutch.env if trace == "environment" else {},
            stdin=opened if trace == "open file" else subprocess.DEVNULL,
            start_new_session=True,
        )
    who = ProcessId.of(child.pid)
    assert who is not None
    wait_until(lambda: who in hutch.processes())
    with pytest.raises(AssertionError, match=f"process {child.pid}"):
        hutch.close()
    assert child.wait(timeout=60) == -9


def test_a_socket_left_over_is_told(hutch: Hutch) -> None:
    (hutch.runtime / "vm").mkdir()
    (hutch.runtime / "vm/qmp.sock").touch()
    with pytest.raises(AssertionError, match=r"file .*qmp\.sock"):
        hutch.close()


def test_settings_reach_the_command_and_nothing_else_does(
    hutch: Hutch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUTCH_CPUS", "64")
    assert Hutch(hutch.home, hutch.runtime, {}).env.keys() & {"HUTCH_CPUS"} == set()
    assert hutch.env["HUTCH_LOG_LEVEL"] == "debug"


def test_logs_are_found(hutch: Hutch) -> None:
    (hutch.home / "daemon.log").write_text("started")
    (hutch.home / "sandboxes/sb_1").mkdir(parents=True)
    (hutch.home / "sandboxes/sb_1/console.log").write_bytes(b"panic \xff")
    assert "started" in hutch.logs()
    assert "panic \\xff" in hutch.logs()


def test_waiting_ends_with_what_was_missing() -> None:
    answers = iter([0, "", "yes"])
    assert wait_until(lambda: next(answers)) == "yes"
    with pytest.raises(AssertionError, match="the moon"):
        wait_until(lambda: False, timeout=0.05, what="the moon")


async def test_waiting_in_a_coroutine() -> None:
    answers = iter([0, "", "yes"])

    async def ask() -> object:
        return next(answers)

    assert await until(ask) == "yes"
    with pytest.raises(AssertionError, match="the moon"):
        await until(lambda: False, timeout=0.05, what="the moon")
