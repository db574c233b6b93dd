"""`hutch exec` as a process: codes, bytes, end of file, signals, closed and stalled readers."""

import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hutch.cli import exec as exec_module
from hutch.cli.grammar import ENVIRONMENT, USER
from hutch.models import ExecSpec
from tests.unit.cli.conftest import HUTCH, Cli
from tests.unit.cli.local_host import pattern

FORBIDDEN = (
    "asyncio", "click", "dataclasses", "httpx", "importlib.metadata", "inspect", "pydantic", "rich",
    "fastapi", "hutch.models", "hutch.settings", "subprocess", "pathlib",
)  # fmt: skip


def until(condition: Callable[[], bool], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def rss(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143)],
)
def test_exit_code_is_the_programs(hutch: Cli, script: str, code: int) -> None:
    done = hutch("exec", "box", "sh", "-c", script, code=code)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_what_cannot_be_run(hutch: Cli) -> None:
    missing = hutch("exec", "box", "nosuch", code=127)
    assert missing.stderr.startswith(b"hutch: nosuch: not found")
    assert b"(command_not_found)" in missing.stderr
    hutch("exec", "box", "/etc/passwd", code=126)


def test_timeout_is_124(hutch: Cli) -> None:
    hutch("exec", "--timeout", "200ms", "box", "sleep", "60", code=124)


def test_streams_stay_apart_and_whole(hutch: Cli) -> None:
    done = hutch("exec", "box", "sh", "-c", r"printf 'o\0\377'; printf 'e\n' >&2; printf p")
    assert done.stdout == b"o\0\xffp"
    assert done.stderr == b"e\n"


