"""QEMU's command line: a pure function of a machine's spec and of descriptor numbers.

It opens nothing and looks nothing up: equal inputs give equal bytes, which the golden tests pin
down, because the device layout is part of what a frozen machine can be restored onto. Files and
sockets come as descriptors (`jail` opens them), so that QEMU needs access to no path of ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hutch.engine.base import Accelerator, Drive, MachineSpec, MachineType
from hutch.networking import GUEST_MAC

MIB = 1 << 20
AGENT_PORT = "org.hutch.agent.0"
HOTPLUG_PORTS = 4
DRIVE_LIMIT = 8
LAYER_LIMIT = 32

NETWORK_WORD = "hutch.network"
"""Tells the agent that the network card leads somewhere."""

PASSING = "passing"
"""The mark of a file that QEMU is handed to open something once, and is to close then."""

# The cap of QEMU's cache of translated code, in MiB: its default may take a gigabyte, 64 cost
# nothing measurable.
TRANSLATION_CACHE = 64

# Emulation runs a string instruction one element at a time. A CPU that calls its byte-wise ones
# fast has the guest's kernel and libc copy by bytes instead of by words: the agent's port then
# sends a quarter as much.
EMULATED_CPU = "max,-erms,-fsrm"

# Every device has an address of its own, so that adding one never moves another.
_SLOT_PANIC, _SLOT_NIC, _SLOT_RNG, _SLOT_SERIAL, _SLOT_DRIVES, _SLOT_PORTS = 1, 2, 3, 4, 5, 16

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True, slots=True)
class DriveDescriptors:
    """The open file of a drive, that of the raw file behind it, and those in between.

    `twin` is the image of a writable drive once more, for reading only.
    """

    image: int
    backing: int | None = None
    layers: Sequence[int] = ()
    twin: int | None = None


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What QEMU is handed: open files, and sockets that listen.

    A machine without kernel and initramfs waits for a frozen one's state.
    """

    kernel: int | None
    initramfs: int | None
    qmp: int
    console: int
    agent: int
    drives: Sequence[DriveDescriptors]
    memory: int | None = None
    tap: int | None = None


def build_argv(program: str, spec: MachineSpec, fds: Descriptors, *, jail: bool) -> list[str]:
    """Return the argv that runs `spec`, stopped before its first instruction (see `cont`).

    The devices are the same whether it boots or takes up a frozen machine's state. `jail` adds the
    seccomp filter with everything denied. Raises ValueError for drives that cannot be.
    """
    if len(spec.drives) > DRIVE_LIMIT:
        raise ValueError(f"{len(spec.drives)} drives, at most {DRIVE_LIMIT} have an address")
    argv = [program, "-name", f"guest={_value(spec.id)},debug-threads=on"]
    argv += ["-no-user-config", "-nodefaults", "-display", "none", "-S"]
    if jail:
        argv += ["-sandbox", SANDBOX]
    argv += _board(spec)
    argv += _memory(spec, fds)
    # What a machine's state is loaded without: it is taken without it, too.
    argv += ["-global", "migration.send-configuration=off"]
    argv += ["-rtc", "base=utc,clock=host", "-action", "reboot=shutdown,panic=exit-failure"]
    argv += _sockets(fds)
    argv += _origin(spec, fds)
    argv += _devices(fds)
    for index, (drive, files) in enumerate(zip(spec.drives, fds.drives, strict=True)):
        argv += _drive(index, drive, files)
    return argv


def guest_cmdline(spec: MachineSpec) -> str:
    """Return the guest kernel's command line."""
    words = ["console=ttyS0", "quiet", "reboot=t", "panic=-1", "pcie_ports=native"]
    if spec.tsc_khz is not None:
        # Without a rate microvm's kernel calibrates against a PIT that may not be there, and can
        # spin for ever.
        words += [f"tsc_early_khz={spec.tsc_khz}", "tsc=reliable"]
    # The other security modules of a distribution's kernel have no policy here, and would be asked
    # at each start of a program all the same.
    words += ["no_timer_check", "lsm=landlock"]
    # Nobody asks how long programs wait, which each switch between them would write down; and a
    # host that has no time for a machine is no lock-up of its kernel.
    words += ["psi=0", "nowatchdog"]
    if spec.accelerator is Accelerator.TCG:
        # Speculation cannot leak through translated code: the mitigations would only cost time.
        words.append("mitigations=off")
    if spec.tap is not None:
        words.append(NETWORK_WORD)
    return " ".join([*words, *spec.cmdline])


def cpu_model(accelerator: Accelerator) -> str:
    """Return the CPU model that QEMU is asked for."""
    return "host" if accelerator is Accelerator.KVM else EMULATED_CPU


def drive_node(index: int) -> str:
    """Return what QEMU knows the drive by that is at `index` of a machine's drives."""
    return f"drive{index}"


def _value(text: str) -> str:
    return text.replace(",", ",,")


def _path(fd: int) -> str:
    # -kernel and -initrd are opened by QEMU with plain open(), which knows no /dev/fdset.
    return f"/proc/self/fd/{fd}"


def _board(spec: MachineSpec) -> list[str]:
    board = {
        MachineType.MICROVM: "microvm,pcie=on,acpi=on,rtc=on",
        MachineType.Q35: "q35,smm=off,vmport=off",
    }[spec.machine]
    accelerator = {
        Accelerator.KVM: "kvm",
        Accelerator.TCG: f"tcg,thread=multi,tb-size={TRANSLATION_CACHE}",
    }[spec.accelerator]
    return [
        "-machine",
        f"{board},memory-backend=ram,dump-guest-core=off",
        "-accel",
        accelerator,
        "-cpu",
        cpu_model(spec.accelerator),
        "-smp",
        str(spec.cpus),
    ]


