"""Whether a machine of today can take up the state of one of then, as far as its devices go.

It must not know where the state lies nor what else of the host counts.
"""

from dataclasses import replace
from enum import StrEnum

from hutch.engine.base import ANY_TAP, Engine, MachineSpec


class Misfit(StrEnum):
    """Why a machine cannot take up a state."""

    NETWORK = "it has a network, and this host cannot give it one"
    DEVICES = "a VM of today would not be built as its own was"


def misfit(engine: Engine, spec: MachineSpec, layout: str) -> Misfit | None:
    """Return why a machine cannot take up a state of that layout (None: it can). Blocking.

    Where a network is new a memory of before goes on all the same: its card leads somewhere now,
    and its agent may take it up. It does not go on where a network that it had is missing.
    """
    without, given = replace(spec, tap=None), replace(spec, tap=ANY_TAP)
    if layout in (engine.layout(spec), engine.layout(without)):
        return None
    return Misfit.NETWORK if layout == engine.layout(given) else Misfit.DEVICES
