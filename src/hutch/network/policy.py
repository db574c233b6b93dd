"""What a policy says: a pure function of rules, names, addresses and ports.

Nothing is resolved or connected to here, and nothing waits. Deny wins over allow, allow over the
mode, and what cannot be judged is denied. All names may be given as they came, in any spelling.
"""

from collections.abc import Collection, Iterator
from contextlib import suppress

from hutch.errors import error
from hutch.network import addresses
from hutch.network.addresses import Address, AddressKind
from hutch.network.cautions import cautions
from hutch.network.names import (
    HOST_NAME,
    is_internal,
    normal,
    service_owner,
)
from hutch.network.rules import WIDEST, Rule, RuleSet, parse_rule
from hutch.networking import Decision, NetworkMode, NetworkPolicy, Reason

RULES_MAX = 10_000
"""Rules in each list of a policy."""
HOST_PORTS_MAX = 256
_USUAL_PORTS = (443, 80)

_DOWN = Decision(
    False,
    Reason.NETWORK_DOWN,
    text="the sandbox has no network: its mode is none",
    hint="give it one with `hutch network update NAME --net public`, or another mode",
)
_KINDS = {
    AddressKind.LAN: (Reason.ADDRESS_LAN, "is on a network of the host, or behind one"),
    AddressKind.HOST: (Reason.ADDRESS_HOST, "is the host itself"),
    AddressKind.METADATA: (Reason.ADDRESS_METADATA, "is a cloud's metadata service"),
    AddressKind.SPECIAL: (
        Reason.ADDRESS_SPECIAL,
        "is of no host on the internet, or the host knows no way to it",
    ),
}


