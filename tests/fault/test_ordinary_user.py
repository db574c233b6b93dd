"""Without root: the whole path as a user who owns nothing but a directory."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.fixtures import NewHutch
from tests.harness.hutch import COMMAND, Hutch
from tests.waiting import wait_until

NOBODY = 65534
_LEAVE_ROOT = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
# For a checkout that only root may look into: it takes reading alone, and lends no other right.
_LOOK = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def _prefix() -> list[str]:
    if os.geteuid() != 0:
        return []
    # setpriv looks up what it runs with root's rights: only what that runs in turn is a test.
    again = "import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'import hutch'])"
    argv = [*_LEAVE_ROOT, sys.executable, "-c", again]
    tried = subprocess.run(argv, capture_output=True, check=False)
    return [*_LEAVE_ROOT, *(_LOOK if tried.returncode else ())]


@pytest.fixture
def users(new_hutch: NewHutch, short_tmp: Path) -> Iterator[tuple[Hutch, Run]]:
    """A home and a daemon of an ordinary user, and how that user runs a command."""
    hutch, prefix = new_hutch(empty=True), _prefix()
    short_tmp.chmod(0o755)
    filled = new_hutch().home  # the kernel and the image; the copies are the user's own
    for name in ("kernels", "images", "cache"):
        shutil.copytree(filled / name, hutch.home / name, symlinks=True)
    runtime = short_tmp / "user"
    runtime.mkdir(mode=0o700)
    hutch.home.parent.chmod(0o711)
    hutch.home.parent.parent.chmod(0o711)
    if prefix:
        for path in (hutch.home, runtime, *hutch.home.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    env = hutch.env | {"HOME": str(hutch.home), "HUTCH_RUNTIME_DIR": str(runtime)}

    def run(*args: str) -> "subprocess.CompletedProcess[bytes]":
        argv = [*prefix, str(COMMAND), *args]
        return subprocess.run(argv, env=env, cwd="/", capture_output=True, timeout=150, check=False)

    yield hutch, run
    run("rm", "-f", "--all")
    run("daemon", "stop")
    wait_until(lambda: all(path.is_dir() for path in runtime.rglob("*")), what="nothing is left")


def test_the_whole_path(users: tuple[Hutch, Run]) -> None:
    hutch, run = users
    done = run("run", "--rm", "busybox", "sh", "-c", "id -u; uname -s")
    assert (done.returncode, done.stdout) == (0, b"0\nLinux\n"), done
    daemon = hutch.daemon
    assert daemon is not None
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    owner = NOBODY if os.geteuid() == 0 else os.geteuid()
    assert f"Uid:\t{owner}\t{owner}\t{owner}\t{owner}\n" in status
    assert run("run", "-d", "--idle", "--name", "one", "busybox").returncode == 0
    done = run("cp", "one:/etc/passwd", "-")
    assert b"root" in done.stdout, done
    assert run("image", "pull", "busybox").returncode == 0
    assert run("stop", "one").returncode == 0


def test_another_users_daemon_is_not_used(users: tuple[Hutch, Run]) -> None:
    hutch, run = users
    assert run("ps").returncode == 0
    if os.geteuid() == 0:
        # Root is not led to a socket that a user has named.
        done = hutch.run("--json", "ps", expect=125)
        assert done.json["error"]["code"] == "forbidden", done
