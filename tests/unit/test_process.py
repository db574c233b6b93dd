import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch import process
from hutch.errors import EngineError, HutchError, Missing
from hutch.process import OUTPUT_LIMIT, ProcessId, minimal_env, require, run, spawn, which
from tests.unit.descriptors import descriptors
from tests.waiting import until, wait_until


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A child that sleeps, and is reaped in the end."""
    child = subprocess.Popen(["sleep", "600"])
    yield child
    child.kill()
    child.wait()


def test_a_process_is_its_pid_and_its_start(sleeper: "subprocess.Popen[bytes]") -> None:
    found = ProcessId.of(sleeper.pid)
    assert found is not None
    assert found.alive()
    assert found == ProcessId.of(sleeper.pid)
    assert ProcessId.of(os.getpid()) != found


def test_a_reused_pid_is_another_process(sleeper: "subprocess.Popen[bytes]") -> None:
    found = ProcessId.of(sleeper.pid)
    assert found is not None
    older = ProcessId(sleeper.pid, found.start_time - 1)
    assert not older.alive()
    assert older.kill() is False
    assert found.alive(), "the process that has the pid now was killed"


async def test_waiting_for_a_reused_pid_ends_at_once(sleeper: "subprocess.Popen[bytes]") -> None:
    found = ProcessId.of(sleeper.pid)
    assert found is not None
    async with asyncio.timeout(60):
        await ProcessId(sleeper.pid, found.start_time - 1).wait()


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen(["sleep", "600"])
    found = ProcessId.of(child.pid)
    assert found is not None
    assert found.kill() is True
    wait_until(lambda: not found.alive())  # dead, and not reaped yet
    assert ProcessId.of(child.pid) is None
    child.wait()
    assert found.kill() is False


def test_a_pid_that_never_was() -> None:
    assert ProcessId.of(2**22 + 1) is None
    assert ProcessId(2**22 + 1, 1).kill() is False


def test_a_name_with_parentheses_does_not_confuse(short_tmp: Path) -> None:
    """The second field of /proc/PID/stat is the program's own choice."""
    program = short_tmp / "a) R 1 (b"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([str(program), "600"])
    try:
        comm = Path(f"/proc/{child.pid}/comm")
        wait_until(lambda: comm.read_text().startswith("a) R"))
        found = ProcessId.of(child.pid)
        assert found is not None
        own = ProcessId.of(os.getpid())
        assert own is not None
        assert found.start_time >= own.start_time
    finally:
        child.kill()
        child.wait()


