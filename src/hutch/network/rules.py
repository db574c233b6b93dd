"""One rule of a policy, and tables of thousands that are asked in a handful of look-ups.

Owns how rules are written. Knows neither modes nor what follows from a rule.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network

from hutch.errors import HutchError, error
from hutch.network.addresses import Address, Network, canonical, parse
from hutch.network.names import normal, suffixes

WEB_PORTS = (80, 443)
WIDEST = {4: 8, 6: 7}
"""By IP version: what is wider is for the internet, and opens nothing that is not public."""
RULE_MAX = 400
"""The longest a rule may be: a name of 253 letters outside ASCII fits."""

_PORT = re.compile(r"\*|[0-9]{1,5}")
_PROTOCOL = re.compile(r"/(tcp|udp|icmp|any)")
_BRACKETS = re.compile(r"\[([^\[\]]*)\](/[0-9]{1,3})?")
_V4_MAPPED = IPv6Network("::ffff:0:0/96")
_EXAMPLES = "write it like example.com, *.example.com, example.com:22, 10.1.0.0/16 or [2001:db8::1]"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, taken apart: `name` and `below` (`*.`), or `network`.

    No `ports` are all of them. `raw` says that any protocol may be spoken there.
    """

    text: str
    name: str | None
    below: bool
    network: Network | None
    ports: tuple[int, ...]
    raw: bool


def parse_rule(text: str, *, allow: bool) -> Rule:
    """Return the rule that a text of `allow` or of `deny` stands for.

    Raises InvalidInput (bad_policy), naming the rule.
    """
    if not isinstance(text, str):
        raise _bad(text, allow, "it is no text")
    if not text or text != text.strip():
        raise _bad(text, allow, "it has spaces around it" if text else "it is empty")
    if len(text) > RULE_MAX:
        raise _bad(text, allow, "it is too long")
    if "://" in text:
        raise _bad(text, allow, "it is a URL", "write its host alone, with `:PORT` if need be")
    rest, raw = _without_protocol(text, allow)
    target, port = _split(rest, text, allow)
    if raw and port is None:
        raise _bad(text, allow, "/tcp needs a port before it", "write it like example.com:443/tcp")
    network = _network(target, text, allow)
    ports: tuple[int, ...] = ()
    if port is not None and port != "*":
        ports = (int(port),)
        if not 0 < ports[0] < 65536:
            raise _bad(text, allow, f"{port} is no port", "give one from 1 to 65535")
    elif port is None and network is None and allow:
        ports = WEB_PORTS
    if network is not None:
        return Rule(text, None, False, network, ports, raw)
    name = _name(target.removeprefix("*."), text, allow)
    return Rule(text, name, target.startswith("*."), None, ports, raw)


def _bad(text: object, allow: bool, what: str, hint: str = _EXAMPLES) -> HutchError:
    listed, shown = "allow" if allow else "deny", repr(text)
    shown = shown if len(shown) <= 80 else shown[:80] + "…"
    return error(
        "bad_policy",
        f"{shown} cannot be a rule of `{listed}`: {what}",
        hint=hint,
        details={"rule": text if isinstance(text, str) else None, "list": listed},
    )


def _without_protocol(text: str, allow: bool) -> tuple[str, bool]:
    """Return a rule without `/tcp`, and whether it had that."""
    rest, slash, protocol = text.rpartition("/")
    if not slash or not _PROTOCOL.fullmatch(slash + protocol):
        return text, False
    if protocol != "tcp":
        raise _bad(text, allow, "only TCP leaves a sandbox", "leave the protocol away")
    if not allow:
        raise _bad(text, allow, "what is denied is so for every protocol", "leave the /tcp away")
    return rest, True


def _split(rest: str, text: str, allow: bool) -> tuple[str, str | None]:
    """Return what a rule is for, and its port as text."""
    if rest.startswith("["):
        found = _BRACKETS.match(rest)
        if found is None or ":" not in found[1] or (found[2] and "/" in found[1]):
            raise _bad(text, allow, "the brackets hold no IPv6 address")
        target, tail = found[1] + (found[2] or ""), rest[found.end() :]
    elif rest.count(":") > 1:
        return rest, None  # a bare IPv6 address: what looks like a port is part of it
    else:
        target, colon, port = rest.partition(":")
        tail = colon + port
    if not tail:
        return target, None
    if not tail.startswith(":") or not _PORT.fullmatch(tail[1:]) or not tail.isascii():
        raise _bad(text, allow, f"{tail[1:]!r} is no port", "give one from 1 to 65535, or *")
    return target, tail[1:]


def _network(target: str, text: str, allow: bool) -> Network | None:
    """Return the network that a rule is for, if it is for one."""
    if "/" not in target and ":" not in target:
        try:
            return ip_network(parse(target))
        except ValueError:
            return None  # a name, or what `normal` has a word for
    if "/" in target and not re.fullmatch(r"[0-9a-fA-F:.]*/.*", target):
        raise _bad(text, allow, "it has a path", "write its host alone")
    if "%" in target or not target.isascii() or re.search(r"/0[0-9]|/[0-9]*[^0-9]", target):
        raise _bad(text, allow, "it is no address")
    try:
        network = ip_network(target)
    except ValueError as cause:
        if "host bits" not in str(cause):
            raise _bad(text, allow, "it is no address") from cause
        meant = ip_network(target, strict=False)
        raise _bad(text, allow, "its address is not the network's", f"write {meant}") from cause
    return _unmapped(network)


