"""Whether a host's CPU can go on with what ran on another one's: it may do more, never less.

A guest has asked its CPU once, when it booted, and uses what it found for ever. It must not know
how a CPU is looked at, nor where what ran is kept.
"""

from collections.abc import Sequence

from hutch.models import CpuInfo


def missing_features(then: CpuInfo, now: CpuInfo | None) -> Sequence[str]:
    """Return what the CPU of `then` can do and that of `now` cannot.

    Nothing where that of now is not known: that is so with emulation only, whose CPU follows from
    the engine's version and the model asked for.
    """
    return [] if now is None else sorted(set(then.features) - set(now.features))


def other_kind(then: CpuInfo, now: CpuInfo | None) -> Sequence[str]:
    """Return in words what must be the same of two CPUs and is not.

    A kernel of one vendor's CPU works around that one's faults, by means that no other has.
    """
    if now is None:
        return []
    pairs = {"the CPU's model": (then.model, now.model), "its vendor": (then.vendor, now.vendor)}
    return [f"{what} ({old} against {new})" for what, (old, new) in pairs.items() if old != new]


def lacking(features: Sequence[str]) -> str:
    """Return in words that a CPU lacks these features."""
    return f"this host's CPU lacks {', '.join(features)}"
