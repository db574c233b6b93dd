"""What programs may give for a network policy: the policy itself, a mode, or the name of one."""

from hutch.networking import NetworkMode, NetworkPolicy
from hutch.settings import Settings, load_settings


def as_policy(given: NetworkPolicy | str, settings: Settings | None = None) -> NetworkPolicy:
    """Return the policy that is meant: a mode like `deny`, a name of `hutch policy ls`, or a file.

    Raises NotFound (policy_not_found), InvalidInput (bad_policy).
    """
    if isinstance(given, NetworkPolicy):
        return given
    if given in set(NetworkMode):
        return NetworkPolicy(NetworkMode(given))
    from hutch.network.presets import load  # here: most programs name no file

    return load(given, (settings or load_settings()).home / "policies")
