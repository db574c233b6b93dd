"""Freezing and cloning with real machines: what a clone has, what it lacks, what it may not do."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.engine.base import (
    ExitKind,
    Frozen,
    MachineRecord,
    MachineSpec,
    MachineType,
)
from hutch.engine.qemu import QemuEngine
from hutch.errors import EngineError
from hutch.guest.session import connect_guest
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
from tests.waiting import until

INTRUDER = """
import errno, fcntl, mmap, os, sys
def attempt(work):
    try:
        work()
        print("allowed")
    except OSError as cause:
        print(errno.errorcode[cause.errno])
if uid := int(sys.argv[1]):
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
for path in sys.argv[2:]:
    fd = os.open(path, os.O_RDWR)
    print("opened")
    attempt(lambda: os.write(fd, b"x"))
    attempt(lambda: os.ftruncate(fd, 0))
    attempt(lambda: os.ftruncate(fd, 1 << 40))
    attempt(lambda: mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE))
    attempt(lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE))
"""
"""Run as the machine's user: what it can do with the memory that it has open."""


@pytest.fixture(scope="module")
def workshop() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="h-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def template(workshop: Path, kernel: Kernel, busybox: Image) -> Template:
    """Built once: every test loads it from disk, as a daemon does after a restart."""
    return asyncio.run(build(workshop, kernel, busybox, MachineType.MICROVM))


@pytest.fixture
async def engine(template: Template) -> AsyncIterator[QemuEngine]:
    made = new_engine()
    yield made
    await made.drop(template.frozen)


@pytest.fixture
def new_clone(short_tmp: Path, engine: QemuEngine, template: Template) -> NewClone:
    """Return what makes the spec of a clone with a disk of its own."""

    def make(name: str) -> MachineSpec:
        return clone_spec(engine, template, short_tmp, name)

    return make


async def test_two_clones_at_once_are_two_machines(
    engine: QemuEngine, new_clone: NewClone, template: Template
) -> None:
    before = template.disk.read_bytes()
    async with AsyncExitStack() as stack:
        _, a = await stack.enter_async_context(cloned(engine, new_clone("a"), template))
        _, b = await stack.enter_async_context(cloned(engine, new_clone("b"), template))
        for guest, name in ((a, "a"), (b, "b")):
            assert await sh(guest, f"cat /root/before; echo {name} > /root/own; sync") == (
                "the freeze\n"
            )
        assert await sh(a, "hostname; cat /root/own; ls /root") == "a\na\nbefore\nown\n"
        assert await sh(b, "hostname; cat /root/own; ls /root") == "b\nb\nbefore\nown\n"
        draw = "head -c 16 /dev/urandom | md5sum; cat /proc/sys/kernel/random/uuid /etc/machine-id"
        first, second = (await sh(a, draw)).split(), (await sh(b, draw)).split()
        assert len(first) == 4
        assert first[0] != second[0]
        assert first[2:] != second[2:]
        assert {first[2], first[3]}.isdisjoint(second)
    assert template.disk.read_bytes() == before
    # What a clone wrote reached neither the template's memory nor its disk.
    async with cloned(engine, new_clone("c"), template) as (_, c):
        assert await sh(c, "ls /root") == "before\n"


async def test_a_clone_from_memory_is_quick(
    engine: QemuEngine, new_clone: NewClone, template: Template
) -> None:
    async with cloned(engine, new_clone("load"), template):
        assert engine.frozen_memory(template.frozen) > 16 << 20
    for number in range(3):
        async with cloned(engine, new_clone(f"warm-{number}"), template) as (machine, guest):
            await guest.ping()
            # A cold boot takes seconds.
            assert machine.cpu_seconds() < 1


async def test_a_clone_cannot_write_into_the_memory_of_all(
    engine: QemuEngine, new_clone: NewClone, template: Template
) -> None:
    spec = new_clone("a")
    async with cloned(engine, spec, template) as (machine, _):
        fds = Path(f"/proc/{machine.record.process.pid}/fd")
        memory = [str(fd) for fd in fds.iterdir() if "hutch-memory" in os.readlink(fd)]
        assert memory
        intruder = subprocess.run(
            [sys.executable, "-S", "-c", INTRUDER, str(spec.uid or 0), *memory],
            capture_output=True,
            text=True,
            check=True,
        )
        assert intruder.stdout.split() == ["opened", *["EPERM"] * 5] * len(memory)


async def test_a_clone_is_adopted_after_a_restart(
    engine: QemuEngine, new_clone: NewClone, template: Template
) -> None:
    machine = await engine.clone(new_clone("a"), template.frozen)
    await machine.release()
    record = MachineRecord.from_json(machine.record.to_json())
    again = new_engine()
    adopted = await again.adopt(record)
    assert adopted is not None
    guest = await connect_guest(adopted.agent_socket, timeout=60)
    assert await sh(guest, "cat /root/before") == "the freeze\n"
    await guest.close()
    assert (await adopted.kill()).kind is ExitKind.KILLED
    assert not list(record.directory.iterdir())


