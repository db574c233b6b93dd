"""The engine with real machines: the conformance suite, the jail, the console, the canary."""

import asyncio
import os
import re
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.engine.accel import estimate_tsc_khz
from hutch.engine.base import (
    Accelerator,
    BootFiles,
    Drive,
    ExitKind,
    MachineSpec,
    MachineType,
)
from hutch.engine.qemu import QemuEngine
from hutch.errors import EngineError
from hutch.guest.session import connect_guest
from hutch.images.base import Image, Kernel
from hutch.settings import Settings, load_settings
from tests.unit.engine.conformance import EngineConformance, NewSpec
from tests.waiting import until

READY = b"hutch-agent: port open"
UID = 2_000_000 if os.geteuid() == 0 else None


@pytest.fixture
def settings() -> Settings:
    return load_settings({"accelerator": "tcg"})


@pytest.fixture
def engine(settings: Settings) -> QemuEngine:
    return QemuEngine(settings)


@pytest.fixture
def boot_files(kernel: Kernel) -> BootFiles:
    return BootFiles(kernel.vmlinux, kernel.initramfs)


@pytest.fixture
def new_spec(
    short_tmp: Path, engine: QemuEngine, boot_files: BootFiles, busybox: Image
) -> Callable[[str], MachineSpec]:
    base = short_tmp / "base.raw"
    base.write_bytes(bytes(1 << 20))
    count = 0

    def make(name: str) -> MachineSpec:
        nonlocal count
        count += 1
        overlay = short_tmp / f"{name}-{count}.qcow2"
        engine.create_disk(overlay, 1 << 30, base)
        return MachineSpec(
            id=name,
            boot=boot_files,
            cpus=1,
            memory=256 << 20,
            drives=[
                Drive("root", busybox.rootfs.path, read_only=True),
                Drive("overlay", overlay, "qcow2", backing=base),
            ],
            directory=short_tmp / "vm" / name,
            console_log=short_tmp / f"{name}.log",
            machine=MachineType.MICROVM,
            accelerator=Accelerator.TCG,
            tsc_khz=estimate_tsc_khz(),
            uid=UID,
        )

    return make


class TestQemu(EngineConformance):
    pass


async def ready(spec: MachineSpec) -> None:
    """Wait until the agent serves its port."""
    log = spec.console_log
    await until(lambda: log.exists() and READY in log.read_bytes(), timeout=90)


@pytest.mark.parametrize("machine", list(MachineType))
async def test_a_kernel_boots_to_the_agent(
    engine: QemuEngine, new_spec: NewSpec, machine: MachineType
) -> None:
    spec = replace(new_spec("a"), machine=machine)
    vm = await engine.boot(spec)
    await ready(spec)
    assert vm.memory_use() > 32 << 20
    await vm.kill()


async def test_a_guest_is_not_held_up_while_no_daemon_reads_its_console(
    engine: QemuEngine, new_spec: NewSpec
) -> None:
    spec = replace(new_spec("a"), cmdline=("loglevel=8",))
    vm = await engine.boot(spec)
    await vm.release()
    written = spec.console_log.stat().st_size if spec.console_log.exists() else 0
    # The whole boot's messages go nowhere, and the agent comes up all the same.
    guest = await connect_guest(vm.agent_socket, timeout=90)
    await guest.close()
    assert spec.console_log.exists() is (written > 0)
    assert written == 0 or spec.console_log.stat().st_size == written
    adopted = await engine.adopt(vm.record)
    assert adopted is not None
    assert (await adopted.kill()).kind is ExitKind.KILLED


async def test_a_panic_is_told_from_a_reboot(engine: QemuEngine, new_spec: NewSpec) -> None:
    # An init that does not exist is a kernel panic.
    spec = replace(new_spec("a"), cmdline=("rdinit=/no/such/init", "init=/none"))
    vm = await engine.boot(spec)
    async with asyncio.timeout(90):
        assert (await vm.wait()).kind is ExitKind.PANIC


async def test_the_canary_calibrates_the_tsc(
    engine: QemuEngine, boot_files: BootFiles, settings: Settings
) -> None:
    first = await engine.probe(boot_files)
    assert first.accelerator is Accelerator.TCG
    assert first.tsc_khz is not None, first.reason
    again = await QemuEngine(settings).probe(boot_files)
    assert again == first
    second = await engine.probe(boot_files, fresh=True)
    assert second.tsc_khz is not None
    # Two measurements of one counter. They agree to 100 parts per million where nothing else runs,
    # but the tests' host may be busy: then it is enough that both are of the same counter.
    assert abs(second.tsc_khz / first.tsc_khz - 1) < 0.05
    assert not list(settings.runtime_dir.iterdir())


async def test_qemu_can_reach_nothing_but_what_it_was_handed(
    engine: QemuEngine, new_spec: NewSpec
) -> None:
    spec = new_spec("a")
    vm = await engine.boot(spec)
    proc = Path(f"/proc/{vm.record.process.pid}")
    status = proc.joinpath("status").read_text()
    assert re.search(r"^Seccomp:\s*2$", status, re.MULTILINE)
    assert re.search(r"^CapEff:\s*0+$", status, re.MULTILINE) or UID is None
    if UID is not None:
        assert re.search(rf"^Uid:(\s+{UID}){{4}}$", status, re.MULTILINE)
        assert re.search(r"^Groups:\s*$", status, re.MULTILINE)
        assert spec.directory.stat().st_mode & 0o777 == 0o700
    targets = [os.readlink(fd) for fd in proc.joinpath("fd").iterdir()]
    files = {name for name in targets if name.startswith("/") and not name.startswith("/dev/")}
    files = {name for name in files if not name.startswith("/memfd:")}
    handed = [spec.boot.kernel, spec.boot.initramfs]
    for drive in spec.drives:
        handed += [drive.path, *([drive.backing] if drive.backing else [])]
    assert files <= {str(path.resolve()) for path in handed}
    await vm.kill()


async def test_a_kernel_that_only_its_owner_may_read_boots(
    engine: QemuEngine, new_spec: NewSpec, short_tmp: Path
) -> None:
    spec = new_spec("a")
    private = short_tmp / "vmlinux"
    private.write_bytes(spec.boot.kernel.read_bytes())
    private.chmod(stat.S_IRUSR)
    spec = replace(spec, boot=replace(spec.boot, kernel=private))
    vm = await engine.boot(spec)
    await ready(spec)
    await vm.kill()


async def test_a_disk_is_one_machines_own(engine: QemuEngine, new_spec: NewSpec) -> None:
    first, second = new_spec("a"), new_spec("b")
    vm = await engine.boot(first)
    with pytest.raises(EngineError, match="lock"):
        await engine.boot(replace(second, drives=first.drives))
    await vm.kill()


async def test_a_machine_that_qemu_refuses(engine: QemuEngine, new_spec: NewSpec) -> None:
    with pytest.raises(EngineError, match="exit code 1") as caught:
        await engine.boot(replace(new_spec("a"), cpus=100_000))
    assert "CPU" in caught.value.message or "cpus" in caught.value.message
