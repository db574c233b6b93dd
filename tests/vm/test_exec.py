"""`hutch exec` in a real machine: bytes, exit codes, users, limits, and who may go away when."""

import concurrent.futures
import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hutch.models import ExecSpec, TtySize
from hutch.sdk import Client, Sandbox
from hutch.settings import load_settings
from tests.vm.conftest import Box
from tests.vm.streams import Terminal, consume, memory
from tests.waiting import wait_until

MIB = 1 << 20
GRACE = 3.0
"""Seconds that a program outlives its client in the shared `Hutch`."""


@pytest.fixture
def sandbox(box: Box) -> Iterator[Sandbox]:
    """The shared sandbox as the SDK sees it."""
    with Client(load_settings(env=box.hutch.env)) as client:
        yield Sandbox.connect(box.name, client=client)


def alive(box: Box, mark: str) -> bool:
    """Tell whether a process in the sandbox has `mark` among its arguments."""
    return any(mark in row["command"] for row in box.hutch.json("top", box.name))


def interrupt_again(process: Any) -> int:
    """Send the interrupt that kills, and return the exit code.

    It is the second if it comes soon after the first, and the third in any case.
    """
    process.send_signal(signal.SIGINT)
    try:
        return int(process.wait(20))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        return int(process.wait(60))


def test_every_exit_code(box: Box, sandbox: Sandbox) -> None:
    for code in range(256):
        assert sandbox.commands.run(f"exit {code}").exit_code == code
    for code in (0, 1, 124, 125, 126, 127, 128, 255):
        box.sh(f"exit {code}", expect=code)


@pytest.mark.parametrize("number", [1, 2, 6, 9, 10, 13, 14, 15, 34, 64])
def test_a_signal_is_128_and_its_number(sandbox: Sandbox, number: int) -> None:
    outcome = sandbox.commands.run(f"kill -{number} $$; sleep 10")
    assert outcome.exit_code == 128 + number


def test_what_cannot_be_started(box: Box) -> None:
    box.sh("cd /root; printf x >plain; mkdir dir; printf '#!/no/such' >bad; chmod +x bad")
    for argv, code in [
        (("no-such",), 127),
        (("/no/such",), 127),
        (("./missing",), 127),
        (("/root/plain",), 126),
        (("/root/dir",), 126),
        (("/root/plain/x",), 127),
    ]:
        done = box.run(*argv, expect=code)
        assert done.stdout == b""
        assert argv[0].encode() in done.stderr
    assert box.run("/root/bad", expect=None).code in (126, 127)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("-u", "ghost"), "no_such_user"),
        (("-u", "root:ghosts"), "no_such_user"),
        (("-w", "/nowhere"), "guest_refused"),
        (("-w", "relative"), "bad_path"),
        (("-e", "=x"), "bad_request"),
        (("--timeout", "soon"), "bad_request"),
    ],
)
def test_hutchs_own_failures_are_125(box: Box, options: tuple[str, ...], code: str) -> None:
    done = box.run("true", options=("--json", *options), expect=125)
    assert done.json["error"]["code"] == code


def test_an_unknown_sandbox(box: Box) -> None:
    done = box.hutch.run("exec", "nobody", "true", expect=125)
    assert b"nobody" in done.stderr
    assert b"(sandbox_not_found)" in done.stderr


def test_binary_stdin_and_stdout(box: Box) -> None:
    every = bytes(range(256)) * 20_000  # far more than a window
    done = box.run("cat", options=("-i",), stdin=every)
    assert done.stdout == every
    assert done.stderr == b""


def test_stdin_that_nobody_reads_to_its_end(box: Box) -> None:
    done = box.run("head", "-c", "5", options=("-i",), stdin=b"x" * (8 * MIB))
    assert done.stdout == b"xxxxx"


def test_an_empty_stdin_ends_at_once(box: Box) -> None:
    assert box.run("cat", options=("-i",), stdin=b"").stdout == b""
    assert box.run("cat", stdin=b"unseen").stdout == b""


