"""Who may be connected to, and the connection to it: before a guest's own is answered, or after.

The order is the policy's: the name and port, what the name resolves to, each address, then the
first packet upstream. After each wait it is asked again whether the policy still stands.
"""

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Final

from hutch.network.addresses import Address, AddressKind
from hutch.network.dns.message import Code
from hutch.network.gateway.accept import reset
from hutch.network.gateway.connection import NO_POLICY, Connection, Phase, Place, unknown
from hutch.network.gateway.dial import DialError, dial
from hutch.network.gateway.inforce import InForce
from hutch.network.policy import Rules
from hutch.networking import HOST_ADDRESS, SYNTHETIC_RANGE, Decision, Reason

DNS_PORT: Final = 53

_SYNTHETIC: Final = IPv4Network(SYNTHETIC_RANGE)
_LOOPBACK: Final = (
    (IPv4Address("127.0.0.1"), AddressKind.HOST),
    (IPv6Address("::1"), AddressKind.HOST),
)


class Refused(Exception):
    """The policy denies it."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.text)
        self.decision = decision


class Unreached(Exception):
    """The policy allows it, but it cannot be had; `decision` says why."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.decision = Decision(True, reason, text=text)


def identify(number: int, destination: tuple[str, int], in_force: InForce) -> Connection:
    """Return the connection to an address and port that a guest chose. Raises ValueError."""
    address, port = IPv4Address(destination[0]), destination[1]
    name = None
    if port == DNS_PORT:
        place = Place.RESOLVER
    elif str(address) == HOST_ADDRESS:
        place = Place.HOST
    elif in_force.names is not None and (name := in_force.names.name_of(address)) is not None:
        place = Place.NAME
    else:
        place = Place.NOTHING if address in _SYNTHETIC else Place.RAW
    connection = Connection(number, address, port, place, name)
    connection.generation = in_force.generation
    return connection


def confirm(connection: Connection, in_force: InForce) -> Rules:
    """Judge again what is known of a connection, if the policy has changed since.

    Returns the rules that are in force. Raises Refused.
    """
    rules = in_force.rules
    if rules is None:
        raise Refused(NO_POLICY)
    if connection.generation != in_force.generation:
        if not (decision := connection.verdict(rules)).allowed:
            raise Refused(decision)
        connection.generation = in_force.generation
    return rules


async def reach(connection: Connection, in_force: InForce) -> socket.socket:
    """Return a socket that is connected to where a connection wants to, and may.

    Raises Refused, Unreached.
    """
    rules = confirm(connection, in_force)
    if not (decision := connection.verdict(rules)).allowed:
        raise Refused(decision)
    connection.rule = decision.rule
    addresses = await _addresses(connection, in_force)
    async with in_force.half_open:
        rules = confirm(connection, in_force)
        connection.candidates = _permitted(connection, addresses, in_force, rules)
        connection.phase = Phase.CONNECTING
        try:
            upstream, chosen = await dial(
                [address for address, _ in connection.candidates],
                connection.port,
                timeout=in_force.limits.dial_time,
            )
        except DialError as failure:
            raise Unreached(failure.reason, str(failure)) from failure
    try:
        connection.candidates = tuple(pair for pair in connection.candidates if pair[0] == chosen)
        confirm(connection, in_force)
    except BaseException:
        reset(upstream)
        raise
    return upstream


async def _addresses(connection: Connection, in_force: InForce) -> Sequence[Address]:
    if connection.place is not Place.NAME:
        return (connection.address,)
    assert connection.name is not None
    answer = await in_force.resolver.addresses(connection.name)
    if answer.addresses:
        return answer.addresses
    if answer.code is Code.SERVFAIL:
        text = answer.text or f"{connection.name} cannot be resolved"
        raise Unreached(Reason.RESOLVE_FAILED, text)
    raise Unreached(Reason.NAME_NOT_FOUND, f"{connection.name} has no address")


def _permitted(
    connection: Connection, addresses: Sequence[Address], in_force: InForce, rules: Rules
) -> tuple[tuple[Address, AddressKind], ...]:
    """Return the addresses that may be tried, and where each leads. Raises Refused."""
    if connection.place is Place.HOST:
        return _LOOPBACK
    if connection.place is not Place.NAME and connection.place is not Place.RAW:
        raise Refused(unknown(connection.address))
    permitted, denied = [], None
    for address in addresses:
        kind = in_force.kind(address)
        decision = rules.address(address, kind, connection.port, connection.name)
        if decision.allowed:
            permitted.append((address, kind))
            connection.rule = connection.rule or decision.rule
        else:
            denied = denied or decision
    if not permitted:
        raise Refused(denied or unknown(connection.address))
    return tuple(permitted)
