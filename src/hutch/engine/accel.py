"""Which accelerator to use: probed with a canary VM, and remembered for the host's boot.

/dev/kvm may exist and open while a stock kernel hangs on it (nested and paravirtual hosts). So a
verdict comes from a VM that ran, with the reasons why others were passed over, and with the rate of
the guest's time stamp counter.
"""

import asyncio
import contextlib
import json
import logging
import os
import platform
import re
import shutil
import stat
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hutch import process
from hutch.engine.base import Accelerator, BootFiles, MachineSpec, MachineType, Verdict
from hutch.engine.canary import CMDLINE, Trial, calibrate
from hutch.engine.jail import KVM_DEVICE, identity
from hutch.errors import EngineError, error
from hutch.models import CpuInfo, from_json, to_json
from hutch.settings import MIB, Settings
from hutch.tasks import in_thread

log = logging.getLogger(__name__)

CANARY_DIRECTORY = "canary"
CANARY_MEMORY = 256 * MIB
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CPUINFO = Path("/proc/cpuinfo")

RunCanary = Callable[[MachineSpec, float, float], Awaitable[Trial]]
"""Boots a spec as a canary, given its limit and its longest silence (s)."""


@dataclass(frozen=True, slots=True)
class _Patience:
    limit: float
    stall: float


_PATIENCE = {
    # A kernel that KVM runs boots in a fraction of a second; this is a first boot on a busy host.
    Accelerator.KVM: _Patience(limit=20.0, stall=8.0),
    Accelerator.TCG: _Patience(limit=90.0, stall=30.0),
}


class AcceleratorProbe:
    """Finds and remembers verdicts. Concurrent callers share one canary."""

    def __init__(
        self,
        settings: Settings,
        program: Callable[[], str],
        canary: RunCanary,
        discard: Callable[[Path], Awaitable[None]],
    ) -> None:
        """Take what the engine does for the probe.

        `program` returns the path of the QEMU binary, or raises engine_missing; `discard` ends
        whatever machine a directory belongs to.
        """
        self._settings = settings
        self._program = program
        self._canary = canary
        self._discard = discard
        self._cache = VerdictCache(settings.home / "cache" / "accel.json")
        self._known: dict[str, Verdict] = {}
        self._lock = asyncio.Lock()

    async def verdict(self, boot: BootFiles | None, *, fresh: bool = False) -> Verdict:
        """Return the accelerator to use. See `hutch.engine.base.Engine.probe`."""
        program = self._program()
        if boot is None:
            reason = "no kernel is there yet to try an accelerator with"
            return Verdict(Accelerator.TCG, reason, None, await _version(program), {})
        async with self._lock:
            key = self._key(program, boot)
            known = None if fresh else self._known.get(key)
            if known is None and not fresh:
                known = await in_thread(self._cache.get, key)
            if known is None:
                known = await self._find(boot, await _version(program))
                log.info("accelerator %s: %s", known.accelerator.value, known.reason)
                # One without a rate is worth another try, but by the next daemon: it took minutes.
                if known.tsc_khz is not None:
                    await in_thread(self._cache.put, key, known)
            self._known = {key: known}
            return known

    def _key(self, program: str, boot: BootFiles) -> str:
        """Return what a verdict depends on besides the host's boot."""
        parts = [self._settings.accelerator, self._settings.machine, str(self._settings.jail)]
        parts += [_file_identity(Path(program)), _file_identity(boot.kernel)]
        return "\n".join(parts)

    async def _find(self, boot: BootFiles, version: str) -> Verdict:
        forced = self._settings.accelerator
        candidates = list(Accelerator) if forced == "auto" else [Accelerator(forced)]
        rejected: dict[str, str] = {}
        for accelerator in candidates:
            try:
                khz, cpu = await self._try(accelerator, boot)
            except (EngineError, ValueError) as cause:
                why = cause.message if isinstance(cause, EngineError) else str(cause)
                rejected[accelerator.value] = why
                log.info("accelerator %s is passed over: %s", accelerator.value, why)
                continue
            reason = f"a canary VM booted, its TSC runs at {khz / 1000:.3f} MHz"
            if forced != "auto":
                reason = f"set by the setting accelerator; {reason}"
            return Verdict(accelerator, reason, khz, version, rejected, cpu)
        if forced == Accelerator.KVM.value:
            raise error(
                "engine_failed",
                f"the setting accelerator asks for kvm, but {rejected[forced]}",
                hint="set accelerator to auto, or to tcg",
            )
        # Emulation needs nothing of the host, so a VM may still come up: with a clock that it
        # calibrates itself.
        reason = f"nothing else is left, and the TSC is not calibrated: {rejected['tcg']}"
        return Verdict(Accelerator.TCG, reason, None, version, rejected)

    async def _try(self, accelerator: Accelerator, boot: BootFiles) -> tuple[int, CpuInfo]:
        """Boot a canary, return the TSC's rate and its CPU.

        Raises EngineError, ValueError: what is wrong.
        """
        patience = _PATIENCE[accelerator]
        uid = self._canary_uid()
        if accelerator is Accelerator.KVM:
            _require_kvm(uid)
        machines = [MachineType.MICROVM, MachineType.Q35]
        if self._settings.machine != "auto":
            machines = [MachineType(self._settings.machine)]
        try:
            trial = await self._boot(accelerator, machines[0], boot, uid, patience)
        except EngineError as cause:
            if accelerator is Accelerator.KVM:
                message = f"{KVM_DEVICE} opens, but {cause.message}"
                raise error("engine_failed", message) from cause
            if len(machines) == 1:
                raise
            trial = await self._boot(accelerator, machines[1], boot, uid, patience)
        return calibrate(trial.samples), trial.cpu

    async def _boot(
        self,
        accelerator: Accelerator,
        machine: MachineType,
        boot: BootFiles,
        uid: int | None,
        patience: _Patience,
    ) -> Trial:
        directory = self._settings.runtime_dir / CANARY_DIRECTORY
        # A daemon that was killed here has left a canary, which may spin for ever.
        await self._discard(directory)
        await in_thread(shutil.rmtree, directory, ignore_errors=True)
        spec = MachineSpec(
            id="canary",
            boot=boot,
            cpus=1,
            memory=CANARY_MEMORY,
            drives=(),
            directory=directory,
            console_log=directory / "console.log",
            machine=machine,
            accelerator=accelerator,
            tsc_khz=estimate_tsc_khz(),
            uid=uid,
            cmdline=CMDLINE,
        )
        try:
            return await self._canary(spec, patience.limit, patience.stall)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _canary_uid(self) -> int | None:
        """Return the user of a canary: the first past the range of the sandboxes' VMs."""
        if not self._settings.jail or os.geteuid() != 0:
            return None
        return self._settings.uid_base + self._settings.uid_count


