"""A namespace without a network, for what is started there."""

import ctypes
import errno
import os
import subprocess
import threading
from pathlib import Path

import pytest

from hutch.engine import nowhere
from hutch.engine.nowhere import Nowhere
from hutch.errors import HutchError
from hutch.process import Child, spawn


def namespace(path: str = "thread-self") -> str:
    return os.readlink(f"/proc/{path}/ns/net")


def namespaces_can_be_made() -> bool:
    return (
        subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0
    )


def started(place: Nowhere) -> tuple[str, str]:
    """Return the namespace of a program that was started, and its interfaces."""
    reader, writer = os.pipe()

    def work() -> Child:
        script = "readlink /proc/self/ns/net; cat /proc/net/dev"
        return spawn(["sh", "-c", script], stdout=writer)

    child = place.start(work)
    os.close(writer)
    with open(reader) as out:
        name, _, rest = out.read().partition("\n")
    assert child.wait(timeout=60) == 0
    return name, rest


@pytest.mark.skipif(not namespaces_can_be_made(), reason="needs the right to make namespaces")
def test_what_is_started_has_nothing_but_a_loopback() -> None:
    place, before = Nowhere(), namespace()
    name, interfaces = started(place)
    assert name != before
    assert interfaces.count(":") == 1
    assert "lo:" in interfaces
    # All are in the same place, and we are where we were.
    assert started(place)[0] == name
    assert namespace() == namespace("self") == before


def test_where_it_is_denied_all_are_where_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Denied:
        calls = 0

        def unshare(self, flags: int) -> int:
            self.calls += 1
            ctypes.set_errno(errno.EPERM)
            return -1

    libc = Denied()
    monkeypatch.setattr(nowhere, "_libc", libc)
    place, before = Nowhere(), set(threading.enumerate())
    assert [started(place)[0] for _ in range(2)] == [namespace()] * 2
    assert libc.calls == 1
    new = set(threading.enumerate()) - before
    assert not [thread for thread in new if thread.name.startswith("nowhere")]


def test_errors_are_those_of_the_work(tmp_path: Path) -> None:
    place = Nowhere()
    with pytest.raises(HutchError) as caught:
        place.start(lambda: spawn([str(tmp_path / "none")]))
    assert caught.value.code == "tool_missing"
