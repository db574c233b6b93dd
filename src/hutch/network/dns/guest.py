"""The resolver that guests ask: what a policy lets them know, and never more.

Addresses are always synthetic ones of the sandbox's own table; the real ones stay on the host. A
name that is denied by a rule gets one, too (a sinkhole), so that the connection to it can be told
why; one that is internal looks like one that does not exist. Every query is judged again after each
wait. It knows nothing of sockets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from hutch.network.dns.client import Address, Resolver
from hutch.network.synthetic import NameTable
from hutch.networking import Decision


class Denied(StrEnum):
    """What a name is answered with that a rule denies."""

    SINKHOLE = "sinkhole"  # an address, at which the connection is refused with the reason
    NXDOMAIN = "nxdomain"


class Policy(Protocol):
    """What is asked of the policy that is in force now: each call, afresh."""

    def lookup(self, name: str) -> Decision:
        """Judge a name, before anything is asked about it."""

    def permitted(self, name: str, addresses: Sequence[Address]) -> Decision:
        """Judge what a name resolves to: allowed if one address is, on any port."""

    def opens_host(self) -> bool:
        """Whether any port of the host's loopback is open."""


class Recorder(Protocol):
    """Takes what was decided, for the sandbox's log."""

    def __call__(
        self, decision: Decision, *, name: str, address: str | None = None, detail: str = ""
    ) -> None:
        """`detail` is the type that was asked for."""


@dataclass(frozen=True, slots=True)
class GuestLimits:
    """How much a guest may ask. The first two are of all its queries."""

    in_flight: int = 64
    queries: float = 200.0  # a second, and as many at once
    denied: Denied = Denied.SINKHOLE
    longest_ttl: int = 60  # seconds that a guest may remember what it was allowed to know
    denied_ttl: int = 5
    # Of names below a wildcard rule, which could carry data out, and in:
    label_bytes: int = 120  # of the labels that the rule leaves open
    new_names: float = 30.0  # a minute, and as many at once
    answer_bytes: float = 4096.0  # a minute: of TXT and other records that are passed on


class GuestResolver:
    """The resolver of one sandbox."""

    def __init__(
        self,
        policy: Policy,
        names: NameTable,
        upstream: Resolver,
        record: Recorder,
        limits: GuestLimits = GuestLimits(),
    ) -> None:
        self._policy = policy
        self._names = names
        self._upstream = upstream
        self._record = record
        self._limits = limits

    async def answer(self, query: bytes, tcp: bool) -> bytes | None:
        """Return what to send to the guest, without TCP's length; None to send nothing.

        Raises nothing.
        """
        raise NotImplementedError
