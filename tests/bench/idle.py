"""The daemon at rest, with VMs running: its memory and its processor time."""

import hashlib
import time

from hutch.models import SandboxInfo
from hutch.sdk import AsyncClient, AsyncSandbox
from tests.bench.lab import Lab, cpu_seconds, pause, resident
from tests.bench.samples import Check, Measured, Series

_MACHINES = 10
_WINDOW = 15.0
_SETTLE = 5.0
_MEMORY_LIMIT = 120.0
_CPU_LIMIT = 0.5
_MIB = 1 << 20


def idle_daemon(lab: Lab) -> Measured:
    """Measure an idle daemon with ten sandboxes (three in a quick run)."""
    count = lab.rounds(_MACHINES, 3)
    made: list[SandboxInfo] = []
    try:
        for _ in range(count):
            made.append(lab.with_client(lambda client: client.create(lab.spec(template=True))))
        _watch(lab, _SETTLE)
        sizes, shares = [], []
        for _ in range(lab.rounds(3, 1)):
            size, share = _watch(lab, _WINDOW)
            sizes.append(size / _MIB)
            shares.append(share * 100)
        lab.with_client(lambda client: _assert_alive(client, made))
    finally:
        for info in made:
            lab.command("rm", "--force", info.name)
    memory = Series("resident size", "MiB", sizes)
    processor = Series("processor time", "% of one CPU", shares)
    return Measured(
        f"Idle daemon with {count} VMs",
        [memory, processor],
        [
            Check("memory of the daemon", memory.median, _MEMORY_LIMIT, "MiB"),
            Check("processor time of the daemon", processor.median, _CPU_LIMIT, "%"),
        ],
        f"Each sample is {_WINDOW:g} s, after {_SETTLE:g} s of rest. All VMs then ran a command.",
    )


def _watch(lab: Lab, seconds: float) -> tuple[int, float]:
    """Return the daemon's largest size (bytes) and its share of a CPU in that time."""
    pid = lab.daemon.pid
    size, before, started = 0, cpu_seconds(pid), time.monotonic()
    assert before > 0, "the kernel keeps no account of processor time"
    while time.monotonic() < started + seconds:
        size = max(size, resident(pid))
        pause()
    return size, (cpu_seconds(pid) - before) / (time.monotonic() - started)


async def _assert_alive(client: AsyncClient, made: list[SandboxInfo]) -> None:
    for info in made:
        box = await AsyncSandbox.connect(info.id, client=client)
        said = await box.commands.run(["cat", "/etc/machine-id"])
        assert said.stdout.strip() == hashlib.sha256(info.id.encode()).hexdigest()[:32], said
