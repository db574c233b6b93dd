"""Large files in both directions: `hutch cp` against the raw channel, and what memory it takes.

The raw channel is the same bytes through the same kind of port, between the same agent and a client
that does nothing but the protocol's framing. Each round copies a file of random bytes that nobody
has seen before in, and out again; that it comes back the same proves where both directions ended.
"""

import hashlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench import bare
from tests.bench.agent import AgentClient
from tests.bench.lab import Lab, pause, resident
from tests.bench.samples import Check, Measured, Series, alternate, ratio
from tests.harness.hutch import COMMAND

_RATE_LIMIT = 0.7
_MEMORY_LIMIT = 32.0
_BLOCK = 64 << 10
_MIB = 1 << 20
_TARGET = "/root/bench.bin"


class _Rates:
    """Takes rates in MB/s, both directions in one round trip of a file."""

    def __init__(self, lab: Lab, scratch: Path, size: int) -> None:
        self._lab = lab
        self._size = size
        self.source = scratch / "source"
        self._back = scratch / "back"
        self.inward: dict[str, list[float]] = {"raw": [], "hutch": []}
        self.outward: dict[str, list[float]] = {"raw": [], "hutch": []}
        self.daemon_growth: list[float] = []
        self.cli_growth: list[float] = []

    def raw(self, agent: AgentClient) -> float:
        """Send a file in and fetch it back over the raw protocol."""
        digest = self._renew()
        with open(self.source, "rb", buffering=0) as source:
            started = time.monotonic()
            agent.write(_TARGET, iter(lambda: source.read(_BLOCK), b""))
            inward = time.monotonic() - started
        with open(self._back, "wb", buffering=0) as back:
            started = time.monotonic()
            for block in agent.read(_TARGET):
                back.write(block)
            outward = time.monotonic() - started
        agent.call("fs.remove", path=_TARGET.encode())
        return self._note("raw", digest, inward, outward)

    def hutch(self, name: str, idle: int) -> float:
        """Copy a file in and out with `hutch cp`; `idle` is what its process takes for nothing."""
        digest = self._renew()
        before = resident(self._lab.daemon.pid)
        seconds = []
        for args in (
            (str(self.source), f"{name}:{_TARGET}"),
            (f"{name}:{_TARGET}", str(self._back)),
        ):
            wall, daemon, cli = watched_copy(self._lab, *args)
            seconds.append(wall)
            self.daemon_growth.append((daemon - before) / _MIB)
            self.cli_growth.append((cli - idle) / _MIB)
        self._lab.command("exec", name, "rm", _TARGET)
        return self._note("hutch", digest, *seconds)

    def _renew(self) -> str:
        self._back.unlink(missing_ok=True)
        digest = hashlib.sha256()
        with open(self.source, "wb") as file:
            for block in _random_blocks(self._size):
                digest.update(block)
                file.write(block)
        return digest.hexdigest()

    def _note(self, who: str, digest: str, inward: float, outward: float) -> float:
        with open(self._back, "rb") as back:
            came_back = hashlib.file_digest(back, "sha256").hexdigest()
        assert came_back == digest, f"{who}: another file came back than was sent"
        self.inward[who].append(self._size / inward / 1e6)
        self.outward[who].append(self._size / outward / 1e6)
        return inward + outward


def large_files(lab: Lab) -> Measured:
    """Measure copies of 1 GiB (32 MiB in a quick run)."""
    size = lab.rounds(1024, 32) * _MIB
    with lab.sandbox() as info, bare.boot(lab.recipe(info)) as machine:
        machine.make_ready(lab.store.busybox.rootfs.fstype)
        with tempfile.TemporaryDirectory(dir=lab.hutch.home) as scratch:
            rates = _Rates(lab, Path(scratch), size)
            idle = _idle_copy(lab, info.name, Path(scratch))
            takers = {
                "raw": lambda: rates.raw(machine.agent),
                "hutch": lambda: rates.hutch(info.name, idle),
            }
            alternate(takers, lab.rounds(2, 1))
    series = {
        (who, way): Series(f"{who}, {way} the VM", "MB/s", rate[who])
        for way, rate in (("into", rates.inward), ("out of", rates.outward))
        for who in ("raw", "hutch")
    }
    daemon = Series("daemon's memory above idle, largest", "MiB", rates.daemon_growth)
    cli = Series("hutch cp's memory above that of an empty copy, largest", "MiB", rates.cli_growth)
    checks = [
        ratio(f"cp {way} the VM, of the raw channel", series["hutch", way], series["raw", way],
              _RATE_LIMIT, at_most=False)
        for way in ("into", "out of")
    ]  # fmt: skip
    checks += [Check(it.name, max(it.samples), _MEMORY_LIMIT, "MiB") for it in (daemon, cli)]
    return Measured(
        f"`hutch cp` of {size // _MIB} MiB",
        [*series.values(), daemon, cli],
        checks,
        "Random bytes, from and to files of the host and the guest's root file system, on both "
        "sides alike; each file was compared after its way in and out.",
    )


def watched_copy(lab: Lab, source: str, target: str) -> tuple[float, int, int]:
    """Run `hutch cp`; return its seconds, and the largest sizes of the daemon and of itself."""
    argv = [str(COMMAND), "cp", source, target]
    daemon, own = 0, 0
    started = time.monotonic()
    child = subprocess.Popen(
        argv, env=lab.hutch.env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while child.poll() is None:
        daemon = max(daemon, resident(lab.daemon.pid))
        own = max(own, resident(child.pid, peak=True))
        pause()
    wall = time.monotonic() - started
    _, problem = child.communicate()
    assert child.returncode == 0, (argv, problem)
    return wall, daemon, own


def _idle_copy(lab: Lab, name: str, scratch: Path) -> int:
    """Return the size of `hutch cp` when there is nothing to copy."""
    empty = scratch / "empty"
    empty.touch()
    sizes = [watched_copy(lab, str(empty), f"{name}:/root/empty")[2] for _ in range(3)]
    return max(sizes)


def _random_blocks(size: int) -> Iterator[bytes]:
    for _ in range(size // _BLOCK):
        yield os.urandom(_BLOCK)
