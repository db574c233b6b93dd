"""What of a machine counts for whether another can take up its state."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.engine.argv import NETWORK_WORD
from hutch.engine.base import (
    ANY_TAP,
    Accelerator,
    BootFiles,
    Drive,
    MachineSpec,
    MachineType,
)
from hutch.engine.layout import layout, program_identity
from hutch.errors import HutchError
from hutch.settings import MIB

SPEC = MachineSpec(
    id="sb_a",
    boot=BootFiles(Path("/k"), Path("/i")),
    cpus=1,
    memory=128 * MIB,
    drives=[
        Drive("root", Path("/r"), read_only=True),
        Drive("disk", Path("/d"), "qcow2", backing=Path("/b")),
    ],
    directory=Path("/run/a"),
    console_log=Path("/log"),
    machine=MachineType.MICROVM,
    accelerator=Accelerator.TCG,
    tsc_khz=2_000_000,
)


def test_what_is_a_machines_own_does_not_count() -> None:
    clone = replace(
        SPEC,
        id="sb_b",
        directory=Path("/run/b"),
        console_log=Path("/other"),
        uid=7,
        drives=[
            replace(SPEC.drives[0], path=Path("/R")),
            replace(SPEC.drives[1], path=Path("/D"), layers=(Path("/t"),)),
        ],
    )
    assert layout(SPEC, jail=True) == layout(clone, jail=True)
    networks = [replace(SPEC, tap=tap) for tap in (ANY_TAP, 0, 22)]
    assert len({layout(spec, jail=True) for spec in networks}) == 1


def test_without_a_network_it_is_what_it_was_before_there_were_any() -> None:
    text = layout(SPEC, jail=True)
    assert "netdev" not in text
    assert NETWORK_WORD not in text


@pytest.mark.parametrize(
    "change",
    [
        {"cpus": 2},
        {"memory": 256 * MIB},
        {"machine": MachineType.Q35},
        {"accelerator": Accelerator.KVM},
        {"tsc_khz": 2_000_001},
        {"cmdline": ("quiet",)},
        {"drives": SPEC.drives[:1]},
        {"tap": ANY_TAP},
    ],
)
def test_what_counts(change: dict[str, object]) -> None:
    assert layout(SPEC, jail=True) != layout(replace(SPEC, **change), jail=True)  # type: ignore[arg-type]


def test_a_program_is_told_from_another_build(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_bytes(b"one")
    before = program_identity(program)
    assert program_identity(program) == before
    os.utime(program, ns=(1, 1))
    assert program_identity(program) != before
    with pytest.raises(HutchError) as caught:
        program_identity(tmp_path / "none")
    assert caught.value.code == "engine_missing"