def test_stdout_and_stderr_are_kept_apart_and_in_order(box: Box) -> None:
    script = "i=0; while [ $i -lt 2000 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done"
    done = box.sh(script)
    assert done.stdout == b"".join(b"o%d\n" % i for i in range(2000))
    assert done.stderr == b"".join(b"e%d\n" % i for i in range(2000))


def test_both_outputs_are_large(box: Box) -> None:
    """A reader that favours one of them would wait for ever."""
    script = "head -c 20000000 /dev/zero | tee /dev/stderr"
    done = box.sh(script)
    assert len(done.stdout) == len(done.stderr) == 20_000_000


def test_a_closed_output_ends_before_the_program(box: Box) -> None:
    assert box.sh("echo a; exec >&- 2>&-; sleep 0.5; exit 4", expect=4).stdout == b"a\n"


def test_a_stalled_reader_holds_the_guest_and_no_memory(box: Box) -> None:
    part = b"".join(b"%d\n" % number for number in range(1, 1_000_001))
    box.sh("seq 1 1000000 >/root/part; rm -f /root/sent")
    daemon = box.hutch.daemon
    assert daemon is not None
    before = memory(daemon.pid)
    script = "for i in $(seq 16); do cat /root/part; echo $i >/root/sent; done"
    process = box.start("sh", "-c", script)
    assert process.stdout.read(2) == b"1\n"

    def cpu() -> str:
        stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return f"{stat[11]} {box.sh('cat /root/sent', expect=None).text}"

    # Held: between two looks, which take a round trip each, neither our side nor the guest's moves.
    still = 0
    last = ""
    while still < 10:
        now = cpu()
        still, last = (still + 1 if now == last else 0), now
    assert int((last.split() + ["0"])[1]) < 3  # of 16
    # All of it would be 105 MiB.
    assert memory(daemon.pid) - before < 64 * MIB
    assert memory(process.pid) < 96 * MIB
    arrived = consume(process)
    assert arrived.size == 16 * len(part) - 2
    assert arrived.sha256 == hashlib.sha256((part * 16)[2:]).hexdigest()
    assert process.returncode == 0


def test_an_interrupt_goes_to_the_program(box: Box) -> None:
    process = box.start(
        "sh", "-c", "trap 'echo caught; exit 9' INT; echo up; while :; do sleep 0.1; done"
    )
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.read() == b"caught\n"
    assert process.wait(60) == 9


def test_a_second_interrupt_kills_everything_it_started(box: Box) -> None:
    script = "trap 'echo no' INT; nohup sleep 3333 & echo up; while :; do sleep 0.1; done"
    process = box.start("sh", "-c", script)
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == b"no\n"
    assert interrupt_again(process) == 130
    wait_until(lambda: not alive(box, "sleep 3333"), what="its child is killed")


def test_signals_reach_the_whole_group(box: Box) -> None:
    script = (
        "trap 'wait; echo parent; exit 3' TERM;"
        "(trap 'echo child; exit' TERM; echo up; while :; do sleep 0.1; done) & wait"
    )
    process = box.start("sh", "-c", script)
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == b"child\nparent\n"
    assert process.wait(60) == 3


def test_a_killed_client_gets_its_grace_then_the_program_ends(box: Box) -> None:
    process = box.start("sh", "-c", "echo up; sleep 4444")
    assert process.stdout.readline() == b"up\n"
    killed = time.monotonic()
    process.kill()
    process.wait()
    assert alive(box, "sleep 4444") or time.monotonic() - killed > GRACE
    wait_until(lambda: not alive(box, "sleep 4444"), what="it is cancelled")
    assert time.monotonic() - killed > GRACE


def test_nobody_reads_the_output(box: Box) -> None:
    process = box.start("yes", "unread")
    process.stdout.read(1 << 16)
    process.stdout.close()
    assert process.wait(60) == 141
    wait_until(lambda: not alive(box, "yes unread"), what="it is killed")


def test_timeout_is_124(box: Box) -> None:
    done = box.sh("echo up; sleep 5555", options=("--timeout", "1s"), expect=124)
    assert done.stdout == b"up\n"
    wait_until(lambda: not alive(box, "sleep 5555"), what="its child has ended, too")


