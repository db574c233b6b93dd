"""The command line, to the byte: golden files hold one argument a line."""

import dataclasses
import os
from itertools import pairwise
from pathlib import Path

import pytest

from hutch.engine.argv import Descriptors, DriveDescriptors, build_argv, guest_cmdline
from hutch.engine.base import Accelerator, BootFiles, Drive, MachineSpec, MachineType

GOLDEN = Path(__file__).with_name("golden")

SPEC = MachineSpec(
    id="sb_1a2b",
    boot=BootFiles(Path("/never/shown/vmlinux"), Path("/never/shown/initramfs")),
    cpus=2,
    memory=512 << 20,
    drives=[
        Drive("root", Path("/never/shown/root"), read_only=True),
        Drive("overlay", Path("/never/shown/overlay"), "qcow2", backing=Path("/never/shown/base")),
    ],
    directory=Path("/never/shown"),
    console_log=Path("/never/shown/log"),
    machine=MachineType.MICROVM,
    accelerator=Accelerator.TCG,
    tsc_khz=2_599_980,
    uid=2_000_000,
    cmdline=("hutch.test=1",),
)
FDS = Descriptors(
    kernel=10,
    initramfs=11,
    qmp=12,
    console=13,
    agent=14,
    drives=[DriveDescriptors(15), DriveDescriptors(16, 17, twin=21)],
)
CLONE = dataclasses.replace(
    SPEC,
    id="sb_3c4d",
    drives=[
        SPEC.drives[0],
        dataclasses.replace(
            SPEC.drives[1], layers=[Path("/never/shown/1"), Path("/never/shown/2")]
        ),
    ],
)
CLONE_FDS = dataclasses.replace(
    FDS,
    kernel=None,
    initramfs=None,
    memory=18,
    drives=[DriveDescriptors(15), DriveDescriptors(16, 17, [19, 20], 21)],
)
CASES = {
    "microvm-tcg": (SPEC, True),
    "q35-kvm": (
        dataclasses.replace(
            SPEC, machine=MachineType.Q35, accelerator=Accelerator.KVM, tsc_khz=None, cmdline=()
        ),
        True,
    ),
    "microvm-unjailed": (SPEC, False),
    "microvm-freezable": (SPEC, True),
    "microvm-clone": (CLONE, True),
    "microvm-network": (dataclasses.replace(SPEC, tap=22), True),
}
HANDED = {
    "microvm-freezable": dataclasses.replace(FDS, memory=18),
    "microvm-clone": CLONE_FDS,
    "microvm-network": dataclasses.replace(FDS, tap=22),
}


@pytest.mark.parametrize("name", CASES)
def test_argv_is_golden(name: str) -> None:
    spec, jail = CASES[name]
    fds = HANDED.get(name, FDS)
    argv = build_argv("/usr/bin/qemu-system-x86_64", spec, fds, jail=jail)
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("HUTCH_TEST_UPDATE_GOLDEN"):
        golden.write_text("\n".join(argv) + "\n")
    assert argv == golden.read_text().splitlines()


def test_qemu_is_told_no_path() -> None:
    argv = build_argv("qemu", SPEC, FDS, jail=True)
    assert not [word for word in argv if "/never/shown" in word]


def test_no_two_devices_share_an_address() -> None:
    argv = build_argv("qemu", SPEC, FDS, jail=True)
    addresses = [part for word in argv for part in word.split(",") if part.startswith("addr=")]
    assert len(addresses) == len(set(addresses)) > 8


def test_a_clone_has_the_devices_of_what_it_is_cloned_from() -> None:
    # Block nodes, descriptors and the way it begins differ: no state is kept of them.
    booted = build_argv("qemu", SPEC, dataclasses.replace(FDS, memory=18), jail=True)
    cloned = build_argv("qemu", CLONE, CLONE_FDS, jail=True)

    def options(argv: list[str], name: str) -> list[str]:
        return [value for word, value in pairwise(argv) if word == name]

    for name in ("-machine", "-cpu", "-smp", "-m", "-device", "-accel", "-rtc"):
        assert options(booted, name) == options(cloned, name) != []
    assert not {"-kernel", "-initrd", "-append"} & set(cloned)


def test_a_clone_only_reads_what_it_shares() -> None:
    cloned = build_argv("qemu", CLONE, CLONE_FDS, jail=True)
    shared = [word for word in cloned if "layer" in word or "-base" in word]
    top = [word for word in shared if "node-name=drive1," in word]
    assert len(shared) == 7
    assert len(top) == 1
    assert all("read-only=on" in word for word in shared if word not in top)
    assert any("mem-path=/proc/self/fd/18,share=off" in word for word in cloned)


def test_too_many_layers_are_refused() -> None:
    files = [FDS.drives[0], DriveDescriptors(16, 17, [19] * 33)]
    with pytest.raises(ValueError, match="32 layers"):
        build_argv("qemu", SPEC, dataclasses.replace(FDS, drives=files), jail=True)


def test_a_comma_cannot_add_an_option() -> None:
    drive = dataclasses.replace(SPEC.drives[0], serial="root,write-cache=off")
    spec = dataclasses.replace(SPEC, id="a,process=b", drives=[drive])
    fds = dataclasses.replace(FDS, drives=FDS.drives[:1])
    argv = build_argv("qemu", spec, fds, jail=True)
    assert "guest=a,,process=b,debug-threads=on" in argv
    assert any("serial=root,,write-cache=off," in word for word in argv)


def test_a_qcow2_without_a_base_is_refused() -> None:
    # QEMU would follow the path in its header.
    drive = Drive("overlay", Path("x"), "qcow2")
    spec = dataclasses.replace(SPEC, drives=[drive])
    fds = dataclasses.replace(FDS, drives=[DriveDescriptors(15)])
    with pytest.raises(ValueError, match="overlay"):
        build_argv("qemu", spec, fds, jail=True)


def test_too_many_drives_are_refused() -> None:
    spec = dataclasses.replace(SPEC, drives=[SPEC.drives[0]] * 9)
    fds = dataclasses.replace(FDS, drives=[DriveDescriptors(15)] * 9)
    with pytest.raises(ValueError, match="9 drives"):
        build_argv("qemu", spec, fds, jail=True)


def test_the_guest_trusts_only_a_measured_tsc() -> None:
    assert "tsc_early_khz=2599980 tsc=reliable" in guest_cmdline(SPEC)
    unmeasured = guest_cmdline(dataclasses.replace(SPEC, tsc_khz=None))
    assert "tsc" not in unmeasured


def test_mitigations_stay_on_under_kvm() -> None:
    assert "mitigations=off" in guest_cmdline(SPEC)
    kvm = dataclasses.replace(SPEC, accelerator=Accelerator.KVM)
    assert "mitigations" not in guest_cmdline(kvm)
