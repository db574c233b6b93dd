"""A home on a file system that runs full: the error says so, nothing is half-made, and all works
again once there is room.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fault.crash import content, same_content
from tests.harness.fixtures import NewHutch
from tests.harness.hutch import Hutch
from tests.waiting import wait_until

MIB = 1 << 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")


@pytest.fixture
def small(new_hutch: NewHutch) -> Iterator[Hutch]:
    """A home with kernel and image, on a file system with 40 MiB to spare."""
    hutch = new_hutch(disk_reserve="0")
    used = sum(path.stat().st_size for path in hutch.home.rglob("*") if path.is_file())
    size = used + 40 * MIB
    aside = hutch.home.with_name(hutch.home.name + "-aside")
    hutch.home.rename(aside)
    hutch.home.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "hutch-test", str(hutch.home)]
    subprocess.run(mount, check=True)
    subprocess.run(["cp", "-a", f"{aside}/.", str(hutch.home)], check=True)
    try:
        yield hutch
        if hutch.daemon is not None:
            hutch.run("rm", "-f", "--all", "none", expect=None)
            hutch.run("daemon", "stop")
    finally:
        subprocess.run(["umount", "--lazy", str(hutch.home)], check=True)
        subprocess.run(["rm", "-rf", str(aside)], check=True)


@contextmanager
def full(hutch: Hutch, *, spare: int = 0) -> Iterator[None]:
    """Take all of the home's room but `spare` bytes."""
    ballast = hutch.home / "ballast"
    try:
        with open(ballast, "wb") as file:
            # The daemon may take or give back some of it at any moment.
            while (more := _room(hutch) - spare) > 0:
                with contextlib.suppress(OSError):
                    size = os.fstat(file.fileno()).st_size
                    os.posix_fallocate(file.fileno(), size, more)
        yield
    finally:
        ballast.unlink()


def _room(hutch: Hutch) -> int:
    found = os.statvfs(hutch.home)
    return found.f_bavail * found.f_frsize


def _refused(hutch: Hutch, *args: str) -> None:
    done = hutch.run("--json", *args, expect=125)
    told = done.json[0] if isinstance(done.json, list) else done.json
    assert told["error"]["code"] == "disk_full", done
    assert told["error"]["hint"], done


@needs_root
def test_images_and_sandboxes(small: Hutch, tmp_path: Path) -> None:
    small.run("run", "--rm", "busybox", "true")
    before = content(small)
    with full(small, spare=200 << 10):
        _refused(small, "image", "pull", "busybox")
        same_content(small, before | {"ballast"}, when="after a full disk")
    with full(small):
        _refused(small, "run", "--rm", "--name", "one", "busybox", "true")
        assert small.json("ps", "-a") == []
        same_content(small, before | {"ballast"}, when="after a full disk")
    assert small.run("run", "--rm", "busybox", "echo", "again").text == "again"
    small.run("image", "pull", "busybox")


@needs_root
def test_a_daemon_that_starts(small: Hutch) -> None:
    small.run("create", "--name", "one", "busybox")
    small.run("daemon", "stop")
    with full(small):
        done = small.run("--json", "ps", "-a", expect=None)
        # It may start without writing; where it cannot, it says why.
        if done.code:
            assert done.json["error"]["code"] == "disk_full", done
        small.run("rm", "one", expect=None)
    if small.json("ps", "-a"):
        small.run("rm", "one")
    assert small.json("ps", "-a") == []


@needs_root
def test_a_guest_that_writes(small: Hutch) -> None:
    small.run("run", "-d", "--idle", "--name", "one", "busybox")
    fill = "dd if=/dev/urandom of=/big bs=1M count=200; sync; echo done"
    filling = small.start("exec", "one", "sh", "-c", fill)
    wait_until(lambda: _room(small) < MIB, timeout=120, what="it is full")
    # The daemon answers, the sandbox can be ended and removed, and that makes room.
    assert small.json("inspect", "one")[0]["state"] in ("running", "stopped")
    small.run("rm", "-f", "one")
    filling.wait(60)
    assert small.json("ps", "-a") == []
    wait_until(lambda: _room(small) > 20 * MIB, what="there is room")
    assert small.run("run", "--rm", "busybox", "echo", "again").text == "again"


@needs_root
def test_park(small: Hutch) -> None:
    small.run("run", "-d", "--no-template", "--idle", "--name", "box", "-m", "128m", "busybox")
    small.run("exec", "box", "sync")
    before = content(small)
    with full(small, spare=MIB):
        _refused(small, "park", "box")
        assert small.run("exec", "box", "echo", "runs on").text == "runs on"
        wait_until(
            lambda: not any("parked" in path for path in content(small) - before),
            what="nothing is left of what was parked",
        )
    assert small.run("exec", "box", "echo", "and on").text == "and on"
    [info] = small.json("inspect", "box")
    assert info["state"] == "running"
    small.run("rm", "-f", "box")


@needs_root
def test_moments(small: Hutch) -> None:
    """Snapshots, what is restored, forks and members of pools: made as a whole or not at all."""
    small.run("run", "-d", "--no-template", "--idle", "--name", "box", "-m", "128m", "busybox")
    small.run("exec", "box", "sh", "-c", "echo kept >/root/file; sync")
    small.run("snapshot", "create", "--disk-only", "--name", "disk", "box")
    before = content(small)

    def added() -> set[str]:
        # A layer that is in use already stays over the one below it.
        return {path for path in content(small) - before if not path.startswith("layers/")}

    def nothing_is_left() -> None:
        wait_until(lambda: added() == {"ballast"}, what="nothing half-made is left")
        assert [row["name"] for row in small.json("ps", "-a")] == ["box"]
        assert small.run("exec", "box", "cat", "/root/file").text == "kept"

    for spare in (0, MIB):
        with full(small, spare=spare):
            _refused(small, "snapshot", "create", "box")
            nothing_is_left()
            if not spare:
                _refused(small, "fork", "box", "child")
                nothing_is_left()
                _refused(small, "restore", "disk", "child")
                nothing_is_left()
            _refused(small, "template", "build", "busybox")
            nothing_is_left()
    assert small.json("snapshot", "ls")[0]["name"] == "disk"
    small.run("fork", "box", "child")
    assert small.run("exec", "child", "cat", "/root/file").text == "kept"
    small.run("rm", "-f", "box", "child")
    small.run("snapshot", "rm", "disk")
    wait_until(lambda: not list(small.home.glob("layers/*")), what="no layer is left")
