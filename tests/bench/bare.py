"""The bare machine: the very command line that the daemon runs, started by hand. The yardstick.

No daemon, no engine object, no asyncio: descriptors opened, QEMU spawned, its state loaded if it is
a clone, `cont` said, HELLO answered. What Hutch takes longer than this is Hutch's own. The machine
that comes of it also serves the raw round trip and the raw channel.
"""

import array
import asyncio
import dataclasses
import functools
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
from typing import Any

from hutch import process
from hutch.engine import jail
from hutch.engine.argv import Descriptors, build_argv
from hutch.engine.atrest import read_state
from hutch.engine.base import BootFiles, Drive, Frozen, MachineSpec, MachineType, Verdict
from hutch.engine.differences import copy_sparse
from hutch.engine.memories import create_memory
from hutch.engine.qcow2 import create_overlay
from hutch.images import disk
from hutch.images.base import Image, Kernel
from hutch.models import SandboxInfo
from hutch.network import ability
from hutch.network.tap import DEVICE, make
from hutch.service.parts import TEMPLATE_DISK
from hutch.settings import Settings
from tests.bench.agent import AgentClient
from tests.harness.namespaces import Namespace

ROOT, DISK = "hutch-root", "hutch-disk"
_BOOT_LIMIT = 90.0
_POLL = 0.001
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
        self.identify()

    def identify(self) -> str:
        """Send the one frame that makes it a machine of its own; return its new machine id."""
        machine_id = secrets.token_hex(16)
        self.agent.call(
            "identity",
            realtime_ns=time.time_ns(),
            entropy=os.urandom(64),
            hostname="bare",
            machine_id=machine_id.encode(),
            hosts=[["127.0.0.1", "localhost"]],
            nameservers=[],
            generation=1,
            nonce=os.urandom(16),
        )
        return machine_id


@contextmanager
def boot(recipe: Recipe) -> Iterator[BareMachine]:
    """Boot by hand, for the length of the block. Disk and directory are made before the clock."""
    with _scratch() as directory, _card() as tap:
        spec = dataclasses.replace(machine_spec(recipe, directory), tap=tap)
        create_overlay(spec.drives[1].path, recipe.like.disk, _backing(spec))
        with _start(recipe, spec) as machine:
            yield machine


@dataclass(frozen=True, slots=True)
class Template:
    """A template of the daemon, loaded: what a clone by hand is made of."""

    disk: Path
    state: bytes
    memory: int
    """The descriptor of its memory."""


@contextmanager
def template(directory: Path, like: SandboxInfo) -> Iterator[Template]:
    """Have the template in a directory in memory, as the daemon has it, for the block."""
    frozen = Frozen(directory, like.memory)
    memory = create_memory(like.memory)
    try:
        with open(frozen.image, "rb") as image:
            copy_sparse(image.fileno(), memory, like.memory)
        yield Template(directory / TEMPLATE_DISK, read_state(frozen).state, memory)
    finally:
        os.close(memory)


@contextmanager
def clone(recipe: Recipe, template: Template) -> Iterator[BareMachine]:
    """Start a clone by hand, for the length of the block. Its disk is made before the clock."""
    with _scratch() as directory, _card() as tap:
        spec = machine_spec(recipe, directory)
        root, disk = spec.drives
        disk = dataclasses.replace(disk, layers=[template.disk])
        spec = dataclasses.replace(spec, drives=[root, disk], tap=tap)
        create_overlay(disk.path, recipe.like.disk, template.disk, "qcow2")
        with _start(recipe, spec, template) as machine:
            yield machine


@contextmanager
def _scratch() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="bare-", dir="/tmp"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def _card() -> Iterator[int | None]:
    """Make a TAP that leads nowhere, before the clock; None where the daemon has none either."""
    if ability.lacking(DEVICE) is not None or os.geteuid() != 0:
        yield None
        return
    with Namespace() as nowhere:
        tap = nowhere.call(functools.partial(make, "ht0"))
        try:
            nowhere.run("ip", "link", "set", "ht0", "up")
            yield tap
        finally:
            os.close(tap)


@contextmanager
def _start(
    recipe: Recipe, spec: MachineSpec, template: Template | None = None
) -> Iterator[BareMachine]:
    """Start a machine that boots, or one that takes up a template's state."""
    started = time.monotonic()
    memory = None if template is None else template.memory
    with jail.prepare(spec, memory=memory, incoming=template is not None) as handover:
        argv = command_line(recipe, spec, handover.fds)
        child = _spawn(argv, spec, handover.inherited)
        try:
            control = _Control(handover.qmp)
            if template is not None:
                control.load(template.state)
            control("cont")
            # What goes on at once answers the first HELLO; what boots may not have heard it.
            pause = {} if template is None else {"pause": _BOOT_LIMIT}
            socket_path = spec.directory / jail.AGENT_SOCKET
            agent = AgentClient(socket_path, timeout=_BOOT_LIMIT, **pause)
            yield BareMachine(child, agent, time.monotonic() - started)
            agent.close()
        finally:
            child.kill()
            child.wait()
            handover.qmp.close()
            handover.console.close()


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


def assert_same_command_line(machine: BareMachine, like: SandboxInfo) -> None:
    """Check that a machine by hand is started as the daemon has started that sandbox's."""
    assert like.pid is not None
    by_hand, by_daemon = running_shape(machine.child.pid), running_shape(like.pid)
    assert by_hand == by_daemon, (by_hand, by_daemon)


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


class _Control:
    """QMP, one blocking command after the other."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(30.0)
        self._socket = connection
        self._lines = connection.makefile("rb")
        self._lines.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, *, fd: int | None = None, **arguments: Any) -> Any:
        """Run a command, handing over `fd` with it; return its answer."""
        line = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        ancillary = [] if fd is None else [_descriptor(fd)]
        self._socket.sendmsg([line], ancillary)
        while "return" not in (answer := json.loads(self._lines.readline())):
            assert "error" not in answer, answer
        return answer["return"]

    def load(self, state: bytes) -> None:
        """Give a state to a machine that waits for one."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self("getfd", fd=theirs.fileno(), fdname="state")
            theirs.close()
            self("migrate-incoming", uri="fd:state")
            ours.sendall(state)
            ours.shutdown(socket.SHUT_WR)
            while (status := self("query-status")["status"]) == "inmigrate":
                time.sleep(_POLL)
        assert status == "paused", status


def _descriptor(fd: int) -> tuple[int, int, bytes]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]).tobytes()
