"""The resolver that guests ask: what a policy lets them know, and never more.

Addresses are always synthetic ones of the sandbox's own table; the real ones stay on the host. A
name that is denied by a rule gets one, too (a sinkhole), so that the connection to it can be told
why; one that is internal looks like one that does not exist. Every query is judged again after each
wait. It knows nothing of sockets.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any, Final, Protocol, Self

from hutch.errors import error
from hutch.network.dns.client import Address, Resolver
from hutch.network.dns.message import (
    EDNS_LIMIT,
    HEADER,
    INTERNET,
    MESSAGE_LIMIT,
    OPT,
    PLAIN_LIMIT,
    QUERY,
    TSIG,
    Code,
    Detail,
    Edns,
    Field,
    FormatError,
    Message,
    Record,
    Type,
    decode,
    encode,
    extended_error,
)
from hutch.network.dns.quota import Bucket, Quota
from hutch.network.names import HOST_NAME, normal
from hutch.network.synthetic import NameTable, TableFull
from hutch.networking import HOST_ADDRESS, Decision, Reason

log = logging.getLogger(__name__)

QUERY_LIMIT: Final = 1232
"""Bytes of a query: a name, a type, and a few options."""

# Records of allowed names that are passed on. What they point to is judged when it is asked for.
_PASSED: Final = frozenset(
    {Type.SRV, Type.MX, Type.TXT, Type.CAA, Type.SOA, Type.NS, Type.NAPTR, Type.PTR}
)
_NOT_FOR_GUESTS: Final = frozenset(
    {OPT, TSIG, Type.NULL, Type.TKEY, Type.IXFR, Type.AXFR, Type.MAILA, Type.MAILB}
)
_SIG: Final = 24
_HINFO: Final[tuple[Field, ...]] = (b"RFC8482", b"")
_ADDRESS_KINDS: Final = frozenset({Type.A, Type.AAAA, Type.SVCB, Type.HTTPS})
_REMEMBERED: Final = 1024  # names that were recorded
_RECORD_PAUSE: Final = 1.0  # seconds in which the same about the same name is recorded once
_REVERSED: Final = (".in-addr.arpa", ".ip6.arpa")
_ONLY_HERE: Final = ("localhost", "hutch")


class Denied(StrEnum):
    """What a name is answered with that a rule denies."""

    SINKHOLE = "sinkhole"  # an address, at which the connection is refused with the reason
    NXDOMAIN = "nxdomain"


class Policy(Protocol):
    """What is asked of the policy that is in force now: each call, afresh."""

    def lookup(self, name: str) -> Decision:
        """Judge a name, before anything is asked about it."""

    def permitted(self, name: str | None, addresses: Sequence[Address]) -> Decision:
        """Judge what a name resolves to: allowed if one address is, on any port.

        None: raw addresses.
        """


class Recorder(Protocol):
    """Takes what was decided, for the sandbox's log."""

    def __call__(
        self, decision: Decision, *, name: str, address: str | None = None, detail: str = ""
    ) -> None:
        """`detail` is the type that was asked for."""


