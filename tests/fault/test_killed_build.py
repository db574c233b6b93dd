"""Kill -9 of the daemon in the middle of an `image build`: what it has started ends with it.

buildah is a program of minutes, with programs of its own; the next build goes on in its storage.
"""

import contextlib
import os
from pathlib import Path

import pytest

from hutch.process import ProcessId
from tests.harness.hutch import Hutch
from tests.waiting import wait_until

SLOW_BUILDAH = """#!/bin/sh
# A build that goes on and on, in a child of its own.
sleep 6000 &
echo $! > "$HOME/child"
wait
"""

STEP = f"sleep {6000 + os.getpid() / 1e7:.7f}"
"""A command line that no other process has."""


def _running(command: str) -> bool:
    """Tell whether a command runs anywhere: a build step shows no trace of our home."""
    words = command.replace(" ", "\0").encode() + b"\0"
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if path.read_bytes() == words:
                return True
    return False


def _context(directory: Path, dockerfile: str) -> str:
    directory.mkdir()
    (directory / "Dockerfile").write_text(dockerfile)
    return str(directory)


def test_a_slow_build_ends_with_the_daemon(hutch: Hutch, tmp_path: Path, short_tmp: Path) -> None:
    fake = short_tmp / "bin" / "buildah"
    fake.parent.mkdir()
    fake.write_text(SLOW_BUILDAH)
    fake.chmod(0o755)
    hutch.env |= {"PATH": f"{fake.parent}:{os.environ['PATH']}", "HOME": str(short_tmp)}
    context = _context(tmp_path / "context", "FROM scratch\n")
    client = hutch.start("image", "build", "-t", "localhost/slow", context)
    pidfile = short_tmp / "child"
    wait_until(lambda: pidfile.exists() and pidfile.read_text().endswith("\n"), what="it builds")
    child = ProcessId.of(int(pidfile.read_text()))
    assert child is not None
    hutch.kill_daemon()
    wait_until(lambda: not child.alive(), what="what the build had started has ended")
    _, told = client.communicate(timeout=60)
    assert client.returncode == 125
    assert b"daemon" in told
    wait_until(lambda: not hutch.processes(), what="nothing runs")
    assert [image["references"] for image in hutch.json("image", "ls")] == [["busybox"]]


@pytest.mark.skipif(os.geteuid() != 0, reason="buildah needs root for chroot")
def test_a_killed_build_is_repeated(hutch: Hutch, tmp_path: Path) -> None:
    context = _context(tmp_path / "context", f"FROM busybox\nRUN {STEP}\n")
    hutch.start("image", "build", "-t", "localhost/made", context)
    wait_until(lambda: _running(STEP), what="the step runs")
    hutch.kill_daemon()
    wait_until(lambda: not _running(STEP), what="the step has ended")
    wait_until(lambda: not hutch.processes(), what="nothing of the build runs")
    (tmp_path / "context" / "Dockerfile").write_text("FROM busybox\nRUN echo said >/made\n")
    hutch.run("image", "build", "-t", "localhost/made", context)
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(hutch.home) not in mounts
    hutch.run("image", "prune")
    assert not list((hutch.home / "images" / "build").glob("**/*"))
