"""The seam between the service and what runs a VM.

An `Engine` boots machines, freezes them, starts clones of frozen ones and finds running ones again
after a restart of the daemon; a `Machine` is one VM process. Neither knows of images, sandboxes or
the guest protocol: they get files and hand out the path of the socket behind which the agent will
answer. Errors: engine_missing, engine_failed, disk_full, sandbox_died.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol

from hutch.models import CpuInfo
from hutch.process import ProcessId


class Accelerator(StrEnum):
    """What the engine runs a machine on."""

    KVM = "kvm"
    TCG = "tcg"


class MachineType(StrEnum):
    """The board that the guest sees. microvm boots fastest; q35 is the fallback that never hung."""

    MICROVM = "microvm"
    Q35 = "q35"


ANY_TAP: Final = -1
"""A TAP in a spec that only its layout is asked of."""


class ExitKind(StrEnum):
    """How a machine ended, as far as the engine can tell."""

    POWEROFF = "poweroff"
    REBOOT = "reboot"
    PANIC = "panic"
    KILLED = "killed"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the accelerator probe found: the choice and why.

    `tsc_khz` is the rate of the guest's TSC (None: not x86), `cpu` what its guests see as theirs
    (None: no canary has run, which only emulation is chosen without).
    """

    accelerator: Accelerator
    reason: str
    tsc_khz: int | None
    engine_version: str
    rejected: Mapping[str, str]
    cpu: CpuInfo | None = None


@dataclass(frozen=True, slots=True)
class BootFiles:
    """What a cold boot needs: an ELF kernel, a padded initramfs, and names for the cache key."""

    kernel: Path
    initramfs: Path


@dataclass(frozen=True, slots=True)
class Drive:
    """A virtio-blk disk.

    `serial` is how the guest finds it. A `qcow2` drive names the raw file at the bottom of it, and
    the read-only qcow2 files in between, nearest first: what their headers say is never followed.

    A clone's writable drive may have another `size` (bytes) than the frozen machine's had: its
    guest is told. None: it is the same.
    """

    serial: str
    path: Path
    format: str = "raw"
    read_only: bool = False
    backing: Path | None = None
    layers: Sequence[Path] = ()
    size: int | None = None


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """One VM to boot.

    Sizes are bytes. `directory` is private to the VM: its sockets are made there.

    `tap` is a descriptor of the TAP that its network card is joined to, made with IFF_VNET_HDR and
    not attached otherwise: the VM gets a copy, and the caller's stays the caller's to close. None:
    the card leads nowhere. What has been frozen with a TAP goes on with any other, and not without;
    what has been frozen without one goes on with or without.

    `uid` is the user the engine process runs as when the daemon is root (None: the daemon's own).
    A `freezable` machine has its memory where `Engine.freeze` can take it from.
    """

    id: str
    boot: BootFiles
    cpus: int
    memory: int
    drives: Sequence[Drive]
    directory: Path
    console_log: Path
    machine: MachineType
    accelerator: Accelerator
    tsc_khz: int | None
    uid: int | None = None
    cmdline: Sequence[str] = ()
    freezable: bool = False
    tap: int | None = None