async def test_wait_returns_when_a_stranger_ends() -> None:
    """A VM adopted after a restart is not our child."""
    null = "stdout=s.DEVNULL, stderr=s.DEVNULL"
    code = f"import subprocess as s; print(s.Popen(['sleep', '600'], {null}).pid)"
    started = subprocess.run(python(code), check=True, capture_output=True)
    found = ProcessId.of(int(started.stdout))
    assert found is not None
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(found.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        assert found.kill(signal.SIGTERM)
        async with asyncio.timeout(60):
            await waiting
    assert not found.alive()


async def test_wait_can_be_cancelled(sleeper: "subprocess.Popen[bytes]") -> None:
    found = ProcessId.of(sleeper.pid)
    assert found is not None
    before = descriptors()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await found.wait()
    assert found.alive()
    assert descriptors() == before


async def test_run_gives_output_and_code() -> None:
    done = await run(
        ["sh", "-c", "cat; echo oops >&2; exit 3"], timeout=60, stdin=b"in", check=False
    )
    assert (done.code, done.stdout, done.stderr) == (3, b"in", b"oops\n")


async def test_run_reads_a_file_or_nothing(short_tmp: Path) -> None:
    (short_tmp / "in").write_bytes(b"from a file")
    with open(short_tmp / "in", "rb") as file:
        assert (await run(["cat"], timeout=60, stdin=file)).stdout == b"from a file"
    assert (await run(["cat"], timeout=60)).stdout == b""
    assert (await run(["cat"], timeout=60, stdin=b"")).stdout == b""


async def test_a_failure_tells_the_last_words() -> None:
    with pytest.raises(HutchError) as caught:
        await run(["sh", "-c", "echo no such thing >&2; exit 4"], timeout=60, code="bad_image")
    assert caught.value.code == "bad_image"
    assert "no such thing" in caught.value.message
    assert caught.value.details["exit_code"] == 4


async def test_a_signal_is_a_negative_code() -> None:
    assert (await run(["sh", "-c", "kill -9 $$"], timeout=60, check=False)).code == -9


async def test_output_is_capped() -> None:
    code = f"import sys; sys.stdout.write('x' * {OUTPUT_LIMIT + 1000})"
    assert len((await run(python(code), timeout=30)).stdout) == OUTPUT_LIMIT


async def test_what_is_not_installed() -> None:
    with pytest.raises(Missing) as caught:
        await run(["hutch-no-such-program"], timeout=60)
    assert caught.value.code == "tool_missing"
    with pytest.raises(Missing):
        spawn(["hutch-no-such-program"])
    with pytest.raises(Missing) as caught:
        require("hutch-no-such-program", "the-package")
    assert "the-package" in str(caught.value)
    assert which("hutch-no-such-program") is None
    assert which("sh") == require("sh", "dash")


async def group_of(pidfile: Path) -> ProcessId:
    """Return the grandchild that a command of `family` has started."""
    text = await until(lambda: pidfile.exists() and pidfile.read_text().strip())
    found = ProcessId.of(int(text))
    assert found is not None
    return found


def family(pidfile: Path, then: str) -> list[str]:
    """A command with a child of its own that holds the output pipe open."""
    return [
        "sh",
        "-c",
        f"sleep 600 & echo $! > {pidfile}.new && mv {pidfile}.new {pidfile}; {then}",
    ]


@pytest.mark.parametrize("then", ["wait", "exit 0"], ids=["leader alive", "leader gone"])
async def test_a_timeout_kills_the_whole_group(short_tmp: Path, then: str) -> None:
    pidfile = short_tmp / "pid"
    for limit in (0.5, 5, 30):  # a busy machine may not even come to start it
        with pytest.raises(EngineError, match=f"sh did not finish within {limit:g} s"):
            await run(family(pidfile, then), timeout=limit)
        if pidfile.exists():
            break
    child = int(pidfile.read_text())
    await until(lambda: ProcessId.of(child) is None)


async def test_cancelling_kills_the_whole_group(short_tmp: Path) -> None:
    pidfile = short_tmp / "pid"
    async with asyncio.TaskGroup() as group:
        running = group.create_task(run(family(pidfile, "wait"), timeout=60))
        child = await group_of(pidfile)
        running.cancel()
    assert running.cancelled()
    await until(lambda: not child.alive())


async def test_a_finished_command_leaves_nothing(short_tmp: Path) -> None:
    quiet = f"sleep 600 >/dev/null 2>&1 & echo $! > {short_tmp}/pid"
    await run(["sh", "-c", quiet], timeout=60)
    child = int((short_tmp / "pid").read_text())
    await until(lambda: ProcessId.of(child) is None)


async def test_a_command_ends_with_us_when_we_are_killed(short_tmp: Path) -> None:
    pidfile = short_tmp / "pid"
    code = "import asyncio; from hutch.process import run; asyncio.run(run({}, timeout=60))"
    us = subprocess.Popen(python(code.format(family(pidfile, "wait"))))
    try:
        child = await group_of(pidfile)
        leader = os.getpgid(child.pid)
        assert leader not in (us.pid, os.getpgrp())
    finally:
        us.kill()
        us.wait()
    await until(lambda: not child.alive())
    await until(lambda: ProcessId.of(leader) is None)


async def test_only_a_minimal_environment_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    done = await run(["env"], timeout=60, env={"EXTRA": "1"})
    names = {line.split("=")[0] for line in done.stdout.decode().splitlines()}
    assert "SECRET_TOKEN" not in names
    assert {"PATH", "LC_ALL", "EXTRA"} <= names
    monkeypatch.delenv("PATH")
    assert "/usr/bin" in minimal_env()["PATH"]


async def test_only_the_given_descriptors_are_passed(short_tmp: Path) -> None:
    with open(short_tmp / "a", "w+b") as passed, open(short_tmp / "b", "w+b") as kept:
        os.set_inheritable(kept.fileno(), True)
        done = await run(
            python("import os; print(*sorted(int(n) for n in os.listdir('/proc/self/fd')))"),
            timeout=30,
            pass_fds=[passed.fileno()],
        )
        found = set(done.stdout.split())
        assert str(passed.fileno()).encode() in found
        assert str(kept.fileno()).encode() not in found


def test_spawn_leads_a_session_of_its_own(short_tmp: Path) -> None:
    with open(short_tmp / "out", "w+b") as out:
        child = spawn(["sh", "-c", "readlink /proc/self/fd/0; echo $$"], stdout=out.fileno())
        session = os.getsid(child.pid)
        assert child.wait(timeout=60) == 0
    assert session == child.pid
    assert (short_tmp / "out").read_text().split() == ["/dev/null", str(child.pid)]


def test_spawn_hands_on_no_secrets(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://user:secret@proxy")
    monkeypatch.setenv("HOME", "/home/somebody")
    with open(short_tmp / "out", "w+b") as out:
        spawn(["env"], stdout=out.fileno(), env={"A": "1"}).wait(timeout=60)
        out.seek(0)
        names = {line.split(b"=")[0] for line in out.read().splitlines()}
    assert names - {b"PWD", b"SHLVL", b"_"} == {b"PATH", b"LC_ALL", b"A"}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.parametrize("helper", ["setpriv", "none", "busybox"])
def test_spawn_drops_all_privileges(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch, helper: str
) -> None:
    if helper == "none":
        monkeypatch.setattr(process, "which", lambda program: None)
    elif helper == "busybox":  # its setpriv has not the options for that
        (short_tmp / "busybox").write_text("#!/bin/sh\nexit 1\n")
        (short_tmp / "busybox").chmod(0o755)
        (short_tmp / "setpriv").symlink_to("busybox")
        monkeypatch.setenv("PATH", f"{short_tmp}:{os.environ['PATH']}")
    with open(short_tmp / "out", "w+b") as out:
        child = spawn(["id"], stdout=out.fileno(), user=65534, group=65534)
        assert child.wait(timeout=60) == 0
    text = (short_tmp / "out").read_text()
    assert "uid=65534" in text
    assert "gid=65534" in text
    assert "root" not in text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_spawn_as_somebody_else_hands_on_descriptors_and_the_exit_code(short_tmp: Path) -> None:
    with open(short_tmp / "out", "w+b") as out, open(short_tmp / "passed", "wb") as passed:
        argv = ["sh", "-c", f"echo $$; readlink /proc/self/fd/{passed.fileno()}; exit 7"]
        fds = [passed.fileno()]
        child = spawn(argv, stdout=out.fileno(), pass_fds=fds, user=65534, group=65534)
        assert child.wait(timeout=60) == 7
    said = (short_tmp / "out").read_text().split()
    assert said == [str(child.pid), str(short_tmp / "passed")]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_spawn_as_somebody_else_of_what_is_not_there() -> None:
    with pytest.raises(Missing):
        spawn(["hutch-no-such-program"], user=65534, group=65534)


def test_the_log_quotes_commands(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger=process.__name__):
        spawn(["true", "two words"]).wait(timeout=60)
    assert "true 'two words'" in caplog.text
