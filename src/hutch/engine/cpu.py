"""What CPU a machine's guest sees: the model that QEMU is asked for, and what QEMU makes of it.

Emulated, a CPU follows from model and version. With KVM it is the host's, as far as QEMU and the
host's kernel pass it on: the flags of /proc/cpuinfo would name features that no guest has, so the
process itself is asked. Knows QMP and the model's text, not what comes of the answer.
"""

from typing import Any, Final

from hutch.engine.qmp import Qmp
from hutch.errors import error
from hutch.models import CpuInfo

_FEATURES_MAX: Final = 2000
_NAME_MAX: Final = 100

# What QEMU lists beside features and is none: how it is to behave.
_SWITCHES: Final = frozenset(
    {
        "check",
        "enforce",
        "fill-mtrr-mask",
        "full-cpuid-auto-level",
        "kvm",
        "kvm-no-smi-migration",
        "legacy-cache",
        "migratable",
        "tcg-cpuid",
        "vmware-cpuid-freq",
    }
)
_INTERNAL: Final = "x-"


async def cpu_of(qmp: Qmp, model: str) -> CpuInfo:
    """Return the CPU that a model, as on the command line, is in a QEMU process.

    Raises engine_failed, sandbox_died.
    """
    name, *changes = model.split(",")
    properties = dict(_property(change) for change in changes)
    arguments = {"type": "full", "model": {"name": name, "props": properties}}
    answer = await qmp.ask("query-cpu-model-expansion", "model", dict, arguments)
    found = answer.get("props")
    if not isinstance(found, dict) or not isinstance(vendor := found.get("vendor"), str):
        raise error("engine_failed", "QEMU does not say what CPU its guests see")
    features = sorted({_canonical(name) for name, value in found.items() if value is True})
    features = [each for each in features if each not in _SWITCHES and _is_one(each)]
    return CpuInfo(model, vendor[:_NAME_MAX], features[:_FEATURES_MAX])


def _property(change: str) -> tuple[str, bool]:
    """Return what a part of a model's text switches on or off: `+name`, `-name` or `name=on`."""
    name, _, value = change.partition("=")
    return (name, value == "on") if value else (name[1:], name[0] == "+")


def _canonical(name: Any) -> str:
    # Some go by three names at once: sse4.1, sse4_1 and sse4-1.
    return str(name).replace("_", "-").replace(".", "-")


def _is_one(name: str) -> bool:
    return not name.startswith(_INTERNAL) and len(name) <= _NAME_MAX
