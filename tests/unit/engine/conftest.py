"""Settings, files and specs for engines that boot nothing, and a stand-in for QEMU."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hutch.engine.base import Accelerator, BootFiles, Drive, MachineSpec, MachineType
from hutch.settings import Settings, load_settings

STAND_IN = Path(__file__).with_name("stand_in.py")
NewStandIn = Callable[[str], Settings]


@pytest.fixture
def boot_files(short_tmp: Path) -> BootFiles:
    files = BootFiles(short_tmp / "vmlinux", short_tmp / "initramfs")
    files.kernel.write_bytes(b"\x7fELF kernel")
    files.initramfs.write_bytes(b"070701 initramfs")
    return files


@pytest.fixture
def new_spec(short_tmp: Path, boot_files: BootFiles) -> Callable[[str], MachineSpec]:
    """Return what makes a spec, given the machine's name."""
    root, base = short_tmp / "root.img", short_tmp / "base.raw"
    root.write_bytes(b"root")
    base.write_bytes(bytes(4096))

    def make(name: str) -> MachineSpec:
        overlay = short_tmp / f"{name}.qcow2"
        overlay.touch()
        return MachineSpec(
            id=name,
            boot=boot_files,
            cpus=1,
            memory=128 << 20,
            drives=[
                Drive("root", root, read_only=True),
                Drive("overlay", overlay, "qcow2", backing=base),
            ],
            directory=short_tmp / "vm" / name,
            console_log=short_tmp / f"{name}.log",
            machine=MachineType.MICROVM,
            accelerator=Accelerator.TCG,
            tsc_khz=2_600_000,
        )

    return make


@pytest.fixture
def stand_in(short_tmp: Path) -> NewStandIn:
    """Return what makes settings whose QEMU is the stand-in, in the given mode."""

    def make(mode: str) -> Settings:
        program = short_tmp / f"qemu-{mode}"
        if not program.exists():
            program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {STAND_IN} {mode} "$@"\n')
        program.chmod(0o755)
        return load_settings({"qemu": str(program)}, os.environ)

    return make
