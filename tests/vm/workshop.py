"""Machines frozen by the engine alone, and clones of them: for tests below the daemon."""

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hutch.engine.accel import estimate_tsc_khz
from hutch.engine.base import (
    Accelerator,
    BootFiles,
    Drive,
    ExitKind,
    Frozen,
    Machine,
    MachineSpec,
    MachineType,
)
from hutch.engine.qemu import QemuEngine
from hutch.guest.base import Guest, GuestExec, Identity, Output
from hutch.guest.session import connect_guest
from hutch.images.base import Image, Kernel, RootFs
from hutch.images.disk import base_disk
from hutch.settings import load_settings

UID = 2_000_000 if os.geteuid() == 0 else None
SIZE = 1 << 30
NewClone = Callable[[str], MachineSpec]


@dataclass(frozen=True, slots=True)
class Template:
    """A machine frozen with its root and its writable disk mounted, and what it was made of."""

    frozen: Frozen
    spec: MachineSpec
    disk: Path
    rootfs: RootFs | None = None


async def build(
    directory: Path,
    kernel: Kernel,
    busybox: Image,
    board: MachineType,
    cpus: int = 1,
    tap: int | None = None,
) -> Template:
    engine = new_engine()
    base = await base_disk(directory / "home", SIZE)
    disk = directory / "template.qcow2"
    engine.create_disk(disk, SIZE, base)
    spec = MachineSpec(
        id="template",
        boot=BootFiles(kernel.vmlinux, kernel.initramfs),
        cpus=cpus,
        memory=256 << 20,
        drives=[
            Drive("root", busybox.rootfs.path, read_only=True),
            Drive("overlay", disk, "qcow2", backing=base),
        ],
        directory=directory / "vm",
        console_log=directory / "template.log",
        machine=board,
        accelerator=Accelerator.TCG,
        tsc_khz=estimate_tsc_khz(),
        uid=UID,
        freezable=True,
        tap=tap,
    )
    machine = await engine.boot(spec)
    guest = await set_up(machine, busybox.rootfs)
    await guest.files.write("/root/before", chunks(b"the freeze\n"))
    await guest.close()
    began = time.monotonic()
    frozen = await engine.freeze(machine, directory / "frozen")
    print(
        f"freeze {(time.monotonic() - began) * 1000:.0f} ms, "
        f"state {frozen.state.stat().st_size >> 10} KiB, "
        f"memory {frozen.image.stat().st_blocks >> 11} MiB"
    )
    assert (await machine.wait()).kind is ExitKind.KILLED
    assert engine.frozen_memory(frozen) > 16 << 20
    await engine.drop(frozen)
    assert engine.frozen_memory(frozen) == 0
    return Template(frozen, spec, disk, busybox.rootfs)


async def set_up(machine: Machine, rootfs: RootFs | None) -> Guest:
    """Bring a machine that boots to where programs run in it."""
    assert rootfs is not None
    guest = await connect_guest(machine.agent_socket, timeout=90)
    await guest.mount_root("root", rootfs.fstype)
    await guest.mount_overlay("overlay")
    await guest.identify(identity("template"))
    return guest


def new_engine() -> QemuEngine:
    return QemuEngine(load_settings({"accelerator": "tcg"}))


def clone_spec(engine: QemuEngine, template: Template, directory: Path, name: str) -> MachineSpec:
    overlay = directory / f"{name}.qcow2"
    engine.create_disk(overlay, SIZE, template.disk, "qcow2")
    root, disk = template.spec.drives
    return replace(
        template.spec,
        id=name,
        drives=[root, replace(disk, path=overlay, layers=[template.disk])],
        directory=directory / "vm" / name,
        console_log=directory / f"{name}.log",
        uid=None if UID is None else UID + 1 + len(list(directory.glob("*.qcow2"))),
        freezable=False,
    )


def identity(name: str) -> Identity:
    return Identity(
        name, name.encode().hex().ljust(32, "0")[:32], os.urandom(64), os.urandom(16), 1
    )


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def sh(guest: Guest, script: str) -> str:
    stream = await guest.start_exec(GuestExec(id=os.urandom(8).hex(), argv=["sh", "-c", script]))
    text = b""
    async for event in stream:
        if isinstance(event, Output):
            text += event.data
            stream.ack(event.channel, len(event.data))
    await stream.close()
    return text.decode()


@asynccontextmanager
async def cloned(
    engine: QemuEngine, spec: MachineSpec, template: Template
) -> AsyncIterator[tuple[Machine, Guest]]:
    """A clone with an identity of its own, for the length of the block."""
    began = time.monotonic()
    machine = await engine.clone(spec, template.frozen)
    try:
        running = time.monotonic()
        guest = await connect_guest(machine.agent_socket, timeout=60)
        answered = time.monotonic()
        assert await guest.identify(identity(spec.id))
        known = time.monotonic()
        print(
            f"{spec.id}: running {(running - began) * 1000:.0f} ms, first answer "
            f"{(answered - began) * 1000:.0f} ms, identity {(known - began) * 1000:.0f} ms"
        )
        try:
            yield machine, guest
        finally:
            await guest.close()
    finally:
        await machine.kill()
