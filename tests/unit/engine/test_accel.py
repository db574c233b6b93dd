import asyncio
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hutch.engine import accel
from hutch.engine.accel import AcceleratorProbe, VerdictCache, estimate_tsc_khz
from hutch.engine.base import Accelerator, BootFiles, MachineSpec, MachineType, Verdict
from hutch.engine.canary import Sample, Trial
from hutch.errors import EngineError, HutchError, error
from hutch.models import CpuInfo
from hutch.settings import load_settings
from tests.unit.engine.conftest import NewStandIn
from tests.unit.engine.test_canary import KHZ, readings

GOOD = readings([0.001] * 50)
CPUS = {
    Accelerator.KVM: CpuInfo("host", "GenuineIntel", ["avx2", "fpu"]),
    Accelerator.TCG: CpuInfo("max", "AuthenticAMD", ["fpu"]),
}


@dataclass
class Canaries:
    """Plays the canaries: `outcomes` are per accelerator and machine; what is missing hangs."""

    outcomes: dict[tuple[Accelerator, MachineType], list[Sample]]
    specs: list[MachineSpec] = field(default_factory=list)
    discarded: list[Path] = field(default_factory=list)

    async def discard(self, directory: Path) -> None:
        self.discarded.append(directory)

    async def __call__(self, spec: MachineSpec, limit: float, stall: float) -> Trial:
        self.specs.append(spec)
        assert 0 < stall < limit
        spec.directory.mkdir(parents=True)
        await asyncio.sleep(0)
        found = self.outcomes.get((spec.accelerator, spec.machine))
        if found is None:
            raise error("engine_failed", f"a canary VM made no progress in {stall:g} s")
        return Trial(found, CPUS[spec.accelerator])


EVERYTHING = {(a, m): GOOD for a in Accelerator for m in MachineType}
ONLY_TCG = {(Accelerator.TCG, m): GOOD for m in MachineType}