class Rules:
    """A policy, ready to judge. Made by `of`, never changed."""

    __slots__ = (
        *("_allow", "_allowed", "_deny", "_host_ports", "_internal", "_lan", "_mode", "_reserved"),
        "policy",
    )

    def __init__(
        self,
        policy: NetworkPolicy,
        allow: list[Rule],
        deny: list[Rule],
        internal: Collection[str],
        reserved: Collection[int],
    ) -> None:
        self.policy = policy
        self._mode = policy.mode
        self._lan = policy.allow_lan
        self._allowed = allow
        self._allow, self._deny = RuleSet(allow), RuleSet(deny)
        self._host_ports = frozenset(policy.allow_host)
        self._internal = frozenset(internal)
        self._reserved = frozenset(reserved)

    @classmethod
    def of(
        cls,
        policy: NetworkPolicy,
        internal: Collection[str] = (),
        reserved: Collection[int] = (),
    ) -> "Rules":
        """Return the rules of a policy.

        `internal` are domains that only the host's networks know: its search list and the like;
        `reserved` are ports of the host that no policy opens.
        Raises InvalidInput (bad_policy), naming the rule.
        """
        _check(policy)
        return cls(
            policy,
            [parse_rule(text, allow=True) for text in policy.allow],
            [parse_rule(text, allow=False) for text in policy.deny],
            list(_domains(internal)),
            reserved,
        )

    def lookup(self, name: str) -> Decision:
        """Judge a DNS question. INTERNAL_NAME and NAME_NOT_FOUND are to look as if the name did
        not exist; other denials are of a rule or the mode.

        `_service._tcp.NAME` is judged as NAME, unless a rule names it.
        """
        if self._mode is NetworkMode.NONE:
            return _DOWN
        try:
            name = normal(name)
        except ValueError as cause:
            return _no_name(name, cause, Reason.NAME_NOT_FOUND)
        owner = service_owner(name)
        for asked in (name, owner):
            if rule := self._deny.whole_name(asked):
                return _denied(name, rule)
        if name == HOST_NAME and self._host_ports:
            return Decision(True, Reason.ALLOWED, "allow_host", "the host's loopback is open")
        rule = self._allow.name(name, None) or self._allow.name(owner, None)
        return self._by_name(name, None, rule)

    def network(self) -> Decision:
        """Judge whether there is a network at all: without one nothing is even told why."""
        if self._mode is NetworkMode.NONE:
            return _DOWN
        return Decision(True, Reason.ALLOWED, None, f"the mode is {self._mode}")

    def connect(self, name: str | None, port: int) -> Decision:
        """Judge a connection by the name that its address was given for, before a packet leaves.

        None is a connection to a raw address: allowed says only that `address` has to be asked.
        """
        if self._mode is NetworkMode.NONE:
            return _DOWN
        if name is None:
            return self._raw(port)
        try:
            name = normal(name)
        except ValueError as cause:
            return _no_name(name, cause, Reason.NAME_NOT_FOUND)
        if name == HOST_NAME:
            return self.host_port(port)
        if rule := self._deny.name(name, port):
            return _denied(f"{name}:{port}", rule)
        return self._by_name(name, port, self._allow.name(name, port))

    def _by_name(self, name: str, port: int | None, rule: Rule | None) -> Decision:
        """Judge a normal name that nothing denies; `rule` is the one that allows it, if any."""
        what = name if port is None else f"{name}:{port}"
        if rule is not None:
            return _allowed(what, rule)
        others = None if port is None else self._allow.name(name, None)
        internal = is_internal(service_owner(name), self._internal)
        if self._mode is not NetworkMode.DENY and not internal:
            return self._of_mode(what)
        if others is not None:
            return Decision(
                False,
                Reason.PORT_NOT_ALLOWED,
                others.text,
                f"{name} is allowed, but not its port {port}",
                _how_to(what),
            )
        if name.endswith(".hutch"):
            hint = "open ports of the host with `--allow-host PORT`" if name == HOST_NAME else None
            return Decision(
                False, Reason.INTERNAL_NAME, None, f"{name} is not open to the sandbox", hint
            )
        if internal:
            text = f"{name} is a name that only a private network can know"
            return Decision(False, Reason.INTERNAL_NAME, None, text, _how_to(what))
        return Decision(
            False,
            Reason.NOT_ALLOWED,
            None,
            f"no rule allows {what}, and the mode is deny",
            _how_to(what),
        )

    def _of_mode(self, what: str) -> Decision:
        return Decision(True, Reason.ALLOWED, None, f"{what} is allowed by the mode {self._mode}")

    def _raw(self, port: int) -> Decision:
        if self._mode is not NetworkMode.DENY:
            return self._of_mode(f"port {port} of addresses")
        if rule := self._allow.any_network(port):
            return _allowed(f"port {port} of some addresses", rule)
        if self._lan:
            return Decision(True, Reason.ALLOWED, "allow_lan", "addresses of the LAN are allowed")
        return Decision(
            False,
            Reason.NOT_ALLOWED,
            None,
            f"no rule allows any address on port {port}, and the mode is deny",
            "connect by a name that is allowed, or allow the address with"
            f" `--allow ADDRESS:{port}`",
        )

    def address(
        self, address: Address, kind: AddressKind, port: int, name: str | None = None
    ) -> Decision:
        """Judge one address that is about to be connected to: each candidate of `name`, or the
        raw address that the guest chose.

        `kind` is what `Routes.kind` says of it.
        """
        if self._mode is NetworkMode.NONE:
            return _DOWN
        by_name = None if name is None else self.connect(name, port)
        if by_name is not None and not by_name.allowed:
            return by_name
        address = addresses.canonical(address)
        what = _endpoint(address, port)
        for form in (address, *addresses.embedded(address)):
            if rule := self._deny.network(form, port):
                return _denied(what, rule)
        if by_name is not None and name is not None and normal(name) == HOST_NAME:
            text = f"{HOST_NAME} is the host's loopback, which {address} is not"
            unknown = Decision(False, Reason.ADDRESS_UNKNOWN, None, text)
            return by_name if address.is_loopback else unknown
        if kind is AddressKind.PUBLIC:
            return by_name or self._public(address, port)
        if kind is AddressKind.HOST and port in self._reserved:
            return _published(port)
        for rule in self._allow.networks(address, port):
            if _opens(rule, address, kind):
                return _allowed(what, rule)
        if kind is AddressKind.LAN and self._lan:
            return Decision(True, Reason.ALLOWED, "allow_lan", f"{what} is on the LAN")
        if self._mode is NetworkMode.OPEN and kind in (AddressKind.LAN, AddressKind.SPECIAL):
            return self._of_mode(what)
        return _closed(address, kind, port, name)

    def ports(self, name: str, address: Address) -> list[int]:
        """Return the ports on which a name at an address may be judged otherwise than on others."""
        try:
            named = self._allow.ports(normal(name), addresses.canonical(address))
        except ValueError:
            return []
        return list(dict.fromkeys([*_USUAL_PORTS, *named]))

    def _public(self, address: Address, port: int) -> Decision:
        """Judge a raw public address that nothing denies."""
        what = _endpoint(address, port)
        if self._mode is not NetworkMode.DENY:
            return self._of_mode(what)
        if rule := self._allow.network(address, port):
            return _allowed(what, rule)
        if rule := self._allow.network(address, None):
            text = f"{address} is allowed, but not its port {port}"
            return Decision(False, Reason.PORT_NOT_ALLOWED, rule.text, text, _how_to(what))
        text = f"no rule allows {what}, and the mode is deny"
        return Decision(False, Reason.NOT_ALLOWED, None, text, _how_to(what))

    def server_name(self, name: str | None, said: str | None, port: int) -> Decision:
        """Judge a ClientHello: `said` is its SNI, or None without one.

        It has to be the name of the connection. On a raw connection it may be any but a denied one,
        and be left away.
        """
        before = self.connect(name, port)
        if not before.allowed or self._is_raw_name(name, port):
            return before
        if said is not None:
            return self._said(name, said, port, before, Reason.SERVER_NAME_MISMATCH)
        if name is None:
            return before
        return Decision(
            False,
            Reason.SERVER_NAME_MISSING,
            before.rule,
            f"a TLS connection to {normal(name)} does not say which server it means (no SNI)",
            _say(name, port),
        )

    def host(self, name: str | None, said: str, port: int) -> Decision:
        """Judge an HTTP request by its Host (or authority), with or without a port."""
        before = self.connect(name, port)
        if not before.allowed or self._is_raw_name(name, port):
            return before
        host, said_port = _without_port(said)
        if said_port not in (None, str(port)):
            text = f"the Host {_shown(said)} is for another port than {port}"
            return Decision(False, Reason.HOST_MISMATCH, before.rule, text, _say(name, port))
        return self._said(name, host, port, before, Reason.HOST_MISMATCH)

    def _said(
        self, name: str | None, said: str, port: int, before: Decision, mismatch: Reason
    ) -> Decision:
        """Judge the name that a client says it speaks to, on a connection that is allowed."""
        try:
            heard = normal(said)
        except ValueError as cause:
            if name is None and _is_address(said):
                return before
            return _no_name(said, cause, mismatch)
        if rule := self._deny.name(heard, port):
            return _denied(f"{heard}:{port}", rule)
        if name is None or heard == normal(name):
            return before
        text = f"the connection is to {normal(name)}, but what is sent is for {heard}"
        return Decision(False, mismatch, before.rule, text, _say(name, port))

    def is_raw(self, name: str | None, port: int, address: Address | None = None) -> bool:
        """Return whether a rule allows what is not TLS on 443 nor HTTP on 80: `/tcp`.

        For a raw connection `name` is None, and `address` tells where to.
        """
        if name is not None:
            return self._is_raw_name(name, port)
        if address is None:
            return False
        return self._allow.is_raw_address(addresses.canonical(address), port)

    def _is_raw_name(self, name: str | None, port: int) -> bool:
        if name is None:
            return False
        try:
            return self._allow.is_raw_name(normal(name), port)
        except ValueError:
            return False

    def host_port(self, port: int) -> Decision:
        """Judge a connection to a port of the host's loopback, by `host.hutch`."""
        if self._mode is NetworkMode.NONE:
            return _DOWN
        what = f"{HOST_NAME}:{port}"
        if rule := self._deny.name(HOST_NAME, port):
            return _denied(what, rule)
        if port in self._reserved:
            return _published(port)
        if port in self._host_ports:
            return Decision(True, Reason.ALLOWED, f"allow_host {port}", f"{what} is open")
        return Decision(
            False,
            Reason.PORT_NOT_ALLOWED if self._host_ports else Reason.NOT_ALLOWED,
            None,
            f"{what} is not open to the sandbox",
            f"open it with `--allow-host {port}`",
        )

    def may_open_host(self) -> bool:
        """Return whether anything here could open a port of the host, or an address of it."""
        return bool(self._host_ports) or any(
            rule.network is not None and rule.network.prefixlen == rule.network.max_prefixlen
            for rule in self._allowed
        )

    def warnings(self) -> list[str]:
        """Return what in the policy opens more than it seems to, or does nothing."""
        return cautions(self.policy, self._allowed, self._deny)


