"""Policies that have a name: the modes, files in `$HUTCH_HOME/policies`, and any file by its path.

A file is TOML or JSON with the fields of a policy, `extends`, and a table `presets` of further
ones. A reference is `NAME`, `NAME#PRESET`, `PATH` or `PATH#PRESET`. Judges nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hutch.networking import NetworkMode, NetworkPolicy

BUILT_IN: dict[str, NetworkPolicy] = {
    "public": NetworkPolicy(NetworkMode.PUBLIC, preset="public"),
    "deny": NetworkPolicy(NetworkMode.DENY, preset="deny"),
    "open": NetworkPolicy(NetworkMode.OPEN, preset="open"),
    "none": NetworkPolicy(NetworkMode.NONE, preset="none"),
    "offline": NetworkPolicy(NetworkMode.NONE, preset="offline"),
}


@dataclass(frozen=True, slots=True)
class Preset:
    """A policy by its reference; `error` says what is wrong with its file, and then it has none."""

    reference: str
    origin: str
    policy: NetworkPolicy | None = None
    error: str | None = None


def load(reference: str, directory: Path) -> NetworkPolicy:
    """Return the policy of a reference; `directory` holds those that have a name.

    Raises NotFound (policy_not_found), InvalidInput (bad_policy).
    """
    raise NotImplementedError


def known(directory: Path) -> list[Preset]:
    """Return all policies that have a name, those built in first."""
    raise NotImplementedError


def extended(
    base: NetworkPolicy,
    *,
    mode: NetworkMode | None = None,
    allow: Sequence[str] = (),
    deny: Sequence[str] = (),
    allow_host: Sequence[int] = (),
    allow_lan: bool | None = None,
) -> NetworkPolicy:
    """Return a policy with more rules, and with another mode if one is given."""
    raise NotImplementedError