@pytest.fixture
def kvm(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A KVM device that everyone may open."""
    device = short_tmp / "kvm"
    device.touch()
    device.chmod(0o666)
    monkeypatch.setattr(accel, "KVM_DEVICE", device)
    return device


def probe(
    stand_in: NewStandIn, canaries: Canaries, **settings: object
) -> tuple[AcceleratorProbe, Path]:
    program = stand_in("normal").qemu
    loaded = load_settings({"qemu": program, **settings})
    return AcceleratorProbe(loaded, lambda: program, canaries, canaries.discard), loaded.home


async def test_kvm_that_boots_is_taken(
    kvm: Path, stand_in: NewStandIn, boot_files: BootFiles
) -> None:
    canaries = Canaries(EVERYTHING)
    verdict = await probe(stand_in, canaries)[0].verdict(boot_files)
    assert (verdict.accelerator, verdict.tsc_khz) == (Accelerator.KVM, KHZ)
    assert verdict.cpu == CPUS[Accelerator.KVM]
    assert verdict.engine_version == "Stand-in version 1"
    assert not verdict.rejected
    assert [spec.cmdline[0] for spec in canaries.specs] == ["hutch.canary"]
    assert not canaries.specs[0].directory.exists()


async def test_what_a_killed_daemon_left_of_a_canary_is_ended(
    kvm: Path, stand_in: NewStandIn, boot_files: BootFiles
) -> None:
    canaries = Canaries(EVERYTHING)
    await probe(stand_in, canaries)[0].verdict(boot_files)
    [directory] = canaries.discarded
    assert canaries.specs[0].directory == directory
    directory.mkdir()
    (directory / "qmp.sock").touch()
    await probe(stand_in, canaries)[0].verdict(boot_files, fresh=True)
    assert canaries.discarded == [directory, directory]
    assert not directory.exists()


async def test_kvm_that_opens_and_hangs_is_passed_over(
    kvm: Path, stand_in: NewStandIn, boot_files: BootFiles
) -> None:
    verdict = await probe(stand_in, Canaries(ONLY_TCG))[0].verdict(boot_files)
    assert verdict.accelerator is Accelerator.TCG
    why = f"{kvm} opens, but a canary VM made no progress in 8 s"
    assert verdict.rejected == {"kvm": why}


async def test_a_host_without_kvm_boots_no_canary_on_it(
    kvm: Path, stand_in: NewStandIn, boot_files: BootFiles
) -> None:
    kvm.unlink()
    canaries = Canaries(EVERYTHING)
    verdict = await probe(stand_in, canaries)[0].verdict(boot_files)
    assert verdict.rejected == {"kvm": f"the host has no {kvm}"}
    assert {spec.accelerator for spec in canaries.specs} == {Accelerator.TCG}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives VMs users of their own")
async def test_kvm_that_is_closed_to_the_machines_user(
    kvm: Path, stand_in: NewStandIn, boot_files: BootFiles
) -> None:
    kvm.chmod(0o600)
    verdict = await probe(stand_in, Canaries(EVERYTHING))[0].verdict(boot_files)
    assert verdict.accelerator is Accelerator.TCG
    assert "chgrp kvm" in verdict.rejected["kvm"]


async def test_the_other_board_is_tried_before_the_clock_is_given_up(
    kvm: Path, stand_in: NewStandIn, boot_files: BootFiles
) -> None:
    canaries = Canaries({(Accelerator.TCG, MachineType.Q35): GOOD})
    verdict = await probe(stand_in, canaries)[0].verdict(boot_files)
    assert verdict.tsc_khz == KHZ


@pytest.mark.parametrize("samples", [None, GOOD[:3]])
async def test_without_a_calibration_there_is_a_verdict_but_no_rate(
    kvm: Path, stand_in: NewStandIn, boot_files: BootFiles, samples: list[Sample] | None
) -> None:
    outcomes = {} if samples is None else {(Accelerator.TCG, m): samples for m in MachineType}
    canaries = Canaries(outcomes)
    tested, home = probe(stand_in, canaries)
    verdict = await tested.verdict(boot_files)
    assert (verdict.accelerator, verdict.tsc_khz, verdict.cpu) == (Accelerator.TCG, None, None)
    assert "not calibrated" in verdict.reason
    assert not (home / "cache/accel.json").exists()
    tried = len(canaries.specs)
    assert await tested.verdict(boot_files) == verdict
    assert len(canaries.specs) == tried
    await probe(stand_in, canaries)[0].verdict(boot_files)
    assert len(canaries.specs) == 2 * tried


async def test_a_forced_accelerator_is_the_only_one_tried(
    kvm: Path, stand_in: NewStandIn, boot_files: BootFiles
) -> None:
    canaries = Canaries(EVERYTHING)
    verdict = await probe(stand_in, canaries, accelerator="tcg")[0].verdict(boot_files)
    assert verdict.accelerator is Accelerator.TCG
    assert "setting" in verdict.reason
    assert [spec.accelerator for spec in canaries.specs] == [Accelerator.TCG]


async def test_a_forced_accelerator_that_fails_is_an_error(
    kvm: Path, stand_in: NewStandIn, boot_files: BootFiles
) -> None:
    with pytest.raises(EngineError, match="no progress") as caught:
        await probe(stand_in, Canaries(ONLY_TCG), accelerator="kvm")[0].verdict(boot_files)
    assert "auto" in (caught.value.hint or "")


async def test_without_boot_files_nothing_is_tried_or_remembered(
    kvm: Path, stand_in: NewStandIn
) -> None:
    canaries = Canaries(EVERYTHING)
    tested, home = probe(stand_in, canaries)
    assert (await tested.verdict(None)).accelerator is Accelerator.TCG
    assert not canaries.specs
    assert not home.exists()


async def test_concurrent_callers_share_one_canary_and_later_ones_the_cache(
    kvm: Path, stand_in: NewStandIn, boot_files: BootFiles
) -> None:
    canaries = Canaries(EVERYTHING)
    tested, _ = probe(stand_in, canaries)
    async with asyncio.TaskGroup() as tasks:
        both = [tasks.create_task(tested.verdict(boot_files)) for _ in range(2)]
    assert both[0].result() == both[1].result()
    assert await probe(stand_in, canaries)[0].verdict(boot_files) == both[0].result()
    assert len(canaries.specs) == 1
    await tested.verdict(boot_files, fresh=True)
    assert len(canaries.specs) == 2


@pytest.mark.parametrize("change", ["kernel", "qemu", "setting"])
async def test_a_verdict_is_of_its_kernel_its_qemu_and_its_settings(
    kvm: Path, stand_in: NewStandIn, boot_files: BootFiles, change: str
) -> None:
    canaries = Canaries(EVERYTHING)
    tested, home = probe(stand_in, canaries)
    await tested.verdict(boot_files)
    if change == "kernel":
        boot_files.kernel.write_bytes(b"another kernel")
    settings = {"machine": "q35"} if change == "setting" else {}
    tested, _ = probe(stand_in, canaries, **settings)
    if change == "qemu":
        program = Path(stand_in("normal").qemu)
        program.write_text(program.read_text() + "# upgraded\n")
    await tested.verdict(boot_files)
    assert len(canaries.specs) == 2
    assert len(json.loads((home / "cache/accel.json").read_text())["verdicts"]) == 2


async def test_a_missing_kernel_is_named(
    kvm: Path, stand_in: NewStandIn, boot_files: BootFiles
) -> None:
    boot_files.kernel.unlink()
    with pytest.raises(HutchError, match="vmlinux"):
        await probe(stand_in, Canaries(EVERYTHING))[0].verdict(boot_files)


VERDICT = Verdict(
    Accelerator.KVM, "it ran", KHZ, "QEMU 7.2", {"tcg": "slow"}, CPUS[Accelerator.KVM]
)


def test_the_cache_keeps_verdicts_apart(short_tmp: Path) -> None:
    cache = VerdictCache(short_tmp / "new" / "accel.json")
    assert cache.get("a") is None
    cache.put("a", VERDICT)
    assert VerdictCache(short_tmp / "new" / "accel.json").get("a") == VERDICT
    assert cache.get("b") is None
    assert [path.name for path in (short_tmp / "new").iterdir()] == ["accel.json"]


def test_a_reboot_of_the_host_empties_the_cache(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = VerdictCache(short_tmp / "accel.json")
    cache.put("a", VERDICT)
    boot_id = short_tmp / "boot_id"
    boot_id.write_text("another\n")
    monkeypatch.setattr(accel, "_BOOT_ID", boot_id)
    assert cache.get("a") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"boot_id": 1}', "\xff", '{"verdicts": {"a": 1}}']
)
def test_a_broken_cache_counts_as_empty(short_tmp: Path, text: str) -> None:
    path = short_tmp / "accel.json"
    path.write_text(text, "latin-1")
    assert VerdictCache(path).get("a") is None
    VerdictCache(path).put("a", VERDICT)
    assert VerdictCache(path).get("a") == VERDICT


def test_a_broken_verdict_counts_as_none(short_tmp: Path) -> None:
    path = short_tmp / "accel.json"
    VerdictCache(path).put("a", VERDICT)
    path.write_text(path.read_text().replace('"kvm"', '"magic"'))
    assert VerdictCache(path).get("a") is None


def test_a_verdict_of_before_that_names_no_cpu_counts_as_none(short_tmp: Path) -> None:
    path = short_tmp / "accel.json"
    VerdictCache(path).put("a", VERDICT)
    path.write_text(path.read_text().replace('"cpu"', '"gpu"'))
    assert VerdictCache(path).get("a") is None


def test_the_estimate_is_that_of_the_kernel(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = short_tmp / "cpuinfo"
    info.write_text("processor\t: 0\ncpu MHz\t\t: 3817.112\nbogomips\t: 5199.99\n")
    monkeypatch.setattr(accel, "_CPUINFO", info)
    monkeypatch.setattr(accel.platform, "machine", lambda: "x86_64")
    assert estimate_tsc_khz() == 2_599_995
    monkeypatch.setattr(accel.platform, "machine", lambda: "aarch64")
    assert estimate_tsc_khz() is None