def _check(policy: NetworkPolicy) -> None:
    """Raise InvalidInput (bad_policy) for fields of a wrong type, and lists that are too long.

    The types are not taken on trust: a mode that is a mere text would be no mode, and so open.
    """
    if not isinstance(policy.mode, NetworkMode) or not isinstance(policy.allow_lan, bool):
        raise error("bad_policy", "its `mode` is no mode, or `allow_lan` neither true nor false")
    for listed, values, limit in (
        ("allow", policy.allow, RULES_MAX),
        ("deny", policy.deny, RULES_MAX),
        ("allow_host", policy.allow_host, HOST_PORTS_MAX),
    ):
        if not isinstance(values, list):
            raise error("bad_policy", f"`{listed}` is no list")
        if len(values) > limit:
            raise error(
                "bad_policy",
                f"{len(values)} entries of `{listed}` are too many",
                hint=f"give {limit} at most; `*.example.com` and CIDRs replace many",
            )
    for port in policy.allow_host:
        if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
            raise error(
                "bad_policy",
                f"{str(port)[:20]!r} in `allow_host` is no port",
                hint="give ports from 1 to 65535",
            )


def _domains(texts: Collection[str]) -> Iterator[str]:
    for text in texts:
        with suppress(ValueError):  # what is no name has no names below it
            yield normal(text)


