"""Namespaces made, kept by a mount and entered again; in processes of the test's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hutch.network.netd import namespace
from tests.unit.network.netspace import in_namespace, needs_taps

pytestmark = needs_taps


def test_a_kept_namespace_outlives_its_process_and_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "ns"
    assert not namespace.pinned(path)
    script = (
        "import sys, os; from pathlib import Path; from hutch.network.netd import namespace;"
        "namespace.make(user=False); namespace.pin(Path(sys.argv[1]));"
        "print(os.stat('/proc/self/ns/net').st_ino)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, check=True, cwd="/"
    )
    try:
        assert namespace.pinned(path)
        assert path.stat().st_ino == int(ran.stdout)

        def enter() -> int:
            fd = os.open(path, os.O_RDONLY)
            namespace.enter(fd)
            os.close(fd)
            return os.stat("/proc/thread-self/ns/net").st_ino

        assert in_namespace(enter) == int(ran.stdout)
    finally:
        namespace.unpin(path)
    assert not path.exists()
    namespace.unpin(path)


def test_a_namespace_replaces_what_was_kept_there_before(tmp_path: Path) -> None:
    path = tmp_path / "ns"

    def pin() -> int:
        # /proc/self is the main thread's, so the mount is of the host's namespace here: what counts
        # is that there is one mount, however often.
        namespace.pin(path)
        return path.stat().st_ino

    path.write_text("a file that lies there")
    first = pin()
    assert pin() == first
    assert namespace.pinned(path)
    namespace.unpin(path)
    assert not namespace.pinned(path)
    assert not path.exists()


def test_what_cannot_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        namespace.pin(tmp_path / "missing" / "ns")
    file = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OSError, match="cannot be entered"):
        namespace.enter(file)
    os.close(file)


def test_without_root_a_user_namespace_comes_with_it() -> None:
    script = (
        "import os; from hutch.network.netd import namespace; before = os.getuid();"
        "namespace.make(user=True); print(before, os.getuid(), os.getgid()); "
        ""
        "from hutch.network.rtnetlink import Netlink, set_link;"
        "Netlink().change([set_link(1, up=True)]); print(Netlink().links()[0].up)"
    )
    ran = subprocess.run(
        [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            sys.executable,
            "-c",
            script,
        ],
        capture_output=True,
        check=False,
        cwd="/",
        text=True,
    )
    if "No space left" in ran.stderr or "Operation not permitted" in ran.stderr:
        pytest.skip(f"THIS HOST REFUSES USER NAMESPACES: {ran.stderr[-200:]}")
    assert ran.stdout.split() == ["65534", "0", "0", "True"], ran.stderr
