"""Kill -9 of the network's processes under a running sandbox: closed meanwhile, then as before."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from hutch.network.processes import GATEWAY_ID, NETD_ID, recall
from hutch.process import ProcessId
from tests.harness.hutch import Hutch
from tests.unit.network.netspace import needs_taps
from tests.waiting import wait_until

pytestmark = needs_taps


@pytest.fixture
def port() -> Iterator[int]:
    """A port of the host's loopback that says `here` to whoever connects."""

    def serve() -> None:
        with contextlib.suppress(OSError):  # closed, at the end
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"here\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def process(hutch: Hutch, name: str) -> ProcessId:
    (path,) = hutch.runtime.rglob(name)
    found = recall(path)
    assert found is not None
    return found


def killed(hutch: Hutch, name: str) -> None:
    found = process(hutch, name)
    found.kill()
    wait_until(lambda: not found.alive())


def test_it_comes_back(hutch: Hutch, port: int) -> None:
    script = f"nc -w 30 198.18.0.3 {port} < /dev/null 2>&1; true"
    policy = ("--net", "deny", "--allow-host", str(port))
    hutch.run("run", "-d", "--idle", "--name", "box", *policy, "busybox")

    def says() -> str:
        return hutch.run("exec", "box", "sh", "-c", script).text

    def another() -> str:
        return hutch.run("run", "--rm", *policy, "busybox", "sh", "-c", script).text

    assert says() == "here"
    killed(hutch, GATEWAY_ID)
    wait_until(lambda: says() == "here", what="the gateway is there again")
    # Nothing that is open needs netd; what begins waits for its successor.
    killed(hutch, NETD_ID)
    assert says() == "here"
    assert another() == "here"
    # All of them at once: the next daemon finds the sandbox's TAP where it was left.
    hutch.kill_daemon()
    killed(hutch, GATEWAY_ID)
    killed(hutch, NETD_ID)
    wait_until(lambda: says() == "here", what="the sandbox has its network again")
    assert another() == "here"
    assert hutch.json("network", "show", "box")["attached"]
    # Nothing stays behind a daemon that does not come back, once its VMs have ended.
    both = process(hutch, GATEWAY_ID), process(hutch, NETD_ID)
    hutch.kill_daemon()
    for who, what in hutch.processes().items():
        if "qemu" in what:
            who.kill()
    wait_until(lambda: not any(each.alive() for each in both), what="they end by themselves")
    assert not list(hutch.runtime.rglob("network/*"))
    hutch.run("start", "box")
    assert says() == "here"
