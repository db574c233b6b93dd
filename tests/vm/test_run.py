"""`hutch run` in real machines: what a program gives is what the caller gets, byte for byte."""

import hashlib
import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.harness.hutch import Hutch
from tests.vm.streams import Terminal, consume, memory
from tests.waiting import wait_until

MIB = 1 << 20
OUTPUT = 256 * MIB
"""Many times what either side may hold."""


def test_the_first_command_of_the_readme(shared: Hutch) -> None:
    done = shared.run("run", "--rm", "busybox", "uname", "-a")
    words = done.text.split()
    assert words[0] == "Linux"
    assert words[2] == shared.json("kernel", "ls")[0]["version"]
    assert words[-2:] == ["x86_64", "GNU/Linux"]
    assert done.stderr == b""
    assert shared.json("ps", "-a") == []


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("sh", "-c", "exit 255"), 255),
        (("sh", "-c", "kill -9 $$"), 137),
        (("no-such-command",), 127),
        (("/etc/passwd",), 126),
        (("/etc",), 126),
    ],
)
def test_the_exit_code_is_the_programs(shared: Hutch, argv: tuple[str, ...], code: int) -> None:
    done = shared.run("run", "--rm", "busybox", *argv, expect=code)
    assert done.stdout == b""
    if code in (126, 127):
        assert argv[0].encode() in done.stderr
    assert shared.json("ps", "-a") == []


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("--pull", "never", "no-such-image"), "image_not_found"),
        (("a b",), "bad_reference"),
        (("--memory", "1k", "busybox"), "bad_size"),
        (("--memory", "much", "busybox"), "bad_size"),
        (("--memory", "900t", "busybox"), "no_capacity"),
        (("--cpus", "0", "busybox"), "bad_size"),
        (("--cpus", "200", "busybox"), "no_capacity"),
        (("--disk", "1m", "busybox"), "bad_size"),
        (("--disk", "99999t", "busybox"), "bad_size"),
        (("--name", "-x", "busybox"), "bad_name"),
        (("--name", "a/b", "busybox"), "bad_name"),
        (("--timeout", "soon", "busybox"), "bad_request"),
        (("-w", "relative", "busybox"), "bad_path"),
        (("--kernel", "none-such", "busybox"), "kernel_not_found"),
        (("-u", "nobody-such", "busybox", "true"), "no_such_user"),
        (("--env-file", "/no/such", "busybox", "true"), "bad_request"),
        (("--entrypoint", "", "busybox"), "bad_command"),
    ],
)
def test_what_cannot_be_run_is_refused(shared: Hutch, args: tuple[str, ...], code: str) -> None:
    done = shared.run("--json", "run", "--rm", *args, expect=125)
    assert done.json["error"]["code"] == code, done
    assert done.json["error"]["message"]
    assert shared.json("ps", "-a") == []


def test_stdin_output_and_its_end(shared: Hutch) -> None:
    every = bytes(range(256)) * 4096
    done = shared.run("run", "--rm", "-i", "busybox", "cat", stdin=every)
    assert done.stdout == every
    assert done.stderr == b""


def test_without_i_there_is_no_stdin(shared: Hutch) -> None:
    assert shared.run("run", "--rm", "busybox", "cat", stdin=b"unseen").stdout == b""


def test_stdout_and_stderr_are_kept_apart(shared: Hutch) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do echo out $i; echo err $i >&2; done; printf end"
    done = shared.run("run", "--rm", "busybox", "sh", "-c", script)
    assert done.stdout == b"".join(b"out %d\n" % i for i in range(1, 10)) + b"end"
    assert done.stderr == b"".join(b"err %d\n" % i for i in range(1, 10))


def test_much_output_arrives_whole_and_in_flat_memory(shared: Hutch) -> None:
    part = b"".join(b"%d\n" % number for number in range(1, 2_000_001))
    times = OUTPUT // len(part) + 1
    script = f"seq 1 2000000 >/root/part; for i in $(seq {times}); do cat /root/part; done"
    process = shared.start("run", "--rm", "busybox", "sh", "-c", script)
    daemon = wait_until(lambda: shared.daemon, what="there is a daemon")
    before = memory(daemon.pid)
    arrived = consume(process, watch=(daemon.pid,))
    assert process.returncode == 0, arrived.stderr
    assert arrived.size == times * len(part)
    expected = hashlib.sha256()
    for _ in range(times):
        expected.update(part)
    assert arrived.sha256 == expected.hexdigest()
    assert arrived.peaks[daemon.pid] - before < 64 * MIB
    assert arrived.peaks[process.pid] < 96 * MIB


