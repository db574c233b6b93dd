"""Capturing machines that live on: what their clones have, and what neither has of the other."""

import asyncio
import os
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.engine.base import Frozen, Machine, MachineSpec, MachineType
from hutch.engine.qemu import QemuEngine
from hutch.guest.base import Guest
from hutch.images.base import Image, Kernel
from tests.vm.workshop import (
    SIZE,
    NewClone,
    Template,
    build,
    clone_spec,
    cloned,
    new_engine,
    sh,
)

DIRTY = "mkdir -p /tmp/ram && mount -t tmpfs -o size=100m none /tmp/ram"
FILL = "head -c 67108864 /dev/urandom > /tmp/ram/file; md5sum < /tmp/ram/file"


@pytest.fixture(scope="module")
def workshop() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="h-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def template(workshop: Path, kernel: Kernel, busybox: Image) -> Template:
    return asyncio.run(build(workshop, kernel, busybox, MachineType.MICROVM))


@pytest.fixture
async def engine(template: Template) -> AsyncIterator[QemuEngine]:
    """An engine that leaves no descriptor."""
    descriptors = len(os.listdir("/proc/self/fd"))
    made = new_engine()
    yield made
    await made.drop(template.frozen)
    assert len(os.listdir("/proc/self/fd")) <= descriptors


@pytest.fixture
def new_clone(short_tmp: Path, engine: QemuEngine, template: Template) -> NewClone:
    def make(name: str) -> MachineSpec:
        return clone_spec(engine, template, short_tmp, name)

    return make


def child_spec(engine: QemuEngine, source: MachineSpec, directory: Path, name: str) -> MachineSpec:
    """Return the spec of a clone with a disk of its own over the source's."""
    root, disk = source.drives
    path = directory / f"{name}.qcow2"
    engine.create_disk(path, SIZE, disk.path, "qcow2")
    return replace(
        source,
        id=name,
        drives=[root, replace(disk, path=path, layers=[disk.path, *disk.layers])],
        directory=directory / "vm" / name,
        console_log=directory / f"{name}.log",
        uid=None if source.uid is None else source.uid + 100,
        freezable=False,
    )


def over(spec: MachineSpec, path: Path) -> MachineSpec:
    """Return what a machine's spec has become when it was given another disk."""
    root, disk = spec.drives
    return replace(spec, drives=[root, replace(disk, path=path, layers=[disk.path, *disk.layers])])


async def captured(
    engine: QemuEngine, machine: Machine, spec: MachineSpec, directory: Path, name: str
) -> tuple[Frozen, MachineSpec, MachineSpec]:
    """Capture a machine, whose disk becomes a new one; return its spec and that of a clone."""
    following = directory / f"{name}-next.qcow2"
    engine.create_disk(following, SIZE, spec.drives[1].path, "qcow2")
    child = child_spec(engine, spec, directory, name)
    frozen = await engine.capture(machine, directory / f"{name}.frozen", next_disk=following)
    return frozen, over(spec, following), child


@asynccontextmanager
async def running(
    engine: QemuEngine, spec: MachineSpec, frozen: Frozen
) -> AsyncIterator[tuple[Machine, Guest]]:
    """A clone of a captured machine, for the length of the block."""
    async with cloned(engine, spec, Template(frozen, spec, spec.drives[1].path)) as made:
        yield made


async def test_a_running_clone_is_captured_and_lives_on(
    engine: QemuEngine,
    new_clone: NewClone,
    template: Template,
    short_tmp: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "hutch.engine.capture")
    spec = new_clone("source")
    async with AsyncExitStack() as stack:
        machine, source = await stack.enter_async_context(cloned(engine, spec, template))
        digest = await sh(source, f"{DIRTY} && {FILL}")
        assert await sh(source, "echo before > /root/disk; cat /root/disk") == "before\n"
        began = time.monotonic()
        frozen, spec, child = await captured(engine, machine, spec, short_tmp, "child")
        taken = (time.monotonic() - began) * 1000
        print(f"captured in {taken:.0f} ms: {caplog.messages[-1]}")
        assert not await machine.paused()
        assert await sh(source, "md5sum < /tmp/ram/file") == digest
        changed = await sh(source, f"echo source > /root/disk; sync; {FILL}")
        assert changed != digest
        _, first = await stack.enter_async_context(running(engine, child, frozen))
        assert await sh(first, "cat /root/disk; md5sum < /tmp/ram/file") == f"before\n{digest}"
        await sh(first, "echo child > /root/disk; echo 1 > /tmp/ram/own; sync")
        # Whoever comes late gets the same moment, not what the others have made of it.
        late = child_spec(engine, replace(spec, drives=over_less(child)), short_tmp, "late")
        late_machine, second = await stack.enter_async_context(running(engine, late, frozen))
        assert await sh(second, "cat /root/disk; ls /tmp/ram; md5sum < /tmp/ram/file") == (
            f"before\nfile\n{digest}"
        )
        # The clone of a clone of a clone.
        await sh(second, "echo late > /root/disk; echo 2 > /tmp/ram/own")
        again, _, grandchild = await captured(engine, late_machine, late, short_tmp, "grandchild")
        _, third = await stack.enter_async_context(running(engine, grandchild, again))
        assert await sh(third, "cat /root/disk /tmp/ram/own; md5sum < /tmp/ram/file") == (
            f"late\n2\n{digest}"
        )
        assert await sh(source, "cat /root/disk; md5sum < /tmp/ram/file") == f"source\n{changed}"
        assert await sh(first, "cat /root/disk /tmp/ram/own") == "child\n1\n"
        await engine.drop(frozen)
        await engine.drop(again)
    pauses = [float(ms) for ms in re.findall(r"still for ([\d.]+) ms", caplog.text)]
    assert len(pauses) == 2
    assert max(pauses) < 500


def over_less(spec: MachineSpec) -> list[object]:
    """Return the drives of what a spec is a child of."""
    root, disk = spec.drives
    return [root, replace(disk, path=disk.layers[0], layers=disk.layers[1:])]