def _unmapped(network: Network) -> Network:
    """Return the IPv4 network of one that lies in the v4-mapped addresses."""
    if isinstance(network, IPv6Network) and network.subnet_of(_V4_MAPPED):
        address = canonical(network.network_address)
        return IPv4Network((int(address), network.prefixlen - 96))
    return network


def _name(target: str, text: str, allow: bool) -> str:
    if "*" in target:
        if target == "*":
            hint = "use the mode open or public instead" if allow else "use the mode deny instead"
            raise _bad(text, allow, "it is for everything", hint)
        raise _bad(text, allow, "* can only be the first label", "write it like *.example.com")
    try:
        name = normal(target)
    except ValueError as cause:
        raise _bad(text, allow, str(cause)) from cause
    if allow and f".{name}".endswith(".hutch"):
        raise _bad(
            text, allow, "names below hutch are Hutch's own", "open ports with `--allow-host`"
        )
    return name


@dataclass(slots=True)
class _Ports:
    """The rules for one name or network, by port."""

    every: Rule | None = None
    by_port: dict[int, Rule] = field(default_factory=dict)
    raw_every: bool = False
    raw: set[int] = field(default_factory=set)

    def add(self, rule: Rule) -> None:
        if not rule.ports:
            self.every = self.every or rule
            self.raw_every |= rule.raw
        for port in rule.ports:
            self.by_port.setdefault(port, rule)
            if rule.raw:
                self.raw.add(port)

    def find(self, port: int | None) -> Rule | None:
        """Return the rule for a port; for None, one for any port."""
        if port is None:
            return self.every or next(iter(self.by_port.values()), None)
        return self.every or self.by_port.get(port)

    def is_raw(self, port: int) -> bool:
        return self.raw_every or port in self.raw


class RuleSet:
    """The rules of one list, to be asked by name or address: in any number as fast as one."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._exact: dict[str, _Ports] = {}
        self._below: dict[str, _Ports] = {}
        self._networks: dict[tuple[int, int], dict[int, _Ports]] = {}
        self._address_ports = _Ports()
        for rule in rules:
            self._place(rule).add(rule)
        self._shifts = {
            version: sorted(shift for known, shift in self._networks if known == version)
            for version in (4, 6)
        }

    def _place(self, rule: Rule) -> _Ports:
        if rule.network is None:
            assert rule.name is not None
            return (self._below if rule.below else self._exact).setdefault(rule.name, _Ports())
        self._address_ports.add(rule)
        network = rule.network
        shift = network.max_prefixlen - network.prefixlen
        table = self._networks.setdefault((network.version, shift), {})
        return table.setdefault(int(network.network_address) >> shift, _Ports())

    def _of_name(self, name: str) -> Iterator[_Ports]:
        if name in self._exact:
            yield self._exact[name]
        if self._below:
            for above in suffixes(name):
                if above in self._below:
                    yield self._below[above]

    def _of_address(self, address: Address) -> Iterator[_Ports]:
        value = int(address)
        for shift in self._shifts[address.version]:
            found = self._networks[address.version, shift].get(value >> shift)
            if found is not None:
                yield found

    def name(self, name: str, port: int | None) -> Rule | None:
        """Return the nearest rule for a normal name on a port; for None, on any port."""
        return next(filter(None, (ports.find(port) for ports in self._of_name(name))), None)

    def whole_name(self, name: str) -> Rule | None:
        """Return the nearest rule for a normal name on all ports."""
        return next(filter(None, (ports.every for ports in self._of_name(name))), None)

    def network(self, address: Address, port: int | None) -> Rule | None:
        """Return the narrowest rule for a canonical address on a port; for None, on any port."""
        return next(filter(None, (found.find(port) for found in self._of_address(address))), None)

    def networks(self, address: Address, port: int) -> Iterator[Rule]:
        """Yield all rules for a canonical address on a port, the narrowest first."""
        yield from filter(None, (found.find(port) for found in self._of_address(address)))

    def ports(self, name: str, address: Address) -> Iterator[int]:
        """Yield the ports that rules for a normal name or a canonical address are about."""
        for found in (*self._of_name(name), *self._of_address(address)):
            yield from found.by_port

    def any_network(self, port: int) -> Rule | None:
        """Return a rule for any address on a port."""
        return self._address_ports.find(port)

    def is_raw_name(self, name: str, port: int) -> bool:
        """Return whether a rule for a normal name has `/tcp` on a port."""
        return any(ports.is_raw(port) for ports in self._of_name(name))

    def is_raw_address(self, address: Address, port: int) -> bool:
        """Return whether a rule for a canonical address has `/tcp` on a port."""
        return any(ports.is_raw(port) for ports in self._of_address(address))