def _opens(rule: Rule, address: Address, kind: AddressKind) -> bool:
    """Return whether a rule that has an address in it is meant for what is not public."""
    assert rule.network is not None
    length = rule.network.prefixlen
    if kind in (AddressKind.LAN, AddressKind.SPECIAL):
        return length >= WIDEST[address.version]
    return length == address.max_prefixlen


def _closed(address: Address, kind: AddressKind, port: int, name: str | None) -> Decision:
    """Return the denial of an address that is not public."""
    reason, what = _KINDS[kind]
    endpoint = _endpoint(address, port)
    hint = f"allow it with `--allow {endpoint}`"
    if kind is AddressKind.LAN:
        hint += ", or all such networks with `--allow-lan`"
        if addresses.special(address) is None:
            what = "is reached by a route of the host that is not its default one"
            hint += "; if that leads to the internet, set `network_public_routes`"
    elif kind is AddressKind.HOST:
        hint = f"open a port of the host's loopback with `--allow-host {port}`, as {HOST_NAME}"
    elif kind is AddressKind.METADATA:
        hint += ": only a rule for this very address opens it"
    before = f"{normal(name)} is at {address}, which" if name is not None else str(address)
    return Decision(False, reason, None, f"{before} {what}", hint)


def _published(port: int) -> Decision:
    """Return the denial of a port of the host that no policy opens."""
    text = f"port {port} of the host is published for a sandbox, and closed to all others"
    return Decision(False, Reason.NOT_ALLOWED, None, text)


def _allowed(what: str, rule: Rule) -> Decision:
    return Decision(True, Reason.ALLOWED, rule.text, f"{what} is allowed by {rule.text}")


def _denied(what: str, rule: Rule) -> Decision:
    return Decision(
        False,
        Reason.DENIED_BY_RULE,
        rule.text,
        f"{what} is denied by {rule.text}",
        f"take {rule.text} out of `deny`, which wins over all that is allowed",
    )


def _no_name(text: str, cause: ValueError, reason: Reason) -> Decision:
    return Decision(False, reason, None, f"{_shown(text)} is no name: {cause}")


def _shown(text: str) -> str:
    """Return a guest's text so that it can be told: quoted, escaped, and short."""
    return ascii(text[:64])


def _endpoint(address: Address, port: int) -> str:
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def _how_to(what: str) -> str:
    return f"allow it with `--allow {what}`, also in a running sandbox (`hutch network update`)"


def _say(name: str | None, port: int) -> str | None:
    """Return what helps where a name is spoken to as another."""
    if name is None:
        return None
    return f"connect by the name that is meant, or allow `{normal(name)}:{port}/tcp`"


def _without_port(said: str) -> tuple[str, str | None]:
    """Return the name or address in a Host header, and its port as it stands there."""
    host, colon, port = said.rpartition(":")
    return (said, None) if not colon or "]" in port else (host, port)


def _is_address(text: str) -> bool:
    try:
        addresses.parse(text)
    except ValueError:
        return False
    return True
