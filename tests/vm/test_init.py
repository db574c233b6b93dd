"""An image whose command is an init: it is PID 1 of namespaces of its own, and programs join it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.hutch import Hutch
from tests.unit.images.making import MadeImage, entry, layer
from tests.vm.conftest import Box
from tests.waiting import wait_until

SHELL = Path("/bin/busybox")  # static, and an init that runs as PID 1 only
IMAGE = "example.org/init:1"
INITTAB = b"""\
::sysinit:/bin/sh -c 'echo init is 1; cut -d: -f3 /proc/1/cgroup; echo up'
::respawn:/bin/sleep 100000
::shutdown:/bin/sh -c 'echo shut down'
"""


@pytest.fixture
def inside(shared: Hutch, tmp_path: Path) -> Iterator[Box]:
    """A sandbox whose main process is busybox's init; it powers off on SIGUSR2."""
    tools = ("sh", "sleep", "ps", "readlink", "mount", "wc", "ls", "cut", "mkdir", "grep")
    made = layer(
        *(entry(name, "dir") for name in ("bin", "sbin", "etc")),
        entry("bin/busybox", data=SHELL.read_bytes(), mode=0o755),
        *(entry(f"bin/{name}", "symlink", linkname="busybox") for name in tools),
        entry("sbin/init", "symlink", linkname="../bin/busybox"),
        entry("etc/inittab", data=INITTAB),
    )
    run = {"Cmd": ["/sbin/init"], "Env": ["PATH=/bin"], "StopSignal": "SIGUSR2"}
    path = MadeImage([made], run=run).write_layout(tmp_path / "layout", IMAGE)
    shared.run("image", "import", str(path))
    shared.run("run", "-d", "--name", "inside", IMAGE)
    wait_until(lambda: b"up\n" in shared.run("logs", "inside").stdout, what="the init is up")
    yield Box(shared, "inside")
    shared.run("rm", "-f", "inside")


def shown(inside: Box, pattern: str) -> list[str]:
    """Wait until `ps` shows what the init is to start, and return that line's words."""
    found = wait_until(
        lambda: inside.sh(f"ps | grep '{pattern}'", expect=None).text, what=f"{pattern} runs"
    )
    return list(found.split())


def test_an_init_is_pid_1_programs_join_it_and_it_shuts_down(inside: Box) -> None:
    # Its /proc and its cgroup tree are those of its namespaces, and so are its programs'.
    assert inside.hutch.run("logs", "inside").stdout == b"init is 1\n/\nup\n"
    assert shown(inside, "[s]leep")[1:] == ["0", "/bin/sleep", "100000"]
    assert shown(inside, " 0 *[i]nit$") == ["1", "0", "init"]
    namespaces = [inside.sh(f"readlink /proc/{who}/ns/pid").text for who in ("self", "1")]
    assert namespaces[0] == namespaces[1] != ""
    inside.sh("mount -t tmpfs none /etc && : > /etc/here")
    assert inside.sh("ls /etc").text == "here"
    inside.sh("mkdir /sys/fs/cgroup/part")
    # Whoever is left without a parent goes to the init, which reaps it.
    inside.sh("(sleep 0.2 &)")
    orphans = "grep -l 'State:.Z' /proc/[0-9]*/status | wc -l"
    wait_until(lambda: inside.sh(orphans).text == "0", what="orphans are reaped")

    inside.hutch.run("stop", "-t", "60s", "inside")
    assert inside.hutch.run("logs", "inside").stdout.endswith(b"shut down\n")
    [info] = inside.hutch.json("inspect", "inside")
    assert (info["state"], info["exit"]["reason"]) == ("stopped", "stopped")
    assert info["exit"]["code"] != 137  # not by force

    inside.hutch.run("start", "inside")
    assert shown(inside, " 0 *[i]nit$") == ["1", "0", "init"]