def test_timeout_of_a_program_that_ignores_it(box: Box) -> None:
    script = "trap '' TERM; echo up; while :; do sleep 0.2; done"
    assert box.sh(script, options=("--timeout", "1s"), expect=124).stdout == b"up\n"


def test_a_background_child_that_keeps_the_pipe_does_not_hold_it(box: Box) -> None:
    assert box.sh("sleep 6666 & echo started").stdout == b"started\n"
    assert alive(box, "sleep 6666")
    box.run("killall", "sleep")


def test_detached_and_attached_again(box: Box) -> None:
    script = (
        "rm -f go; i=0; while [ ! -e go ]; do i=$((i+1)); echo line $i; sleep 0.1; done;"
        " echo err >&2; exit 6"
    )
    exec_id = box.sh(script, options=("-d", "-w", "/root")).text
    assert exec_id.startswith("ex_")
    attached = box.hutch.start("attach", box.name, exec_id)
    seen = attached.stdout.readline()
    box.run("touch", "/root/go")
    rest, errors = attached.communicate(timeout=60)
    assert (attached.returncode, errors) == (6, b"err\n")
    logs = box.hutch.run("logs", "--exec", exec_id, box.name)
    lines = logs.stdout.splitlines(keepends=True)
    assert lines == [b"line %d\n" % i for i in range(1, len(lines) + 1)]
    assert logs.stderr == b"err\n"
    assert logs.stdout.endswith(seen + rest)  # an attachment begins where it comes in
    # It is told how it ended also when it comes later.
    assert box.hutch.run("attach", box.name, exec_id, expect=6).stdout == b""


def test_let_go_of_with_the_keys_and_attached_again(box: Box, sandbox: Sandbox) -> None:
    with Terminal(box.hutch, "exec", "-it", box.name, "sh") as terminal:
        terminal.write(b"echo $((40 + 2))\r")
        terminal.expect(b"\r\n42\r\n")
        terminal.write(b"export KEPT=yes\r\x10\x11")
        assert terminal.wait() == 0
    [left] = [row for row in sandbox.commands.list() if row.running and row.tty]
    with Terminal(box.hutch, "attach", box.name, left.id) as terminal:
        terminal.write(b"echo is $KEPT\r")
        terminal.expect(b"is yes\r\n")
        terminal.write(b"exit 8\r")
        assert terminal.wait() == 8


def test_a_terminal_has_its_size_and_keys(box: Box) -> None:
    with Terminal(box.hutch, "exec", "-it", box.name, "sh", rows=33, cols=77) as terminal:
        terminal.write(b"tty; stty size\r")
        terminal.expect(b"33 77\r\n")
        terminal.resize(44, 88)
        # The new size and what is typed may arrive in either order.
        terminal.write(b"until stty size | grep '44 88'; do sleep 0.1; done\r")
        terminal.expect(b"44 88\r\n")
        terminal.write(b"sleep 7777\r")
        terminal.expect(b"sleep 7777\r\n")
        wait_until(lambda: alive(box, "sleep 7777"), what="it runs")
        terminal.write(b"\x03")
        terminal.write(b"echo after $?\r")
        terminal.expect(b"after 130\r\n")
        terminal.expect(b"# ")  # an end that is typed before the shell reads is no end to it
        terminal.write(b"\x04")
        assert terminal.wait() == 0
        assert terminal.settings() == terminal.before


def test_a_terminal_mixes_both_outputs(sandbox: Sandbox) -> None:
    spec = ExecSpec(["sh", "-c", "echo out; echo err >&2; test -t 0"], tty=TtySize(24, 80))
    result = sandbox.commands.start(spec).wait()
    assert result.stdout == "out\r\nerr\r\n"
    assert (result.stderr, result.exit_code) == ("", 0)


