"""The policy that a sandbox will have: what was asked for, and what this host can do.

Pure. What a policy lets through is not known here.
"""

import dataclasses
import logging
from collections.abc import Iterable
from typing import TypeVar

from hutch.errors import HutchError, error
from hutch.models import SandboxSpec
from hutch.network.base import Ability
from hutch.network.policy import Rules
from hutch.network.rules import parse_rule
from hutch.networking import NetworkChange, NetworkMode, NetworkPolicy
from hutch.settings import Settings

T = TypeVar("T")

log = logging.getLogger(__name__)


def policy_of(spec: SandboxSpec, settings: Settings, ability: Ability) -> NetworkPolicy:
    """Return the policy of the sandbox that `spec` asks for, checked.

    What is only the default is none where there are no networks. Raises bad_policy,
    network_missing.
    """
    if spec.network is not None:
        return checked(spec.network, ability)
    mode = NetworkMode(settings.network)
    if not ability.taps and mode is not NetworkMode.NONE:
        log.warning("a sandbox of %s has no network: %s", spec.image, ability.why)
        mode = NetworkMode.NONE
    return NetworkPolicy(mode)


def checked(policy: NetworkPolicy, ability: Ability) -> NetworkPolicy:
    """Return a policy that can be put in force here. Raises bad_policy, network_missing."""
    Rules.of(policy)
    if not ability.taps and policy.mode is not NetworkMode.NONE:
        raise missing(ability)
    return policy


def missing(ability: Ability) -> HutchError:
    """Return the error of a host that can have no networks for sandboxes."""
    return error(
        "network_missing",
        f"this host cannot have networks for sandboxes: {ability.why}",
        hint=ability.hint or "see `hutch doctor`, or use --net none",
    )


def changed(policy: NetworkPolicy, change: NetworkChange) -> NetworkPolicy:
    """Return what a change makes of a policy. Raises bad_policy for a rule that is not there."""
    before = policy if change.policy is None else change.policy
    known = {*before.allow, *before.deny}
    for rule in change.remove:
        if rule not in known:
            raise error(
                "bad_policy",
                f"there is no rule {rule!r} to remove",
                hint="`hutch network show` tells the rules as they are written",
            )
    after = dataclasses.replace(
        before,
        mode=before.mode if change.mode is None else change.mode,
        allow=_joined(before.allow, change.remove, change.allow),
        deny=_joined(before.deny, change.remove, change.deny),
        allow_host=_joined(before.allow_host, change.close_host, change.allow_host),
        allow_lan=before.allow_lan if change.allow_lan is None else change.allow_lan,
    )
    return after if after == before else dataclasses.replace(after, preset=None)


def without_holes(policy: NetworkPolicy) -> NetworkPolicy:
    """Return a policy without what it opens of this host and its networks, and without addresses.

    For one that comes from elsewhere: what is whose address there is not known. Raises bad_policy.
    """
    return dataclasses.replace(
        policy,
        mode=NetworkMode.PUBLIC if policy.mode is NetworkMode.OPEN else policy.mode,
        allow=[rule for rule in policy.allow if parse_rule(rule, allow=True).name is not None],
        allow_host=[],
        allow_lan=False,
    )


def _joined(before: Iterable[T], removed: Iterable[T], added: Iterable[T]) -> list[T]:
    gone = set(removed)
    return list(dict.fromkeys([*(each for each in before if each not in gone), *added]))