def test_a_stalled_reader_holds_the_main_process(shared: Hutch) -> None:
    part = b"".join(b"%d\n" % number for number in range(1, 1_000_001))
    script = "seq 1 1000000 >part; for i in $(seq 20); do cat part; echo $i >sent; done"
    shared.run("ps")
    daemon = shared.daemon
    assert daemon is not None
    before = memory(daemon.pid)
    process = shared.start(*("run", "--name", "held", "-w", "/root", "busybox", "sh", "-c", script))
    assert process.stdout.read(2) == b"1\n"
    still, last = 0, ""
    while still < 10:  # looks that each take a round trip and find the same
        now = shared.run("exec", "held", "sh", "-c", "cat /root/sent", expect=None).text
        still, last = (still + 1 if now == last else 0), now
    assert int(last or "0") < 3
    # All of it would be 140 MiB.
    assert memory(daemon.pid) - before < 64 * MIB
    assert memory(process.pid) < 96 * MIB
    arrived = consume(process)
    assert process.returncode == 0
    assert arrived.size == 20 * len(part) - 2
    assert arrived.sha256 == hashlib.sha256((part * 20)[2:]).hexdigest()
    shared.run("rm", "held")


def test_interrupts_end_it(shared: Hutch) -> None:
    process = shared.start("run", "--rm", "busybox", "sh", "-c", "echo up; exec sleep 600")
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert shared.json("ps", "-a") == []


def test_a_program_that_ignores_the_first_interrupt_is_killed_by_the_second(shared: Hutch) -> None:
    script = "trap 'echo caught' INT; echo up; while true; do sleep 1; done"
    process = shared.start("run", "--rm", "busybox", "sh", "-c", script)
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == b"caught\n"
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=20)
    except subprocess.TimeoutExpired:  # on a busy host: too late to be taken for a second one
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    wait_until(lambda: shared.json("ps", "-a") == [], what="it is removed")


def test_an_interrupt_during_the_boot_leaves_nothing(shared: Hutch) -> None:
    cold = ("--no-template", "busybox", "sleep", "600")
    process = shared.start("run", "--rm", "--name", "early", *cold)
    wait_until(lambda: shared.json("ps", "-a"), what="it is on record")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    wait_until(lambda: shared.json("ps", "-a") == [], what="it is removed")


def test_a_killed_client_leaves_the_main_process_running(shared: Hutch) -> None:
    script = "trap 'echo asked; exit 3' TERM; echo up; while true; do sleep 0.1; done"
    process = shared.start("run", "--name", "alone", "busybox", "sh", "-c", script)
    assert process.stdout.readline() == b"up\n"
    process.kill()
    process.wait()
    shared.run("stop", "alone")
    [info] = shared.json("inspect", "alone")
    assert (info["state"], info["exit"]["code"]) == ("stopped", 3)
    assert shared.run("logs", "alone").stdout == b"up\nasked\n"
    shared.run("rm", "alone")


def test_nobody_reads_the_output(shared: Hutch) -> None:
    process = shared.start("run", "--rm", "busybox", "yes")
    process.stdout.read(1 << 20)
    process.stdout.close()
    assert process.wait(60) == 141
    wait_until(lambda: shared.json("ps", "-a") == [], what="it is removed")


def test_the_spec_reaches_the_guest(shared: Hutch, tmp_path: Path) -> None:
    variables = tmp_path / "variables"
    variables.write_text("# comment\nFROM_FILE=a b\nBOTH=file\nPASSED\n")
    script = (
        "echo $ONE,$FROM_FILE,$BOTH,$PASSED; pwd; id -u; id -g; nproc; hostname; df -k / | tail -1;"
        "grep MemTotal /proc/meminfo"
    )
    done = shared.run(
        *("run", "--rm", "--name", "spec", "-e", "ONE=1=2", "-e", "BOTH=flag"),
        *("--env-file", str(variables), "-w", "/made/for/it", "-u", "7:9", "--cpus", "2"),
        *("--memory", "300m", "--disk", "3g", "--hostname", "other.host", "-l", "k=v"),
        *("--entrypoint", "/bin/sh -c", "busybox", script),
        env={"PASSED": "from here"},
    )
    lines = done.text.splitlines()
    assert lines[:6] == ["1=2,a b,flag,from here", "/made/for/it", "7", "9", "2", "other.host"]
    assert 2.7 * MIB < int(lines[6].split()[1]) <= 3 * MIB  # KiB of a file system of 3 GiB
    assert 230_000 < int(lines[7].split()[1]) < 300 * 1024