async def test_a_clone_outlives_its_template(
    engine: QemuEngine, new_clone: NewClone, template: Template
) -> None:
    async with cloned(engine, new_clone("a"), template) as (_, guest):
        await engine.drop(template.frozen)
        assert await sh(guest, "find / -xdev | wc -l; cat /root/before") != ""
        assert engine.frozen_memory(template.frozen) == 0


@pytest.mark.parametrize("harm", ["truncated state", "no state", "short memory", "other layout"])
async def test_a_template_that_does_not_load_says_so_and_leaves_nothing(
    engine: QemuEngine, new_clone: NewClone, template: Template, short_tmp: Path, harm: str
) -> None:
    spec = new_clone("a")
    frozen = Frozen(short_tmp / "copy", template.frozen.memory)
    shutil.copytree(template.frozen.directory, frozen.directory)
    match harm:
        case "truncated state":
            os.truncate(frozen.state, frozen.state.stat().st_size // 2)
        case "no state":
            frozen.state.unlink()
        case "short memory":
            os.truncate(frozen.image, frozen.memory // 2)
        case "other layout":
            spec = replace(spec, cpus=2)
    with pytest.raises(EngineError) as caught:
        await engine.clone(spec, frozen)
    await engine.drop(frozen)
    assert caught.value.code == "engine_failed"
    assert caught.value.details["template"] is True, caught.value
    assert not spec.directory.exists() or not list(spec.directory.iterdir())


async def test_a_clone_that_is_cancelled_at_any_moment_leaves_nothing(
    engine: QemuEngine, new_clone: NewClone, template: Template
) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    for number in range(8):
        spec = new_clone(f"c{number}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.015 * number):
                machine = await engine.clone(spec, template.frozen)
                await machine.kill()
        await engine.discard(spec.directory)
        assert not spec.directory.exists() or not list(spec.directory.iterdir())
    await engine.drop(template.frozen)
    assert len(os.listdir("/proc/self/fd")) <= descriptors


@pytest.mark.parametrize("delay", [0.01, 0.03, 0.05, 0.08])
async def test_a_clone_whose_process_is_killed_leaves_nothing(
    engine: QemuEngine, new_clone: NewClone, template: Template, delay: float
) -> None:
    spec = new_clone("a")
    async with asyncio.TaskGroup() as tasks:
        cloning = tasks.create_task(outcome(engine.clone(spec, template.frozen)))
        await asyncio.wait({cloning}, timeout=delay)
        # As a daemon does that finds what another left.
        await until(lambda: cloning.done() or (spec.directory / "agent.sock").exists())
        await engine.discard(spec.directory)
    match cloning.result():
        case EngineError() as failure:
            assert failure.code == "engine_failed"
            assert "template" not in failure.details, failure
        case machine:
            assert (await machine.wait()).kind in (ExitKind.CRASHED, ExitKind.KILLED)
    assert not list(spec.directory.glob("*"))
    # It was not the template's fault, and did it no harm.
    async with cloned(engine, new_clone("b"), template) as (_, guest):
        assert await sh(guest, "cat /root/before") == "the freeze\n"


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.06])
async def test_a_freeze_whose_process_is_killed_is_whole_or_leaves_nothing(
    engine: QemuEngine, template: Template, short_tmp: Path, delay: float
) -> None:
    disk, directory = short_tmp / "disk.qcow2", short_tmp / "frozen"
    base = template.spec.drives[1].backing
    assert base is not None
    engine.create_disk(disk, SIZE, base)
    drives = [template.spec.drives[0], replace(template.spec.drives[1], path=disk)]
    spec = replace(template.spec, drives=drives, directory=short_tmp / "vm")
    machine = await engine.boot(replace(spec, console_log=short_tmp / "log"))
    async with asyncio.TaskGroup() as tasks:
        freezing = tasks.create_task(outcome(engine.freeze(machine, directory)))
        await asyncio.wait({freezing}, timeout=delay)
        machine.record.process.kill()
    match freezing.result():
        case EngineError():
            assert not list(directory.glob("*"))
        case frozen:
            assert {path.name for path in directory.iterdir()} == {"state", "memory"}
            await engine.drop(frozen)
    assert not list(spec.directory.glob("*"))


async def outcome(work: Awaitable[Any]) -> Any:
    """Return what it returned, or its failure."""
    try:
        return await work
    except EngineError as failure:
        return failure


@pytest.mark.parametrize(
    ("board", "cpus"), [(MachineType.Q35, 1), (MachineType.MICROVM, 2)], ids=["q35", "2 cpus"]
)
async def test_every_board_is_frozen_and_cloned(
    kernel: Kernel, busybox: Image, short_tmp: Path, board: MachineType, cpus: int
) -> None:
    template = await build(short_tmp, kernel, busybox, board, cpus)
    engine = new_engine()
    spec = clone_spec(engine, template, short_tmp, "a")
    async with cloned(engine, spec, template) as (_, guest):
        assert await sh(guest, "nproc; cat /root/before") == f"{cpus}\nthe freeze\n"
    await engine.drop(template.frozen)
