"""`hutch run` from the shell, beside the fastest sandbox that a user would pick instead.

gVisor's `runsc do` runs a program in a kernel of its own that is no virtual machine. It shares the
host's files, which Hutch does not; both are whole processes, from their start to their end.
"""

import shutil
import time

from tests.bench.lab import IMAGE, Lab, Session, measure
from tests.bench.lives import machine_id
from tests.bench.pools import pool, wait_full
from tests.bench.samples import Check, Measured, Series, alternate, ratio

_LIMIT, _POOL_LIMIT = 3.0, 1.5
_RUNSC = ("--network=none", "--ignore-cgroups", "do", "/bin/true")
_MISSING = "hutch run, of runsc do (NOT MEASURED: the package runsc is not installed)"


def from_the_shell(lab: Lab) -> Measured:
    """Measure `hutch run --rm busybox true`, from a template and from the pool, against runsc."""
    runsc = shutil.which("runsc")
    if runsc is None:
        # A limit that was not measured is not kept.
        return Measured("`hutch run` from the shell", [], [Check(_MISSING, 0.0, 1.0, "x", False)])
    warm, rounds = lab.rounds(2, 1), lab.rounds(15, 2)

    def other() -> float:
        return measure([runsc, *_RUNSC]).wall

    with lab.session() as session:
        _prove(lab)
        takers = {"runsc": other, "hutch": lambda: _run(lab)}
        found = alternate(takers, rounds, warm=warm)
        with pool(session):
            takers = {"runsc": other, "hutch": lambda: _run_from_pool(lab, session)}
            pooled = alternate(takers, rounds, warm=warm)
    gvisor = Series("runsc --network=none --ignore-cgroups do /bin/true", "s", found["runsc"])
    gvisor_then = Series("runsc, between runs from the pool", "s", pooled["runsc"])
    cloned = Series("hutch run --rm busybox true", "s", found["hutch"])
    claimed = Series("hutch run --rm busybox true, from the pool", "s", pooled["hutch"])
    return Measured(
        "`hutch run` from the shell",
        [gvisor, cloned, gvisor_then, claimed],
        [
            ratio("hutch run, of runsc do", cloned, gvisor, _LIMIT),
            ratio("hutch run from the pool, of runsc do", claimed, gvisor_then, _POOL_LIMIT),
        ],
        "Whole processes. A sandbox of Hutch is a virtual machine, made, run and removed; runsc "
        "has neither an image nor a disk of its own to make.",
    )


def _run(lab: Lab) -> float:
    return lab.command("run", "--rm", IMAGE, "true").wall


def _run_from_pool(lab: Lab, session: Session) -> float:
    before = wait_full(session).claimed
    seconds = _run(lab)
    assert wait_full(session).claimed == before + 1, "the sandbox was not claimed from the pool"
    return seconds


def _prove(lab: Lab) -> None:
    """Check that such a command runs in a machine of its own: it tells its machine id."""
    name = f"proof-{time.monotonic_ns()}"
    said = lab.hutch.run("run", "--name", name, IMAGE, "cat", "/etc/machine-id").text
    [info] = lab.hutch.json("inspect", name)
    assert said == machine_id(info["id"]), (said, info)
    lab.hutch.run("rm", name)
