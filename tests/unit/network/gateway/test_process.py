import asyncio
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from ipaddress import ip_network
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.network.channel import Channel, connect, listen
from hutch.network.dns.guest import Denied, GuestLimits
from hutch.network.gateway.limits import Limits
from hutch.network.gateway.process import Settings, take_files
from hutch.networking import NetworkPolicy
from tests.unit.network.gateway.world import LO, bound, knock

TIME = 60.0
ROOT = os.geteuid() == 0
NOBODY = 65534

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gateway.sock"


@pytest.fixture
def start(path: Path) -> Iterator[Start]:
    children: list[subprocess.Popen[bytes]] = []

    def run(**settings: object) -> "subprocess.Popen[bytes]":
        with listen(path) as listener:
            child = subprocess.Popen(
                [
                    *(sys.executable, "-m", "hutch.network.gateway"),
                    *("--control", str(listener.fileno())),
                ],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                cwd="/",
            )
        children.append(child)
        assert child.stdin is not None
        child.stdin.write(json.dumps(settings).encode())
        child.stdin.close()
        return child

    yield run
    for child in children:
        child.kill()
        child.wait()
        assert child.stderr is not None
        child.stderr.close()


async def called(path: Path) -> Channel:
    return await connect(path, name="the gateway")


async def test_it_outlives_daemons_and_ends_when_it_is_told(path: Path, start: Start) -> None:
    child = start()
    for _ in range(2):
        channel = await called(path)
        answer, _ = await channel.call("hello", timeout=TIME)
        assert answer["pid"] == child.pid
        await channel.close()
    channel = await called(path)
    await channel.call("end", timeout=TIME)
    assert await asyncio.to_thread(child.wait, TIME) == 0
    await channel.close()


async def test_a_signal_ends_it(path: Path, start: Start) -> None:
    child = start()
    channel = await called(path)
    await channel.call("hello", timeout=TIME)
    child.send_signal(signal.SIGHUP)
    await channel.call("hello", timeout=TIME)
    child.terminate()
    assert await asyncio.to_thread(child.wait, TIME) == 0
    await channel.close()


@pytest.mark.skipif(not ROOT, reason="only root has rights to give up")
async def test_it_has_no_rights_left(path: Path, start: Start, tmp_path: Path) -> None:
    child = start(user=NOBODY, group=NOBODY)
    channel = await called(path)
    await channel.call("hello", timeout=TIME)
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{child.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(NOBODY)}
    assert status["Groups"].strip() == ""
    assert status["NoNewPrivs"] == "1"
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {0}
    # It works all the same, up to the end of a connection.
    listener = bound(socket.SOCK_STREAM)
    names = os.open(tmp_path / "names", os.O_RDWR | os.O_CREAT, 0o600)
    dns, clock = bound(socket.SOCK_DGRAM), bound(socket.SOCK_DGRAM)
    values = {"sandbox_id": "sb_1", "name": "b\xfccher", "interface": "lo", "ifindex": LO}
    policy = asdict(NetworkPolicy(deny=["b\xfccher.example"]))
    with listener, dns, clock:
        fds = [listener.fileno(), dns.fileno(), clock.fileno(), names]
        await channel.call("attach", values | {"policy": policy}, fds, timeout=TIME)
        assert await knock(listener.getsockname())  # to itself, which is not public
    os.close(names)
    told, _ = await channel.call("records", {"since": 0}, timeout=TIME)
    assert [record["reason"] for record in told["records"]] == ["address_host"]
    await channel.close()


def test_broken_settings_end_it_before_it_begins(start: Start) -> None:
    child = start(limits={"connections": 0})
    assert child.wait(TIME) != 0


def test_settings_are_read() -> None:
    said = {
        "user": 1,
        "group": 2,
        "servers": [["9.9.9.9", 53]],
        "public_routes": ["192.0.2.0/24"],
        "limits": {"connections": 7},
        "dns": {"denied": "nxdomain"},
    }
    read = Settings.read(io.BytesIO(json.dumps(said).encode()))
    routes = (ip_network("192.0.2.0/24"),)
    dns = GuestLimits(denied=Denied.NXDOMAIN)
    assert read == Settings(1, 2, [("9.9.9.9", 53)], routes, Limits(connections=7), dns)
    halves = Settings.read(io.BytesIO(b'{"public_routes": ["0.0.0.0/1", "8000::/1"]}'))
    assert halves.public_routes == (ip_network("0.0.0.0/1"), ip_network("8000::/1"))
    assert Settings.read(io.BytesIO(b"")) == Settings()
    for broken in (
        b"[]",
        b"{",
        b'{"servers": [1]}',
        b'{"dns": {"denied": "refused"}}',
        b'{"public_routes": ["x"]}',
        b'{"servers": [["9.9.9.9", "x"]]}',
        b'{"public_routes": ["x"]}',
    ):
        with pytest.raises(HutchError):
            Settings.read(io.BytesIO(broken))


def test_descriptors_are_as_many_as_may_be() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    code = "from hutch.network.gateway.process import *; take_files(); import resource;" + (
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    soft, hard = map(int, done.stdout.split())
    assert soft == hard
    assert soft >= before[0]
    assert take_files.__doc__