def test_large_arguments_and_environment(box: Box) -> None:
    words = ["x" * 100_000, "", "a b\nc'\"$\\", "\udcff\udcfe"]
    done = box.run("printf", "%s.", *words)
    assert done.stdout == b"".join(os.fsencode(word) + b"." for word in words)
    big = "y" * 100_000
    done = box.run(
        "sh", "-c", "echo ${#BIG} $EMPTY,$BIG", options=("-e", f"BIG={big}", "-e", "EMPTY=")
    )
    assert done.text == f"100000 ,{big}"
    many = [str(i) for i in range(20_000)]
    assert box.run("sh", "-c", "echo $# ${20000}", "sh", *many).text == "20000 19999"


def test_arguments_beyond_the_limit_are_refused(sandbox: Sandbox) -> None:
    from hutch.errors import InvalidInput

    with pytest.raises(InvalidInput, match="512 KiB"):
        sandbox.commands.run(["echo", *("z" * 1000 for _ in range(600))])


def test_environment_and_directory(box: Box, tmp_path: Path) -> None:
    variables = tmp_path / "env"
    variables.write_text("A=1\n\n#x\nB=two words\nHUTCH_TEST_HERE\n")
    done = box.run(
        *("sh", "-c", "echo $A,$B,$HUTCH_TEST_HERE,$C,$HOME,$USER,$TERM; pwd"),
        options=("--env-file", str(variables), "-e", "C=3", "-w", "/usr"),
        env={"HUTCH_TEST_HERE": "here"},
    )
    assert done.text == "1,two words,here,3,/root,root,\n/usr"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", "0 0 root /root"),
        ("root", "0 0 root /root"),
        ("nobody", "65534 65534 nobody /nonexistent"),
        ("1234", "1234 0 /"),
        ("1234:77", "1234 77 /"),
        ("nobody:root", "65534 0 nobody /nonexistent"),
        ("0:100", "0 100 root /root"),
    ],
)
def test_users_and_groups(box: Box, user: str, expected: str) -> None:
    done = box.sh("echo $(id -u) $(id -g) $USER $HOME", options=("-u", user))
    assert done.text == expected


def test_supplementary_groups_are_the_images(box: Box) -> None:
    box.sh("echo 'tester:x:500:500::/home/tester:/bin/sh' >> /etc/passwd")
    box.sh("echo 'tester:x:500:' >> /etc/group; echo 'wheel:x:501:root,tester' >> /etc/group")
    assert box.sh("id -u; id -g; id -G", options=("-u", "tester")).text == "500\n500\n500 501"
    assert box.sh("id -g; id -G", options=("-u", "tester:wheel")).text.split()[0] == "501"


def test_many_at_once(box: Box) -> None:
    def one(number: int) -> str:
        return box.sh(f"echo {number}; sleep 0.5; echo $(({number} * 2))").text

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        outputs = list(pool.map(one, range(32)))
    assert outputs == [f"{number}\n{number * 2}" for number in range(32)]


def test_json(box: Box) -> None:
    done = box.sh("echo out; echo err >&2; exit 3", options=("--json",), expect=3)
    body = done.json
    assert (body["exit_code"], body["stdout"], body["stderr"]) == (3, "out\n", "err\n")


def test_a_shell_reads_a_script_from_a_pipe(box: Box) -> None:
    done = box.hutch.run("shell", box.name, stdin=b"echo hello; cd /usr; pwd; exit 4\n", expect=4)
    assert done.stdout == b"hello\n/usr\n"


def test_ended_programs_leave_nothing_in_the_guest(box: Box, sandbox: Sandbox) -> None:
    for number in range(30):
        box.sh(f"exit {number}", expect=number)
    wait_until(lambda: len(sandbox.commands.list()) < 10, what="the guest forgets them")
    wait_until(
        lambda: not [row for row in sandbox.commands.list() if row.running], what="none runs"
    )
    zombies = "grep -l 'State:.Z' /proc/[0-9]*/status | wc -l"
    wait_until(lambda: box.sh(zombies).text == "0", what="all are reaped")
    groups = "ls -d /sys/fs/cgroup/hutch/exec-* | wc -l"
    wait_until(lambda: int(box.sh(groups).text) < 10, what="their groups are removed")
