"""The life of netd: how it ends, and what it leaves."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hutch.network import channel
from hutch.network.channel import Channel, Handler
from hutch.network.netd import namespace, process
from hutch.network.netd.process import UNNEEDED, arguments
from hutch.network.processes import GATEWAY_ID, GATEWAY_SOCKET, remember
from hutch.process import ProcessId
from tests.unit.network.netspace import Netd, needs_taps

pytestmark = needs_taps


def test_it_may_open_as_much_as_it_is_allowed(tmp_path: Path) -> None:
    netd = Netd(tmp_path / "netd")
    netd.call("list")
    soft, hard = resource.prlimit(netd.process.pid, resource.RLIMIT_NOFILE)
    assert soft == hard
    netd.close()


def test_where_nothing_can_be_mounted_it_does_without(tmp_path: Path) -> None:
    netd = Netd(tmp_path / "netd", state=tmp_path / "missing")
    values, fds = netd.call("hello")
    assert values["why"] is None
    for fd in fds:
        os.close(fd)
    netd.create("sb_one").guest.connect("93.184.215.14", 22)
    netd.call("end")
    assert netd.process.wait(60) == 0
    netd.close()


def test_told_to_end_it_leaves_nothing(tmp_path: Path) -> None:
    netd = Netd(tmp_path / "netd")
    place = netd.create("sb_one")
    netd.call("end")
    assert netd.process.wait(60) == 0
    assert not (netd.directory / "ns").exists()
    place.close()
    netd.close()


@pytest.mark.parametrize("with_tap", [True, False])
def test_terminated_it_leaves_the_namespace_if_a_tap_needs_it(
    tmp_path: Path, with_tap: bool
) -> None:
    netd = Netd(tmp_path / "netd")
    netd.call("hello")
    if with_tap:
        netd.create("sb_one")
    else:
        netd.control.close()
    netd.process.send_signal(signal.SIGTERM)
    assert netd.process.wait(60) == 0
    assert with_tap == namespace.pinned(netd.directory / "ns")
    netd.close()


def test_nobody_needs_it_so_it_ends_and_ends_the_gateway(tmp_path: Path) -> None:
    directory = tmp_path / "netd"
    directory.mkdir()
    gateway = subprocess.Popen(["sleep", "600"])
    found = ProcessId.of(gateway.pid)
    assert found is not None
    remember(directory / GATEWAY_ID, found)
    (directory / GATEWAY_SOCKET).touch()
    listener = channel.listen(directory / "netd.sock")
    given = arguments(listener.fileno(), directory, interval=0.05)
    netd = subprocess.Popen(
        [sys.executable, "-m", "hutch.network.netd", *given],
        pass_fds=(listener.fileno(),),
        cwd="/",
        stderr=subprocess.DEVNULL,
    )
    listener.close()
    assert netd.wait(60) == 0
    assert gateway.wait(60) == -signal.SIGTERM
    assert list(directory.iterdir()) == []


class Unsure:
    """A netd that cannot tell whether a TAP is left, and is then told to end."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.ending = asyncio.Event()
        self.asked = 0

    async def open(self) -> None:
        pass

    def handlers(self, near: Channel) -> dict[str, Handler]:
        return {}

    def needed(self) -> bool:
        self.asked += 1
        if self.asked == 2 * UNNEEDED:
            os.kill(os.getpid(), signal.SIGTERM)
        raise TimeoutError("the kernel takes its time")

    async def close(self) -> None:
        pass


def test_as_long_as_it_cannot_tell_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dismissed: list[Path] = []
    unpinned: list[Path] = []
    monkeypatch.setattr(process, "Netd", Unsure)
    monkeypatch.setattr(process.processes, "dismiss", lambda *paths: dismissed.extend(paths))
    monkeypatch.setattr(namespace, "unpin", unpinned.append)
    listener = channel.listen(tmp_path / "netd.sock")
    given = arguments(listener.detach(), tmp_path, interval=0.001)
    asyncio.run(process._serve(process._parse(given), None))
    assert (dismissed, unpinned) == ([], [])
    assert (tmp_path / "netd.sock").exists()


def test_what_is_missing_is_told_to_the_one_who_asks(tmp_path: Path) -> None:
    netd = Netd(tmp_path / "netd", device=tmp_path / "no-tun")
    values, fds = netd.call("hello")
    assert values["why"]["code"] == "network_missing"
    assert "no-tun" in values["why"]["message"]
    netd.close()
    for fd in fds:
        os.close(fd)