@dataclass(frozen=True, slots=True)
class Frozen:
    """A machine at rest: the files that `Engine.freeze` or `keep` left in `directory`.

    `memory` is its guest's memory in bytes. The value can be made again from what is on record.
    """

    directory: Path
    memory: int

    @property
    def state(self) -> Path:
        """The file with the state of its devices and CPUs."""
        return self.directory / "state"

    @property
    def image(self) -> Path:
        """The file with its memory, sparse: as long as the memory, and as large as what is used."""
        return self.directory / "memory"

    def over(self, number: int) -> Path:
        """The `number`th file, from 1 on, that its memory is over: shared with other machines."""
        return self.directory / f"memory-{number}"

    def below(self) -> Sequence[Path]:
        """Return all files that its memory is over. Blocking. Raises OSError."""
        return sorted(self.directory.glob("memory-[0-9]*"))


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """What is written to the state store so that a running machine is found again."""

    process: ProcessId
    directory: Path
    console_log: Path
    machine: MachineType
    accelerator: Accelerator
    uid: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {
            "pid": self.process.pid,
            "start_time": self.process.start_time,
            "directory": str(self.directory),
            "console_log": str(self.console_log),
            "machine": self.machine.value,
            "accelerator": self.accelerator.value,
            "uid": self.uid,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "MachineRecord":
        """Return the record that `to_json` gave."""
        return cls(
            ProcessId(body["pid"], body["start_time"]),
            Path(body["directory"]),
            Path(body["console_log"]),
            MachineType(body["machine"]),
            Accelerator(body["accelerator"]),
            body["uid"],
        )


@dataclass(frozen=True, slots=True)
class MachineExit:
    """How a machine ended; `message` is the engine's last words when it crashed."""

    kind: ExitKind
    message: str = ""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What a VM's process takes of the host's memory, in bytes.

    Of its guest's memory: `private` is what it alone has, `shared` its part of what it reads of a
    frozen machine's memory together with other clones, which is `frozen` in full. `engine` is its
    part of all that is not guest memory.
    """

    private: int = 0
    shared: int = 0
    frozen: int = 0
    engine: int = 0

    @property
    def total(self) -> int:
        """Its proportional set size: summed over all VMs, what they take together."""
        return self.private + self.shared + self.engine


class Machine(Protocol):
    """One VM process."""

    record: MachineRecord

    @property
    def agent_socket(self) -> Path:
        """The unix socket of the agent's port; one connection at a time."""

    async def wait(self) -> MachineExit:
        """Return how it ended, once it has. Any number of callers; never raises."""

    async def powerdown(self) -> None:
        """Press the power button (ACPI): a request that the guest may ignore."""

    async def pause(self) -> None:
        """Stop its CPUs where they are; memory and disk stay. Idempotent. Raises EngineError."""

    async def resume(self) -> None:
        """Let its CPUs go on: the guest's clock is behind then. Idempotent. Raises EngineError."""

    async def paused(self) -> bool:
        """Tell whether its CPUs are stopped, as the engine itself says. Raises EngineError."""

    async def cpu(self) -> CpuInfo:
        """Return the CPU that its guest sees. Raises EngineError."""

    async def kill(self) -> MachineExit:
        """End it now; returns when the process is gone. Idempotent."""

    async def console_progress(self) -> AsyncIterator[int]:
        """Yield the console's total bytes as they grow: the boot watchdog's sign of life."""
        yield 0

    def memory_use(self) -> int:
        """Return the process's proportional set size in bytes (0 when it is gone). Blocking."""

    def memory(self) -> MemoryUse:
        """Return what it takes of the host's memory, by kind (nothing when it is gone). Blocking.

        Slower than `memory_use`, which is for many at once.
        """

    def cpu_seconds(self) -> float:
        """Return the CPU time that the process has used."""

    async def release(self) -> None:
        """Let go of the machine without ending it (the daemon stops, the VM lives on)."""


class Engine(Protocol):
    """Boots machines and adopts running ones."""

    name: str

    async def probe(self, boot: BootFiles | None, *, fresh: bool = False) -> Verdict:
        """Return the accelerator to use, from the cache of this host boot unless `fresh`.

        Without boot files no canary can run: the verdict is then TCG, and not cached.
        """

    async def boot(self, spec: MachineSpec) -> Machine:
        """Start a VM; returns once the engine process answers.

        What it made is gone when it raises.
        """

    async def adopt(self, record: MachineRecord) -> Machine | None:
        """Return the machine of a record from before a restart; None when that process is gone."""

    async def discard(self, directory: Path) -> None:
        """End whatever process still serves the sockets of a machine's `directory`; remove them.

        For what a daemon left that died in the middle of a boot, before it could write the record.
        """

    def create_disk(
        self, path: Path, size: int, backing: Path, backing_format: str = "raw"
    ) -> None:
        """Create a copy-on-write disk (a file) of `size` bytes over `backing` (raw or qcow2)."""

    async def freeze(self, machine: Machine, directory: Path) -> Frozen:
        """Stop a `freezable` machine for good and keep it in `directory`, to be cloned from there.

        Its agent's port must be closed on our side. The machine is ended in any case; its disk may
        from now on only be read, by clones alone. Returns when the files are safe on disk; leaves
        none when it raises: engine_failed, disk_full, sandbox_died.
        """

    async def expect(self, directory: Path, memory: int) -> Frozen:
        """Announce a capture of a machine with that much memory: its clones can be begun at once.

        Each is started as far as it can be without a state, and waits for that of the capture for
        `directory`. It gets it as soon as it is there, before `still` is left: the capture may fail
        yet. It is engine_failed if there comes none, or what is expected is dropped. Raises
        engine_failed.
        """

    async def capture(
        self,
        machine: Machine,
        directory: Path,
        *,
        next_disk: Path | None = None,
        still: AbstractAsyncContextManager[object] | None = None,
    ) -> Frozen:
        """Take devices, CPUs and memory of a machine that lives on, all of one moment.

        It is paused for that, and then as it was before (running or paused), whatever fails. What
        takes longest is done before: `still` is entered right before the pause and left right after
        it, for what has to be done to the guest meanwhile. An error of its own fails the capture.

        `next_disk`, a new and empty disk over the machine's writable one, takes that one's place
        at that moment: the old one is never written again, and belongs to what was captured.

        What is captured is held in memory and can be cloned at once, any number of times, until it
        is dropped; nothing is written to `directory` before `keep`. Raises engine_failed,
        sandbox_died.
        """

    async def keep(
        self, frozen: Frozen, over: Sequence[Frozen] = (), *, lasting: bool = True
    ) -> None:
        """Write what was captured to its directory, where it outlives the daemon.

        What another machine on disk has as well, the first of `over` that there is, need not be
        written: its files are shared then, and stay as long as somebody uses them. Returns when
        the files are safe on disk, or if they need not be `lasting` when they are written: a host
        that loses its power may leave them damaged then. Leaves none when it raises: disk_full,
        engine_failed. It stays in memory, too, until it is dropped.
        """

    def lend(self, frozen: Frozen) -> tuple[bytes, int]:
        """Return state and memory of what was captured: the latter as a descriptor, to be closed.

        For whoever keeps it in another way than `keep` does. Raises engine_failed for what is not
        held any more, or kept already.
        """

    async def hold(self, frozen: Frozen, state: bytes, memory: int) -> None:
        """Hold, until it is dropped, what `lend` gave once, to be cloned; nothing is on disk.

        `memory` is a memfd made for it, which nobody maps any more and is taken over in any case.
        Raises engine_failed.
        """

    async def clone(self, spec: MachineSpec, frozen: Frozen) -> Machine:
        """Start a VM that goes on where a frozen or captured one stopped; returns once it runs.

        `spec` must be that of the frozen machine but for id, directory, console log, uid, its TAP
        (there must be one if that had one) and the files of its drives: its writable disk is a new
        one over the frozen machine's, or that very one if this clone is all that will ever use it.
        Everything in the clone that was unique is not: whoever talks to its agent gives it an
        identity first.

        What it made is gone when it raises. A state or memory that is damaged, missing or does not
        fit is engine_failed with the detail `template`: true, and will never load.
        """

    async def drop(self, frozen: Frozen) -> None:
        """Forget the memory of a frozen or captured machine. Running clones keep theirs.

        One that is on disk is loaded from there when it is cloned again.
        """

    def frozen_memory(self, frozen: Frozen) -> int:
        """Return the bytes of host memory held for clones to share; 0 when it is not loaded."""

    def identity(self) -> str:
        """Return what tells this engine's program from another, or another build of it.

        A machine that one has frozen is never given to the other. Blocking. Raises engine_missing.
        """

    def layout(self, spec: MachineSpec) -> str:
        """Return a text that is equal for machines that can take up each other's state.

        Which TAP a machine has does not count for it, but whether it has one.
        """
