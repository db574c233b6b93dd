"""What in a policy opens more than it seems to, or does nothing: for people to read.

Nothing here changes what is allowed.
"""

from collections.abc import Iterable, Iterator

from hutch.network.addresses import AddressKind, special
from hutch.network.names import is_registry_like, is_shared_hosting
from hutch.network.rules import WIDEST, Rule, RuleSet
from hutch.networking import NetworkMode, NetworkPolicy

CAUTIONS_MAX = 50


def cautions(policy: NetworkPolicy, allowed: Iterable[Rule], deny: RuleSet) -> list[str]:
    """Return sentences, CAUTIONS_MAX at most, about a policy of the rules `allowed` and `deny`."""
    found: dict[str, None] = {}
    if policy.mode is NetworkMode.NONE and (policy.allow or policy.allow_host or policy.allow_lan):
        found["the mode is none: nothing of what the policy allows has an effect"] = None
    for rule in allowed:
        for text in (*_of_rule(rule), *_shadowed(rule, deny)):
            found[text] = None
    shown = list(found)
    if len(shown) > CAUTIONS_MAX:
        more = len(shown) - CAUTIONS_MAX + 1
        shown[CAUTIONS_MAX - 1 :] = [f"and {more} further warnings"]
    return shown


def _of_rule(rule: Rule) -> Iterator[str]:
    if rule.name is not None:
        if rule.below and is_registry_like(rule.name):
            yield f"{rule.text}: anybody can have a name below {rule.name}"
        elif is_shared_hosting(rule.name):
            yield (
                f"{rule.text}: these servers serve others' sites, too, and what goes to which"
                " cannot be seen in TLS"
            )
    if rule.raw and (not rule.ports or 443 in rule.ports or 80 in rule.ports):
        yield f"{rule.text}: /tcp takes server names and Host headers as they come"
    if rule.network is None:
        return
    if rule.network.prefixlen < WIDEST[rule.network.version]:
        yield f"{rule.text} is that wide that it opens public addresses alone"
    elif rule.network.num_addresses == 1:
        kind = special(rule.network.network_address)
        if kind is AddressKind.METADATA:
            yield f"{rule.text} is a cloud's metadata service, which may give credentials away"
        elif kind is AddressKind.HOST:
            yield f"{rule.text} is the host itself; `--allow-host PORT` opens its loopback"


def _shadowed(rule: Rule, deny: RuleSet) -> Iterator[str]:
    """Yield a warning if rules of `deny` take all that a rule of `allow` gives."""
    ports: tuple[int | None, ...] = rule.ports or (None,)
    taken = None
    for port in ports:
        taken = _denying(rule, port, deny)
        if taken is None:
            return
    if taken is not None:
        yield f"{rule.text} has no effect: {taken.text} denies it"


def _denying(rule: Rule, port: int | None, deny: RuleSet) -> Rule | None:
    """Return the rule of `deny` that takes a rule's port, or all ports for None."""
    if rule.network is not None:
        if rule.network.num_addresses > 1:
            return None
        found = deny.network(rule.network.network_address, port)
        return None if found is None or (port is None and found.ports) else found
    assert rule.name is not None
    # No rule is for a name with a star, so that only those match which are for all below it.
    name = f"*.{rule.name}" if rule.below else rule.name
    return deny.whole_name(name) if port is None else deny.name(name, port)