@dataclass(frozen=True, slots=True)
class GuestLimits:
    """How much a guest may ask, and what it is told of what it may not know."""

    in_flight: int = 64
    queries: float = 200.0  # a second, and twice as many at once
    denied: Denied = Denied.SINKHOLE
    longest_ttl: int = 60  # seconds that a guest may remember what it was allowed to know
    denied_ttl: int = 5
    denied_names: int = 2048  # of the table; more than that are answered NXDOMAIN
    # Of names that a rule allows without naming them, which could carry data out, and in:
    label_bytes: int = 120  # of the labels that the rule leaves open
    new_names: float = 30.0  # a minute, and as many at once
    questions: float = 240.0  # a minute, and as many at once, to the host's resolvers
    answer_bytes: float = 4096.0  # a minute, and at once: of records that are passed on

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the limits that `values` say. Raises bad_setting."""
        usual: Self = cls()
        said: dict[str, Any] = {}
        try:
            for name, value in values.items():
                kind = type(getattr(usual, name))
                if isinstance(value, bool) or (kind is not Denied and not 0 <= value < 1e9):
                    raise ValueError(value)
                said[name] = kind(value)
        except (AttributeError, TypeError, ValueError) as cause:
            raise error("bad_setting", f"there is no limit of DNS like {values!r}") from cause
        return cls(**said)


@dataclass(frozen=True, slots=True)
class _Reply:
    """What a question is answered with. Without records, a SOA says how long that holds."""

    code: int = Code.NOERROR
    kind: int = Type.A
    ttl: int = 0
    data: tuple[tuple[Field, ...], ...] = ()
    blocked: str | None = None  # why it was denied, for those that take extended errors


_NOTHING: Final = _Reply()
_NO_SUCH_NAME: Final = _Reply(Code.NXDOMAIN)
_FAILED: Final = _Reply(Code.SERVFAIL)


DEFAULTS: Final = GuestLimits()


class GuestResolver:
    """The resolver of one sandbox."""

    def __init__(
        self,
        policy: Policy,
        names: NameTable,
        upstream: Resolver,
        record: Recorder,
        limits: GuestLimits = DEFAULTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._names = names
        self._upstream = upstream
        upstream.guard = self
        self._record = record
        self._limits = limits
        self._clock = clock
        self._in_flight = 0
        self._queries = Bucket(limits.queries, 2 * limits.queries, clock)
        self._quota = Quota(
            label_bytes=limits.label_bytes,
            new_names=limits.new_names,
            questions=limits.questions,
            answer_bytes=limits.answer_bytes,
            clock=clock,
        )
        self._recorded: OrderedDict[tuple[object, ...], float] = OrderedDict()

    def may_follow(self, name: str) -> bool:
        """Whether a name that a CNAME leads to may be known: what is internal, or denied by a rule,
        may not. What the mode alone denies is judged by its addresses.
        """
        if name.endswith(_REVERSED):
            name = name.replace("/", "-")  # RFC 2317
        decision = self._policy.lookup(name)
        return decision.allowed or decision.reason is Reason.NOT_ALLOWED

    def may_ask(self, name: str) -> float | None:
        """Return for how many seconds an answer about a name is remembered at least; None if
        nothing may be asked about it now. Also for the names of connections.
        """
        return self._quota.ask(self._policy.lookup(name).rule, name)

    async def answer(self, query: bytes, tcp: bool) -> bytes | None:
        """Return what to send to the guest, without TCP's length; None to send nothing.

        What is beyond the limits of queries is not answered: programs ask again. Raises nothing.
        """
        if len(query) < HEADER.size or query[2] & 0x80:  # an answer: never answered
            return None
        if self._in_flight >= self._limits.in_flight or not self._queries.take(1):
            text = "the sandbox asks for more names than it may at once"
            self._note(Decision(False, Reason.LIMIT, text=text), "", 0)
            return None
        try:
            if len(query) > QUERY_LIMIT:
                raise FormatError("a query is too long")
            message = decode(query)
        except FormatError:
            return _malformed(query)
        self._in_flight += 1
        try:
            reply = await self._judged(message)
        except Exception:  # the guest must never get further by an error of ours
            log.exception("a query of a guest failed")
            reply = _FAILED
        finally:
            self._in_flight -= 1
        return self._written(message, reply, tcp)

    def _written(self, query: Message, reply: _Reply, tcp: bool) -> bytes:
        """Return an answer as it is sent: it repeats the question's bytes, and holds no names but
        the question's and those of passed records.
        """
        question = query.question
        owner = question.name if question else ""
        ttl = self._limits.denied_ttl
        soa = Record("", Type.SOA, ttl, (HOST_NAME, "nobody.hutch", 1, 3600, 600, 86400, ttl))
        negative = reply.code in (Code.NOERROR, Code.NXDOMAIN) and not reply.data
        edns = None
        size = PLAIN_LIMIT
        if query.edns is not None:
            size = min(max(query.edns.size, PLAIN_LIMIT), EDNS_LIMIT)
            said = reply.blocked
            why = () if said is None else (extended_error(Detail.BLOCKED, said),)
            edns = Edns(options=why)
        message = Message(
            query.identity,
            question,
            response=True,
            operation=query.operation,
            code=reply.code,
            recursion_desired=query.recursion_desired,
            recursion_available=True,
            answers=tuple(Record(owner, reply.kind, reply.ttl, data) for data in reply.data),
            authority=(soa,) if negative else (),
            edns=edns,
        )
        return encode(message, MESSAGE_LIMIT if tcp else size)

    async def _judged(self, message: Message) -> _Reply:
        question = message.question
        signed = any(one.type in (TSIG, _SIG) for one in message.additional)
        if message.operation != QUERY or signed:
            return _Reply(Code.NOTIMP)
        if question is None or message.answers or message.authority:
            return _Reply(Code.FORMERR)
        if message.edns is not None and message.edns.version:
            return _Reply(Code.BADVERS)
        if question.kind != INTERNET or question.type in _NOT_FOR_GUESTS:
            return _Reply(Code.NOTIMP)
        if not question.name:
            return _NOTHING
        try:
            name = normal(question.name)
        except ValueError:
            return _NO_SUCH_NAME
        if name.rpartition(".")[2] in _ONLY_HERE:
            return self._local(name, question.type)
        if name.endswith(".arpa"):
            return await self._reversed(name, question.type)
        return await self._named(name, question.type)

    def _local(self, name: str, kind: int) -> _Reply:
        """Answer for names that nobody outside is ever asked about."""
        if name == HOST_NAME:
            decision = self._policy.lookup(name)
            self._note(decision, name, kind, HOST_ADDRESS if decision.allowed else None)
            if not decision.allowed:
                return _NO_SUCH_NAME
            return self._found(IPv4Address(HOST_ADDRESS), kind, self._limits.longest_ttl)
        if name.rpartition(".")[2] == "localhost":  # RFC 6761
            return self._found(IPv4Address("127.0.0.1"), kind, self._limits.longest_ttl)
        return _NO_SUCH_NAME

    def _found(self, address: IPv4Address, kind: int, ttl: int) -> _Reply:
        """Answer for a name that has an address, and nothing else."""
        if kind == Type.A:
            return _Reply(kind=kind, ttl=ttl, data=((address,),))
        return _minimal(kind, ttl)

    async def _reversed(self, name: str, kind: int) -> _Reply:
        """Answer for the name of an address."""
        address = _address(name)
        if isinstance(address, IPv4Address) and address in self._names.network:
            known = HOST_NAME if str(address) == HOST_ADDRESS else self._names.name_of(address)
            if known is None or (known == HOST_NAME and not self._policy.lookup(known).allowed):
                return _NO_SUCH_NAME
            if kind != Type.PTR:
                return _minimal(kind, self._limits.longest_ttl)
            return _Reply(kind=kind, ttl=self._limits.longest_ttl, data=((known,),))
        if address is None or kind != Type.PTR:
            return _NO_SUCH_NAME
        decision = self._may_reverse(name, address)
        if decision.allowed:
            said = await self._upstream.query(name, kind)
            decision = self._may_reverse(name, address)
        self._note(decision, name, kind)
        return self._passed(said, kind) if decision.allowed else _NO_SUCH_NAME

    def _may_reverse(self, name: str, address: Address) -> Decision:
        """Judge the name of an address: what may not be connected to has none.

        No rule allows such a name itself: where the mode denies names, rules of addresses count.
        """
        decision = self._policy.lookup(name)
        if decision.allowed or decision.reason is Reason.NOT_ALLOWED:
            return self._policy.permitted(None, [address])
        return decision

    async def _named(self, name: str, kind: int) -> _Reply:
        """Answer for any other name: it exists if it does so outside, and has an address that the
        sandbox may know of.
        """
        decision = self._policy.lookup(name)
        if not decision.allowed:
            return self._denied(decision, name, kind)
        if (limited := self._quota.beyond(decision.rule, name)) is not None:
            return self._denied(limited, name, kind)
        answer = await self._upstream.addresses(name)
        decision = self._policy.lookup(name)
        if not decision.allowed:
            return self._denied(decision, name, kind)
        if answer.code == Code.SERVFAIL:
            text = f"{name} could not be resolved: {answer.text}"
            return self._denied(Decision(False, Reason.RESOLVE_FAILED, text=text), name, kind)
        if answer.code != Code.NOERROR:
            text = answer.text or f"{name} does not exist"
            return self._denied(Decision(False, Reason.NAME_NOT_FOUND, text=text), name, kind)
        if answer.addresses:
            permitted = self._policy.permitted(name, answer.addresses)
            if not permitted.allowed:
                self._note(permitted, name, kind)
                return _NO_SUCH_NAME
        if kind in _PASSED:
            return await self._about(name, kind)
        ttl = max(1, min(answer.ttl, self._limits.longest_ttl))
        if not answer.addresses or kind != Type.A:
            self._note(decision, name, kind)
            return _minimal(kind, ttl)
        try:
            address = self._names.address_of(name)
        except (TableFull, OSError) as cause:
            if isinstance(cause, OSError):
                log.error("the names of a sandbox cannot be written: %s", cause)
            text = "the sandbox has no room for more names"
            return self._denied(Decision(False, Reason.LIMIT, text=text), name, kind)
        self._note(decision, name, kind, str(address))
        return self._found(address, kind, ttl)

    async def _about(self, name: str, kind: int) -> _Reply:
        """Answer with records of an allowed name."""
        said = await self._upstream.query(name, kind)
        decision = self._policy.lookup(name)
        if not decision.allowed:
            return self._denied(decision, name, kind)
        reply = self._passed(said, kind)
        size = sum(_size(data) for data in reply.data)
        if (limited := self._quota.answered(decision.rule, name, size)) is not None:
            return self._denied(limited, name, kind)
        self._note(decision, name, kind)
        return reply

    def _passed(self, said: Message, kind: int) -> _Reply:
        """Return what resolvers said as a reply: the records that were asked for, under the name
        that was asked for.
        """
        if said.code == Code.SERVFAIL:
            return _FAILED
        if said.code != Code.NOERROR:
            return _NO_SUCH_NAME
        found = [one for one in said.answers if one.type == kind]
        ttl = min((one.ttl for one in found), default=0)
        ttl = max(1, min(ttl, self._limits.longest_ttl))
        return _Reply(kind=kind, ttl=ttl, data=tuple(one.data for one in found))

    def _denied(self, decision: Decision, name: str, kind: int) -> _Reply:
        """Answer for a name that the sandbox is to know nothing of."""
        if decision.reason in (Reason.INTERNAL_NAME, Reason.NAME_NOT_FOUND):
            self._note(decision, name, kind)
            return _NO_SUCH_NAME
        if decision.reason in (Reason.LIMIT, Reason.RESOLVE_FAILED):
            self._note(decision, name, kind)
            return _FAILED
        address = self._sinkhole(decision, name)
        self._note(decision, name, kind, None if address is None else str(address))
        why = decision.text or str(decision.reason)
        if address is None:
            return replace(_NO_SUCH_NAME, blocked=why)
        return replace(self._found(address, kind, self._limits.denied_ttl), blocked=why)

    def _sinkhole(self, decision: Decision, name: str) -> IPv4Address | None:
        """Return the address at which a connection to a denied name can be told why."""
        if self._limits.denied is not Denied.SINKHOLE or decision.reason is Reason.NETWORK_DOWN:
            return None
        if name not in self._names and len(self._names) >= self._limits.denied_names:
            return None
        try:
            return self._names.address_of(name)
        except (TableFull, OSError) as cause:
            log.warning("a name that is denied gets no address: %s", cause)
            return None

    def _note(self, decision: Decision, name: str, kind: int, address: str | None = None) -> None:
        """Record a decision, once for all types of addresses that are asked for at a time."""
        key = (name, kind in _ADDRESS_KINDS or kind, decision.allowed, decision.reason)
        now = self._clock()
        if now - self._recorded.get(key, -_RECORD_PAUSE) < _RECORD_PAUSE:
            return
        self._recorded[key] = now
        self._recorded.move_to_end(key)
        if len(self._recorded) > _REMEMBERED:
            self._recorded.popitem(last=False)
        said = Type(kind).name if kind in Type.__members__.values() else f"TYPE{kind}"
        self._record(decision, name=name, address=address, detail=said if kind else "")


def _malformed(query: bytes) -> bytes:
    """Return the answer to a query that cannot be read: nothing of it but its id."""
    identity = int.from_bytes(query[:2], "big")
    operation = query[2] >> 3 & 15
    return encode(Message(identity, None, response=True, operation=operation, code=Code.FORMERR))


def _minimal(kind: int, ttl: int) -> _Reply:
    """Answer for a type that an existing name does not have, or that is not told (RFC 8482)."""
    if kind == Type.ANY:
        return _Reply(kind=Type.HINFO, ttl=ttl, data=(_HINFO,))
    return _NOTHING


def _address(name: str) -> Address | None:
    """Return the whole address that a name below in-addr.arpa or ip6.arpa stands for."""
    labels = name.split(".")[::-1]
    try:
        if labels[1] == "in-addr" and len(labels) == 6:
            return IPv4Address(".".join(labels[2:]))
        if labels[1] == "ip6" and len(labels) == 34:
            groups = ["".join(labels[at : at + 4]) for at in range(2, 34, 4)]
            if all(len(label) == 1 for label in labels[2:]):
                return IPv6Address(":".join(groups))
    except AddressValueError:
        pass
    return None


def _size(data: tuple[Field, ...]) -> int:
    return 12 + sum(len(one) if isinstance(one, str | bytes) else 4 for one in data)