def test_without_rm_the_sandbox_stays_with_its_outcome(shared: Hutch) -> None:
    shared.run("run", "--name", "kept", "-l", "who=me", "busybox", "sh", "-c", "exit 7", expect=7)
    [info] = shared.json("inspect", "kept")
    assert info["state"] == "stopped"
    assert (info["exit"]["reason"], info["exit"]["code"]) == ("exited", 7)
    assert info["labels"] == {"who": "me"}
    assert [row["name"] for row in shared.json("ps", "-a", "-f", "label=who=me")] == ["kept"]
    taken = shared.run("--json", "run", "--name", "kept", "busybox", "true", expect=125)
    assert taken.json["error"]["code"] == "name_taken"
    shared.run("rm", "kept")


def test_timeout_stops_the_sandbox(shared: Hutch) -> None:
    shared.run("run", "--name", "late", "--timeout", "2s", "busybox", "sleep", "600", expect=None)
    [info] = shared.json("inspect", "late")
    assert (info["state"], info["exit"]["reason"]) == ("stopped", "timeout")
    shared.run("rm", "late")


def test_detached_with_logs(shared: Hutch) -> None:
    script = "echo one; echo two >&2; read x || echo empty; exit 9"
    sandbox_id = shared.run("run", "-d", "--name", "det", "busybox", "sh", "-c", script).text
    assert sandbox_id.startswith("sb_")
    assert shared.run("wait", "det").text == "9"
    logs = shared.run("logs", "det")
    assert logs.stdout == b"one\nempty\n"
    assert logs.stderr == b"two\n"
    pieces = [json.loads(line) for line in shared.run("--json", "logs", "det").text.splitlines()]
    # The two come through pipes of their own: which line is the last is told by the log alone.
    last = shared.run("logs", "-n", "1", "det")
    assert (last.stdout + last.stderr).decode() == pieces[-1]["text"]
    assert [piece["text"] for piece in pieces if piece["channel"] == "stderr"] == ["two\n"]
    assert b"hutch-agent" in shared.run("logs", "--boot", "det").stdout
    shared.run("rm", "det")


def test_followed_logs_end_with_the_program(shared: Hutch) -> None:
    shared.run("run", "-d", "--name", "told", "busybox", "sh", "-c", "echo up; sleep 1; echo down")
    follower = shared.start("logs", "-f", "told")
    assert follower.stdout.readline() == b"up\n"
    out, err = follower.communicate(timeout=60)
    assert (out, err, follower.returncode) == (b"down\n", b"", 0)
    shared.run("wait", "told")
    shared.run("rm", "told")


def test_a_terminal(shared: Hutch) -> None:
    script = (
        "tty; stty size; echo $TERM; read line; echo got $line;"
        # The new size and what is typed may arrive in either order.
        " until stty size | grep '41 132'; do sleep 0.1; done; exit 5"
    )
    with Terminal(shared, "run", "--rm", "-it", "busybox", "sh", "-c", script) as terminal:
        terminal.expect(b"/dev/pts/0\r\n30 100\r\n")
        terminal.expect(b"xterm")
        terminal.resize(41, 132)
        terminal.write(b"words\r")
        terminal.expect(b"got words\r\n")
        assert terminal.expect(b"41 132\r\n")
        assert terminal.wait() == 5


def test_i_without_t_in_a_pipe(shared: Hutch) -> None:
    script = "tty; while read x; do echo [$x]; done"
    process = shared.start("run", "--rm", "-i", "busybox", "sh", "-c", script)
    assert process.stdout.readline() == b"not a tty\n"
    for word in (b"a", b"b"):
        process.stdin.write(word + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"[" + word + b"]\n"
    process.stdin.close()
    assert process.wait(60) == 0