def _memory(spec: MachineSpec, fds: Descriptors) -> list[str]:
    size = f"{spec.memory // MIB}M"
    if fds.memory is None:
        # Shared, not private: a private mapping of a memfd holds each page it wrote to twice.
        backend = f"memory-backend-memfd,id=ram,size={size},share=on"
    else:
        # A clone shares what it only reads, and copies what it writes to.
        share = "off" if _incoming(fds) else "on"
        path = _path(fds.memory)
        backend = f"memory-backend-file,id=ram,size={size},mem-path={path},share={share}"
    return ["-m", size, "-object", backend]


def _origin(spec: MachineSpec, fds: Descriptors) -> list[str]:
    if fds.kernel is None or fds.initramfs is None:
        return ["-incoming", "defer"]
    files = ["-kernel", _path(fds.kernel), "-initrd", _path(fds.initramfs)]
    return [*files, "-append", guest_cmdline(spec)]


def _incoming(fds: Descriptors) -> bool:
    return fds.kernel is None


def _sockets(fds: Descriptors) -> list[str]:
    argv: list[str] = []
    for name, fd in (("qmp", fds.qmp), ("console", fds.console), ("agent", fds.agent)):
        argv += ["-chardev", f"socket,id={name},fd={fd},server=on,wait=off"]
    return [*argv, "-mon", "chardev=qmp,mode=control", "-serial", "chardev:console"]


def _devices(fds: Descriptors) -> list[str]:
    argv = ["-device", f"pvpanic-pci,bus=pcie.0,addr={_SLOT_PANIC:#x}"]
    # Without it a guest's kernel tells all its neighbours of itself after each `cont`, for which a
    # clone's emulator would have to translate much before the agent's first word.
    nic = f"virtio-net-pci,id=net0,mac={GUEST_MAC},romfile=,guest_announce=off"
    if fds.tap is not None:
        # Not in the host's kernel: a guest's packets are taken apart by a process that is confined.
        argv += ["-netdev", f"tap,id=net,fd={fds.tap},vhost=off"]
        nic += ",netdev=net"
    argv += ["-device", f"{nic},bus=pcie.0,addr={_SLOT_NIC:#x}"]
    argv += ["-object", "rng-random,id=rng,filename=/dev/urandom"]
    argv += ["-device", f"virtio-rng-pci,rng=rng,bus=pcie.0,addr={_SLOT_RNG:#x}"]
    argv += ["-device", f"virtio-serial-pci,id=serial0,bus=pcie.0,addr={_SLOT_SERIAL:#x}"]
    argv += ["-device", f"virtserialport,bus=serial0.0,nr=1,chardev=agent,name={AGENT_PORT}"]
    for port in range(HOTPLUG_PORTS):
        where = f"bus=pcie.0,addr={_SLOT_PORTS + port:#x}"
        argv += [
            "-device",
            f"pcie-root-port,id=port{port},chassis={port + 1},slot={port + 1},{where}",
        ]
    return argv


def _drive(index: int, drive: Drive, files: DriveDescriptors) -> list[str]:
    node = drive_node(index)
    argv, backing = _backing(node, index, drive, files)
    top = f"driver={_value(drive.format)},node-name={node}{backing}"
    if drive.read_only:
        argv += _file(f"{node}-file", 1 + index, files.image)
        top += f",file={node}-file,read-only=on"
    else:
        argv += ["-add-fd", f"fd={files.image},set={1 + index},opaque={PASSING}"]
        if files.twin is not None:
            argv += ["-add-fd", f"fd={files.twin},set={1 + index}"]
        # In one node: when another disk is put over it, QEMU opens its file again for reading only.
        top += f",file.driver=file,file.filename=/dev/fdset/{1 + index},file.discard=unmap"
        top += ",discard=unmap,detect-zeroes=unmap"
    argv += ["-blockdev", top]
    slot = f"bus=pcie.0,addr={_SLOT_DRIVES + index:#x}"
    return [
        *argv,
        "-device",
        f"virtio-blk-pci,drive={node},id={node}-dev,serial={_value(drive.serial)},{slot}",
    ]


def _backing(node: str, index: int, drive: Drive, files: DriveDescriptors) -> tuple[list[str], str]:
    """Return the nodes behind a drive, from the bottom up, and the option that names the last."""
    if drive.format != "qcow2":
        return [], ""
    if files.backing is None:
        raise ValueError(f"the qcow2 drive {drive.serial} names no file behind it")
    if len(files.layers) > LAYER_LIMIT:
        raise ValueError(f"the drive {drive.serial} has more than {LAYER_LIMIT} layers")
    argv = _file(f"{node}-base-file", 100 + index, files.backing)
    argv += ["-blockdev", f"driver=raw,node-name={node}-base,file={node}-base-file,read-only=on"]
    # A node that is given here goes before the path in the header, which is never followed.
    backing = f",backing={node}-base"
    for level, fd in reversed(list(enumerate(files.layers))):
        name, number = f"{node}-layer{level}", 1000 + index * LAYER_LIMIT + level
        argv += _file(f"{name}-file", number, fd)
        layer = f"driver=qcow2,node-name={name},file={name}-file,read-only=on{backing}"
        argv += ["-blockdev", layer]
        backing = f",backing={name}"
    return argv, backing


def _file(node: str, number: int, fd: int) -> list[str]:
    argv = ["-add-fd", f"fd={fd},set={number}"]
    file = f"driver=file,node-name={node},filename=/dev/fdset/{number}"
    # A read-only file may be behind many machines; a writable one is locked against a second.
    return [*argv, "-blockdev", f"{file},read-only=on,locking=off"]
