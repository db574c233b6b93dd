"""Network namespaces for tests: what needs one is made here, and gone with the test."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from hutch.errors import from_json
from hutch.network import channel, tap
from hutch.network.ability import lacking
from hutch.network.channel import Values
from hutch.network.netd import namespace
from hutch.network.netd.process import arguments
from tests.unit.network.guest_frames import DEADLINE, Guest

T = TypeVar("T")

_lacking = "these tests need root" if os.geteuid() else (found := lacking()) and found.why

needs_taps = pytest.mark.skipif(
    _lacking is not None, reason=f"NO TAPS HERE, SO THE NETWORK IS NOT TESTED: {_lacking}"
)
"""For what makes TAPs and namespaces."""


def in_namespace(work: Callable[[], T]) -> T:
    """Run something in a network namespace of its own, with which what it made there ends."""
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            namespace.make(user=False)  # of this thread only
            results.append(work())
        except BaseException as failure:  # noqa: BLE001 - raised below
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


class Netd:
    """A netd of its own, spoken to by plain blocking calls."""

    def __init__(
        self,
        directory: Path,
        *,
        net: int | None = None,
        device: Path = tap.DEVICE,
        state: Path | None = None,
    ) -> None:
        """`state` is where it keeps its namespace, if not beside its socket."""
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.places: list[Place] = []
        listener = channel.listen(directory / "netd.sock")
        argv = [sys.executable, "-m", "hutch.network.netd"]
        argv += arguments(listener.fileno(), state or directory, net=net, device=device)
        inherited = (listener.fileno(),) if net is None else (listener.fileno(), net)
        self.process = subprocess.Popen(argv, pass_fds=inherited, cwd="/")
        listener.close()
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.control.settimeout(DEADLINE)
        self.control.connect(str(directory / "netd.sock"))

    def call(self, method: str, values: Values | None = None) -> tuple[Values, list[int]]:
        """Ask for something. Raises HutchError."""
        body = json.dumps({"id": 1, "method": method, "values": values or {}, "fds": 0}).encode()
        self.control.sendall(len(body).to_bytes(4) + body)
        data, fds, _, _ = socket.recv_fds(self.control, 1 << 20, 16)
        while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4]):
            data += self.control.recv(1 << 20)
        answer = json.loads(data[4:])
        if "error" in answer:
            raise from_json(answer["error"])
        return answer["values"], fds

    def create(self, sandbox_id: str) -> "Place":
        """Make a TAP."""
        values, fds = self.call("create", {"sandbox_id": sandbox_id})
        place = Place(values["interface"], values["ifindex"], Guest(fds[0]), fds[1:])
        self.places.append(place)
        return place

    def close(self) -> None:
        """End it, and all that was made with it."""
        for place in self.places:
            place.close()
            place.guest.close()
        self.control.close()
        self.process.kill()
        self.process.wait()
        namespace.unpin(self.directory / "ns")


class Place:
    """A TAP: its guest, and the sockets that answer on it, which do not block."""

    def __init__(self, interface: str, ifindex: int, guest: Guest, fds: list[int]) -> None:
        self.interface, self.ifindex, self.guest = interface, ifindex, guest
        self.tcp, self.dns, self.sntp = (socket.socket(fileno=fd) for fd in fds)
        self.accepted: list[socket.socket] = []

    def accept(self) -> socket.socket | None:
        """The next connection, if there is one."""
        try:
            sock, _ = self.tcp.accept()
        except BlockingIOError:
            return None
        sock.settimeout(DEADLINE)
        self.accepted.append(sock)
        return sock

    def close(self) -> None:
        """Close the sockets; the TAP is the guest's."""
        for sock in (self.tcp, self.dns, self.sntp, *self.accepted):
            sock.close()

    def untouched(self) -> bool:
        """Tell whether nothing at all has reached the sockets."""
        reached = self.accept() is not None
        for sock in (self.dns, self.sntp):
            with contextlib.suppress(BlockingIOError):
                sock.recv(1)
                reached = True
        return not reached


def links_of(process: int) -> list[str]:
    """The names of the interfaces in a process's network namespace."""
    lines = Path(f"/proc/{process}/net/dev").read_text().splitlines()[2:]
    return [line.partition(":")[0].strip() for line in lines]


def host_state() -> list[str]:
    """All of this thread's network that must not change by what is done in other namespaces."""
    commands = ("nft list ruleset", "ip addr", "ip route show table all", "ip rule", "ip link")
    found = [
        subprocess.run(command.split(), capture_output=True, check=True).stdout.decode()
        for command in commands
    ]
    for path in sorted(Path("/proc/sys/net/ipv4").rglob("*")):
        with contextlib.suppress(OSError):
            if path.is_file() and "usage" not in path.name:
                found.append(f"{path}={path.read_text()}")
    return found
