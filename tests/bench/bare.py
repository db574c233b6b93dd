"""The bare boot: the very command line that the daemon runs, started by hand. The yardstick.

No daemon, no engine object, no asyncio: descriptors opened, QEMU spawned, `cont` said, HELLO
answered. What Hutch takes longer than this is Hutch's own. The machine that comes of it also serves
the raw round trip and the raw channel.
"""

import asyncio
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hutch import process
from hutch.engine import jail
from hutch.engine.argv import Descriptors, build_argv
from hutch.engine.base import BootFiles, Drive, MachineSpec, MachineType, Verdict
from hutch.engine.qcow2 import create_overlay
from hutch.images import disk
from hutch.images.base import Image, Kernel
from hutch.models import SandboxInfo
from hutch.settings import Settings
from tests.bench.agent import AgentClient

ROOT, DISK = "hutch-root", "hutch-disk"
_BOOT_LIMIT = 90.0
_NUMBERS = re.compile(r"(?<=fd=)\d+|(?<=/proc/self/fd/)\d+|(?<=guest=)[^,]+")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a bare boot needs, the same as a sandbox of the daemon of `settings` gets."""

    settings: Settings
    kernel: Kernel
    image: Image
    verdict: Verdict
    like: SandboxInfo
    """A sandbox with the sizes to copy."""


class BareMachine:
    """A machine booted by hand, whose agent has answered."""

    def __init__(self, child: "subprocess.Popen[bytes]", agent: AgentClient, seconds: float):
        self.child = child
        self.agent = agent
        self.seconds = seconds
        """From the first descriptor opened to the agent's answer."""

    def make_ready(self, fstype: str) -> None:
        """Mount the disks and give it an identity, so that programs can run."""
        self.agent.call("mount.root", serial=ROOT, fstype=fstype)
        self.agent.call("mount.overlay", serial=DISK, volumes=[], grow=False)
        self.agent.call(
            "identity",
            realtime_ns=time.time_ns(),
            entropy=os.urandom(64),
            hostname="bare",
            machine_id=secrets.token_hex(16).encode(),
            hosts=[["127.0.0.1", "localhost"]],
            nameservers=[],
            generation=1,
            nonce=os.urandom(16),
        )


@contextmanager
def boot(recipe: Recipe) -> Iterator[BareMachine]:
    """Boot by hand, for the length of the block. Disk and directory are made before the clock."""
    directory = Path(tempfile.mkdtemp(prefix="bare-", dir="/tmp"))
    try:
        spec = machine_spec(recipe, directory)
        create_overlay(spec.drives[1].path, recipe.like.disk, _backing(spec))
        started = time.monotonic()
        with jail.prepare(spec) as handover:
            argv = command_line(recipe, spec, handover.fds)
            child = _spawn(argv, spec, handover.inherited)
            try:
                _cont(handover.qmp)
                agent = AgentClient(directory / jail.AGENT_SOCKET, timeout=_BOOT_LIMIT)
                yield BareMachine(child, agent, time.monotonic() - started)
                agent.close()
            finally:
                child.kill()
                child.wait()
                handover.qmp.close()
                handover.console.close()
    finally:
        shutil.rmtree(directory)


def machine_spec(recipe: Recipe, directory: Path) -> MachineSpec:
    """Return the spec that the daemon makes for a sandbox like `recipe.like`."""
    settings, like = recipe.settings, recipe.like
    base = asyncio.run(disk.base_disk(settings.home, like.disk))
    own_uid = os.geteuid() == 0 and settings.jail
    return MachineSpec(
        id=like.id,
        boot=BootFiles(recipe.kernel.vmlinux, recipe.kernel.initramfs),
        cpus=like.cpus,
        memory=like.memory,
        drives=[
            Drive(ROOT, recipe.image.rootfs.path, read_only=True),
            Drive(DISK, directory / "disk.qcow2", "qcow2", backing=base),
        ],
        directory=directory,
        console_log=directory / "console.log",
        machine=MachineType(like.machine or MachineType.MICROVM),
        accelerator=recipe.verdict.accelerator,
        tsc_khz=recipe.verdict.tsc_khz,
        # The last of the range: no sandbox of this run comes as far.
        uid=settings.uid_base + settings.uid_count - 1 if own_uid else None,
    )


def command_line(recipe: Recipe, spec: MachineSpec, fds: Descriptors) -> list[str]:
    """Return the argv of a bare boot."""
    program = process.require(recipe.settings.qemu, "qemu-system-x86")
    return build_argv(program, spec, fds, jail=recipe.settings.jail)


def shape(argv: Sequence[str]) -> list[str]:
    """Return a command line less what differs between any two machines: descriptors and the name.

    What is left must be equal for the daemon's and the bare machine.
    """
    return [_NUMBERS.sub("_", word) for word in argv]


def running_shape(pid: int) -> list[str]:
    """Return the shape of a running machine's command line."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    return shape([os.fsdecode(word) for word in words])


def _backing(spec: MachineSpec) -> Path:
    backing = spec.drives[1].backing
    assert backing is not None
    return backing


def _spawn(
    argv: Sequence[str], spec: MachineSpec, inherited: Sequence[int]
) -> "subprocess.Popen[bytes]":
    user, group = jail.identity(spec.uid, spec.accelerator)
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        pass_fds=inherited,
        user=user,
        group=group,
        extra_groups=[] if user is not None else None,
    )


def _cont(control: socket.socket) -> None:
    """Let the machine run: it waits for this before its first instruction."""
    control.settimeout(30.0)
    with control.makefile("rwb") as lines:
        lines.readline()
        for command in ("qmp_capabilities", "cont"):
            lines.write(json.dumps({"execute": command}).encode() + b"\n")
            lines.flush()
            while "return" not in json.loads(lines.readline()):
                pass