class VerdictCache:
    """A JSON file with the verdicts of one boot of the host; a broken one counts as empty."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str) -> Verdict | None:
        """Return the verdict for a key, or None."""
        try:
            body = self._load()[key]
            return Verdict(
                Accelerator(body["accelerator"]),
                str(body["reason"]),
                int(body["tsc_khz"]),
                str(body["engine_version"]),
                {str(name): str(why) for name, why in body["rejected"].items()},
                from_json(CpuInfo, body["cpu"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def put(self, key: str, verdict: Verdict) -> None:
        """Remember a verdict. Failing costs the next daemon some seconds, nothing else."""
        verdicts = self._load() | {
            key: {
                "accelerator": verdict.accelerator.value,
                "reason": verdict.reason,
                "tsc_khz": verdict.tsc_khz,
                "engine_version": verdict.engine_version,
                "rejected": dict(verdict.rejected),
                "cpu": to_json(verdict.cpu),
            }
        }
        body = json.dumps({"boot_id": _boot_id(), "verdicts": verdicts}, indent=1)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._path.with_suffix(f".{os.getpid()}.tmp")
            fresh.write_text(body, "utf-8")
            fresh.replace(self._path)
        except OSError as cause:
            log.warning("%s cannot be written: %s", self._path, cause)

    def _load(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            body = json.loads(self._path.read_text("utf-8"))
            if isinstance(body, Mapping) and body.get("boot_id") == _boot_id():
                verdicts = body.get("verdicts")
                return dict(verdicts) if isinstance(verdicts, Mapping) else {}
        return {}


def estimate_tsc_khz() -> int | None:
    """Return a guess at the TSC's rate, for a canary's own clock; None without a TSC.

    BogoMIPS are twice the MHz that the host's kernel found for its TSC at boot, in contrast to "cpu
    MHz".
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    with contextlib.suppress(OSError):
        found = re.search(r"^bogomips\s*:\s*([\d.]+)", _CPUINFO.read_text("utf-8"), re.MULTILINE)
        if found:
            return round(float(found[1]) * 500) or None
    return None


def _require_kvm(uid: int | None) -> None:
    """Raise EngineError unless the host has KVM and a QEMU process run as `uid` may open it."""
    try:
        os.close(os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC))
        info = KVM_DEVICE.stat()
    except FileNotFoundError:
        raise error("engine_failed", f"the host has no {KVM_DEVICE}") from None
    except OSError as cause:
        raise error("engine_failed", f"{KVM_DEVICE} does not open: {cause.strerror}") from cause
    if uid is None or info.st_mode & (stat.S_IROTH | stat.S_IWOTH) == stat.S_IROTH | stat.S_IWOTH:
        return
    _, group = identity(uid, Accelerator.KVM)
    if group != info.st_gid:
        mode = stat.filemode(info.st_mode)
        raise error(
            "engine_failed",
            f"{KVM_DEVICE} ({mode}) is closed to the users that VMs run as; "
            "`chgrp kvm /dev/kvm && chmod 660 /dev/kvm` opens it",
        )


async def _version(program: str) -> str:
    done = await process.run([program, "--version"], timeout=10.0)
    lines = done.stdout.decode(errors="replace").splitlines()
    return lines[0].strip() if lines else "unknown"


def _file_identity(path: Path) -> str:
    try:
        info = path.stat()
    except OSError as cause:
        raise error("engine_failed", f"{path} cannot be read: {cause.strerror}") from cause
    return f"{path.name} {info.st_size} {info.st_mtime_ns}"  # a moved home is no other kernel


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""
