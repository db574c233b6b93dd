"""What a machine of today can take up."""

from dataclasses import replace
from pathlib import Path

import pytest

from hutch.engine.base import (
    ANY_TAP,
    Accelerator,
    BootFiles,
    Drive,
    Engine,
    MachineSpec,
    MachineType,
)
from hutch.engine.fake import FakeEngine
from hutch.engine.qemu import QemuEngine
from hutch.service.misfit import Misfit, misfit
from hutch.settings import MIB, load_settings

SPEC = MachineSpec(
    id="sb_a",
    boot=BootFiles(Path("/k"), Path("/i")),
    cpus=1,
    memory=128 * MIB,
    drives=[Drive("root", Path("/r"), read_only=True)],
    directory=Path("/run/a"),
    console_log=Path("/log"),
    machine=MachineType.MICROVM,
    accelerator=Accelerator.TCG,
    tsc_khz=2_000_000,
)
NETWORK = replace(SPEC, tap=ANY_TAP)
OTHER = replace(SPEC, cpus=2)
OTHER_NETWORK = replace(NETWORK, cpus=2)


@pytest.fixture(params=["fake", "qemu"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return FakeEngine() if request.param == "fake" else QemuEngine(load_settings())


@pytest.mark.parametrize(
    ("now", "then", "why"),
    [
        (SPEC, SPEC, None),
        (NETWORK, replace(SPEC, tap=7), None),
        (NETWORK, SPEC, None),
        (SPEC, NETWORK, Misfit.NETWORK),
        (SPEC, OTHER, Misfit.DEVICES),
        (NETWORK, OTHER_NETWORK, Misfit.DEVICES),
        (SPEC, OTHER_NETWORK, Misfit.DEVICES),
        (NETWORK, OTHER, Misfit.DEVICES),
    ],
)
def test_a_network_may_be_new_but_not_missing(
    engine: Engine, now: MachineSpec, then: MachineSpec, why: Misfit | None
) -> None:
    assert misfit(engine, now, engine.layout(then)) is why