def test_one_pipe_for_both_keeps_the_order(hutch: Cli) -> None:
    # It says something only once we have read what it said before.
    script = "for i in 1 2 3 4; do echo o$i; read x; echo e$i >&2; read x; done"
    how = {"stdin": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with hutch.start("exec", "-i", "box", "sh", "-c", script, **how) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for i in range(1, 5):
            for channel in b"oe":
                assert child.stdout.readline() == b"%c%d\n" % (channel, i)
                child.stdin.write(b"\n")
                child.stdin.flush()
        assert child.wait(60) == 0


def test_stdin_goes_through_to_its_end(hutch: Cli) -> None:
    data = pattern(3_000_001)
    assert hutch("exec", "-i", "box", "cat", stdin=data).stdout == data


def test_without_i_there_is_no_stdin(hutch: Cli) -> None:
    assert hutch("exec", "box", "cat", stdin=b"lost").stdout == b""


def test_stdin_from_a_file(hutch: Cli, tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(pattern(500_000))
    with path.open("rb") as file:
        with hutch.start("exec", "-i", "box", "cat", stdin=file) as child:
            assert child.communicate(timeout=60)[0] == pattern(500_000)


def test_a_program_that_reads_no_stdin_ends_all_the_same(hutch: Cli) -> None:
    with hutch.start("exec", "-i", "box", "true", stdin=subprocess.PIPE) as child:
        assert child.wait(60) == 0  # although our stdin is still open
        assert child.stdin is not None
        child.stdin.close()


def test_environment_directory_and_user(hutch: Cli, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# a comment\n\nA=from file\nB=1\nHOST_ONLY\n")
    env = hutch.env | {"HOST_ONLY": "passed on"}
    (hutch.guest / "srv").mkdir(exist_ok=True)
    args = ["--env-file", str(file), "-e", "B=2", "-eC=x=y", "-w", "/srv"]
    done = hutch("exec", *args, "box", "sh", "-c", "echo $A,$B,$C,$HOST_ONLY; pwd", env=env)
    assert done.stdout.decode().split("\n")[0] == "from file,2,x=y,passed on"
    assert done.stdout.decode().split("\n")[1].endswith("/srv")


def test_words_after_the_name_are_the_programs(hutch: Cli) -> None:
    done = hutch("exec", "box", "--", "printf", "%s,", "-i", "--json", "--", "")
    assert done.stdout == b"-i,--json,--,,"


def test_json(hutch: Cli) -> None:
    done = hutch(
        "exec",
        "--json",
        "box",
        "sh",
        "-c",
        r"printf 'h\303\244'; printf '\377' >&2; exit 3",
        code=3,
    )
    body = json.loads(done.stdout)
    assert body["stdout"] == "hä"
    assert body["stderr_base64"] == "/w=="
    assert body["exit_code"] == body["outcome"]["exit_code"] == 3


def test_json_failure_is_on_stdout(hutch: Cli) -> None:
    done = hutch("exec", "--json", "bxo", "true", code=125)
    failure = json.loads(done.stdout)["error"]
    assert failure["code"] == "sandbox_not_found"
    assert failure["hint"].startswith("did you mean box?")
    assert done.stderr == b""


@pytest.mark.parametrize("args", [["exec"], ["exec", "box"], ["exec", "-x", "box", "true"]])
def test_mistakes_are_125(hutch: Cli, args: list[str]) -> None:
    done = hutch(*args, code=125)
    assert b"(bad_request)" in done.stderr
    assert b"hint: see `hutch exec --help`" in done.stderr


def test_detached_prints_its_id(hutch: Cli) -> None:
    assert hutch("exec", "-d", "box", "true").stdout.startswith(b"ex_")
    assert json.loads(hutch("exec", "-d", "--json", "box", "true").stdout)["running"] is True


def test_large_output_is_exact(hutch: Cli) -> None:
    assert hutch("exec", "box", "pattern", str(64 << 20)).stdout == pattern(64 << 20)


def test_interrupt_goes_to_the_program(hutch: Cli) -> None:
    script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    with hutch.start("exec", "box", "sh", "-c", script) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.read() == b"caught\n"
        assert child.wait(60) == 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_other_signals_are_forwarded(hutch: Cli, number: signal.Signals) -> None:
    script = f"trap 'exit 40' {number.name[3:]}; echo ready; while :; do sleep 0.05; done"
    with hutch.start("exec", "box", "sh", "-c", script) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(number)
        assert child.wait(60) == 40


def test_second_interrupt_kills(hutch: Cli) -> None:
    script = "trap 'echo no' INT; echo ready; while :; do sleep 0.05; done"
    with hutch.start("exec", "box", "sh", "-c", script) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == b"no\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130


def test_interrupt_works_while_our_reader_stalls(hutch: Cli) -> None:
    with hutch.start("exec", "box", "sh", "-c", "yes | cat") as child:
        read = child.stdout
        assert read is not None
        read.read(1)
        seen = [0]

        def stalled() -> bool:
            with open(f"/proc/{child.pid}/io") as file:
                before, seen[0] = seen[0], int(file.read().split()[3])
            time.sleep(0.1)
            return before == seen[0] > 0

        until(stalled)
        child.send_signal(signal.SIGINT)
        # What is queued for the stalled reader is still due; the second says: not even that.
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130


def test_stalled_reader_costs_no_memory(hutch: Cli) -> None:
    with hutch.start("exec", "box", "pattern", str(64 << 20)) as child:
        assert child.stdout is not None
        first = child.stdout.read(1 << 16)
        small = rss(child.pid)
        time.sleep(0.5)  # nothing to wait for: it is what does not happen that counts
        assert rss(child.pid) - small < 8 << 20
        assert first + child.stdout.read() == pattern(64 << 20)
        assert child.wait(60) == 0


def test_closed_reader_ends_it_like_sigpipe(hutch: Cli) -> None:
    with hutch.start("exec", "box", "yes") as child:
        assert child.stdout is not None
        child.stdout.read(10)
        child.stdout.close()
        assert child.wait(60) == 141
        assert child.stderr is not None
        assert child.stderr.read() == b""


def test_hot_path_imports_little(hutch: Cli) -> None:
    code = HUTCH[2].replace("main()", "").rstrip("; ") + (
        "; import sys; from hutch.cli.main import execute; execute(['exec', 'box', 'true']);"
        f"print([m for m in {FORBIDDEN!r} if m in sys.modules])"
    )
    child = subprocess.run(
        [HUTCH[0], "-c", code], env=hutch.env, stdout=subprocess.PIPE, check=True
    )
    assert child.stdout.decode().strip() == "[]"


def test_requests_hold_only_what_the_model_has() -> None:
    spec = exec_module.exec_spec(
        ["true"], stdin=True, tty=True, env={}, workdir="/", user="a", timeout=1.0
    )
    fields = {field.name for field in dataclasses.fields(ExecSpec)}
    assert spec.keys() <= fields
    assert {option.dest for option in (*USER, *ENVIRONMENT)} - {"env_file"} <= fields
