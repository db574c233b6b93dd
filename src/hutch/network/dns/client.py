"""A client of the host's resolvers, over sockets of our own: never getaddrinfo.

So that neither the hosts file nor a search list or mDNS answers for a name that a guest made up. It
asks for absolute names, believes only what answers its very question, and remembers answers by
their TTL. It knows nothing of guests or policies.
"""

import asyncio
import errno
import random
import resource
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final, Protocol

from hutch.errors import HutchError, error
from hutch.network.dns.cache import FINAL, Cache, CacheLimits
from hutch.network.dns.message import (
    EDNS_LIMIT,
    Code,
    Detail,
    Edns,
    FormatError,
    Message,
    Question,
    Record,
    Type,
    decode,
    encode,
    extended_error,
    framed,
    told,
)
from hutch.tasks import Scope

Address = IPv4Address | IPv6Address
Server = tuple[str, int]
"""A numeric address, with its interface if need be (`fe80::1%eth0`), and a port."""

RESOLV_CONF: Final = Path("/etc/resolv.conf")

_SERVERS: Final = 3  # that are read of a configuration, as in libc
_LINKS: Final = 16  # CNAMEs in one answer
_QUESTIONS: Final = 8  # for one name whose CNAMEs come one by one
_STRAYS: Final = 32  # datagrams that are no answer, until no more are read
_ADDRESSES: Final = 32  # of one name
_SPARE: Final = 64
"""Descriptors that a process keeps for more than questions: it fails them before it is stuck."""
_random: Final = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Limits:
    """How long is asked, how much at once, and how much is remembered.

    libc in a guest waits for 5 seconds: within these it is to have an answer.
    """

    attempt: float = 1.5  # seconds for one exchange with one server
    total: float = 4.5  # seconds for all exchanges with all servers
    rounds: int = 3  # through the servers, for those that stay silent
    other_family: float = 0.3  # seconds for the addresses of one family when the other's are known
    asked: int = 128  # questions at once
    cache: CacheLimits = field(default_factory=CacheLimits)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a name resolves to: addresses of both families, for `ttl` seconds.

    Without addresses, `code` tells why: NOERROR (the name exists, but has none), NXDOMAIN, or
    SERVFAIL, also when nobody answered; `text` says more.
    """

    addresses: tuple[Address, ...]
    ttl: int
    code: Code
    text: str = ""


class Guard(Protocol):
    """What a client asks before it goes on, each time."""

    def may_follow(self, name: str) -> bool:
        """Whether a name that a CNAME leads to may be known: else nothing is asked about it, and
        the name that leads there looks as if it did not exist.
        """

    def may_ask(self, name: str) -> float | None:
        """Return for how many seconds an answer about a name is remembered at least; None if the
        host's resolvers may not be asked about it now.
        """


class Resolver:
    """One sandbox's client: what it asked tells no other sandbox anything."""

    def __init__(
        self,
        servers: Sequence[Server] | Callable[[], Sequence[Server]],
        limits: Limits = Limits(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`servers` are asked in turn; a callable is asked for them each time."""
        self.guard: Guard | None = None
        self._servers = servers
        self._limits = limits
        self._scope = Scope("dns")
        self._cache = Cache(limits.cache, clock)
        self._asking: dict[Question, asyncio.Task[Message]] = {}
        self._good: Server | None = None
        self._closed = False

    async def addresses(self, name: str) -> Answer:
        """Return the addresses of an absolute name, in its normal form. Raises nothing."""
        kinds = (Type.A, Type.AAAA)
        known = [self._known(Question(name, kind)) for kind in kinds]
        if known[0] is not None and known[1] is not None:
            return _joined([known[0], known[1]])
        asked = [self._scope.start(f"{kind.name} {name}", self.query(name, kind)) for kind in kinds]
        try:
            done, missing = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            if missing:
                found = any(_addresses(task.result()) for task in done if not task.cancelled())
                await asyncio.wait(missing, timeout=self._limits.other_family if found else None)
            return _joined(
                [task.result() for task in asked if task.done() and not task.cancelled()]
            )
        finally:
            for task in asked:
                task.cancel()  # it only waits: what was asked goes on, and is remembered

    async def query(self, name: str, kind: int) -> Message:
        """Return what the host's resolvers say about one type of a name, CNAMEs followed.

        `answers` holds the CNAMEs and the records of that type that they lead to, nothing else;
        TTLs are what is left of them. Without such records, `authority` holds the zone's SOA if it
        was told. The code is NOERROR, NXDOMAIN or SERVFAIL. Raises nothing.
        """
        question = Question(name, int(kind))
        if (known := self._known(question)) is not None:
            return known
        if (task := self._asking.get(question)) is None:
            if self._closed or len(self._asking) >= self._limits.asked:
                return _failed(question, "too many questions at once")
            least = 0.0 if self.guard is None else self.guard.may_ask(name)
            if least is None:
                return _failed(question, "too many questions in a minute about what no rule names")
            task = self._scope.start(f"{kind} {name}", self._ask(question, least))
            self._asking[question] = task
            task.add_done_callback(lambda _: self._asking.pop(question, None))
        await asyncio.wait({task})
        if task.cancelled() or task.exception() is not None:
            return _failed(question, "the question was given up")
        return self._guarded(question, task.result())

    async def close(self) -> None:
        """End all questions; those who wait for them are answered SERVFAIL."""
        self._closed = True
        await self._scope.close()

    def _known(self, question: Question) -> Message | None:
        known = self._cache.get(question)
        return None if known is None else self._guarded(question, known)

    def _guarded(self, question: Question, message: Message) -> Message:
        """Return an answer as the guard lets it be known, now."""
        where = self._closed_off(message.answers)
        return message if where is None else _hidden(question, where)

    def _closed_off(self, links: Sequence[Record]) -> str | None:
        """Return where CNAMEs lead that may not be known."""
        if self.guard is None:
            return None
        targets = [str(one.data[0]) for one in links if one.type == Type.CNAME]
        return next((name for name in targets if not self.guard.may_follow(name)), None)

    async def _ask(self, question: Question, least: float) -> Message:
        """Ask until the CNAMEs of a name have come to an end."""
        links: list[Record] = []
        now = question
        try:
            async with asyncio.timeout(self._limits.total):
                for _ in range(_QUESTIONS):
                    reply = await self._exchange(now)
                    if reply.code not in FINAL:
                        return _failed(question, told(reply) or f"answered {_code(reply.code)}")
                    more, found, end = _followed(reply, now)
                    links += more
                    soa = _negative(reply)
                    if found or not more or reply.code == Code.NXDOMAIN or soa:
                        message = _final(question, reply.code, links, found, soa)
                        self._cache.put(question, message, least)
                        return message
                    if len(links) > _LINKS:
                        break
                    if (where := self._closed_off(more)) is not None:
                        return _hidden(question, where)
                    now = replace(now, name=end)
        except (ValueError, HutchError) as failure:
            return _failed(question, str(failure))
        except TimeoutError:
            return _failed(question, "no resolver of the host answered")
        return _failed(question, "its CNAMEs do not come to an end")

    async def _exchange(self, question: Question) -> Message:
        """Ask one server after the other, the one that answered last at first."""
        servers = list(self._servers() if callable(self._servers) else self._servers)
        servers.sort(key=lambda server: server != self._good)
        reply: Message | None = None
        for _ in range(self._limits.rounds):
            silent = False
            for server in servers:
                try:
                    async with asyncio.timeout(self._limits.attempt):
                        reply = await _one(server, question)
                except OSError:  # a timeout, too
                    silent = True
                    continue
                except ValueError:  # what it says is not read the next time, either
                    continue
                if reply.code in FINAL:
                    self._good = server
                    return reply
            if not silent:
                break
        return reply or _failed(question, "no resolver of the host answered")


def _code(number: int) -> str:
    return Code(number).name if number in Code.__members__.values() else str(number)


def _failed(question: Question, text: str) -> Message:
    why = extended_error(Detail.NO_REACHABLE_AUTHORITY, text)
    return Message(0, question, response=True, code=Code.SERVFAIL, edns=Edns(options=(why,)))


def _hidden(question: Question, where: str) -> Message:
    """Return the answer for a name whose CNAMEs lead to one that may not be known."""
    why = extended_error(Detail.BLOCKED, f"{question.name} leads to {where}, which is closed")
    return Message(0, question, response=True, code=Code.NXDOMAIN, edns=Edns(options=(why,)))


def _addresses(message: Message) -> list[Address]:
    return [one.data[0] for one in message.answers if isinstance(one.data[0], Address)]


def _joined(messages: Sequence[Message]) -> Answer:
    """Return what the answers for both families say together."""
    found = [address for message in messages for address in _addresses(message)[: _ADDRESSES // 2]]
    if found:
        ttl = min(one.ttl for message in messages if _addresses(message) for one in message.answers)
        return Answer(tuple(found), ttl, Code.NOERROR)
    codes = {message.code for message in messages}
    ttl = min((one.ttl for message in messages for one in message.authority), default=0)
    text = next((text for message in messages if (text := told(message))), "")
    if Code.NXDOMAIN in codes:
        return Answer((), ttl, Code.NXDOMAIN, text)
    if codes == {Code.NOERROR}:
        return Answer((), ttl, Code.NOERROR)
    return Answer((), 0, Code.SERVFAIL, text)


def _followed(reply: Message, question: Question) -> tuple[list[Record], list[Record], str]:
    """Return the CNAMEs that lead on from a name, the records asked for at their end, and that end.

    Whatever else an answer holds is not looked at. Raises FormatError for CNAMEs in a circle.
    """
    name = question.name.lower()
    seen = {name}
    links: list[Record] = []
    while True:
        here = [_lower(one) for one in reply.answers if one.name.lower() == name]
        if found := [
            one for one in here if one.type == question.type and one.kind == question.kind
        ]:
            return links, found, name
        link = next((one for one in here if one.type == Type.CNAME), None)
        if link is None:
            return links, [], name
        target = link.data[0]
        if not isinstance(target, str) or target in seen or len(links) >= _LINKS:
            raise FormatError("its CNAMEs do not come to an end")
        links.append(link)
        seen.add(target)
        name = target


def _lower(record: Record) -> Record:
    """Return a record without the case that a question was asked in."""
    data = tuple(field.lower() if isinstance(field, str) else field for field in record.data)
    return replace(record, name=record.name.lower(), data=data)


def _negative(reply: Message) -> Record | None:
    """Return the SOA of a negative answer, with the TTL that the answer has by it (RFC 2308)."""
    for one in reply.authority:
        if one.type == Type.SOA and isinstance(least := one.data[-1], int):
            return replace(_lower(one), ttl=min(one.ttl, least))
    return None


def _final(
    question: Question,
    code: int,
    links: Sequence[Record],
    found: Sequence[Record],
    soa: Record | None,
) -> Message:
    authority = () if found or soa is None else (soa,)
    return Message(
        0, question, response=True, code=code, answers=(*links, *found), authority=authority
    )


async def _one(server: Server, question: Question) -> Message:
    """Ask one server, by datagram, or as it needs it. Raises OSError, FormatError."""
    edns: Edns | None = Edns()
    while True:
        reply = await _by_datagram(server, question, edns)
        if reply is None or reply.truncated:
            reply = await _by_stream(server, question, edns)
        if edns is None or reply.code not in (Code.FORMERR, Code.NOTIMP, Code.BADVERS):
            return reply
        edns = None  # an old server, that knows no extensions


def _query(question: Question, edns: Edns | None) -> Message:
    """Return a query that is hard to guess: with a random id, and the name in random case."""
    name = "".join(_random.choice((one, one.upper())) for one in question.name)
    return Message(_random.getrandbits(16), replace(question, name=name), edns=edns)


def _answers(reply: Message, query: Message) -> bool:
    """Whether a message answers a query, but for the case of its name."""
    if not reply.response or reply.identity != query.identity or reply.operation != query.operation:
        return False
    if reply.question is None or query.question is None:
        return reply.code in (Code.FORMERR, Code.NOTIMP)
    said, asked = reply.question, query.question
    return (said.name.lower(), said.type, said.kind) == (asked.name.lower(), asked.type, asked.kind)


async def _by_datagram(server: Server, question: Question, edns: Edns | None) -> Message | None:
    """Ask from a port of its own; None when the answer has to be had over TCP."""
    loop = asyncio.get_running_loop()
    query = _query(question, edns)
    family, address = _socket_address(server)
    with _socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect(address)  # only what this server sends is received
        await loop.sock_sendall(sock, encode(query))
        for _ in range(_STRAYS):
            data = await loop.sock_recv(sock, EDNS_LIMIT + 1)
            try:
                reply = decode(data)
            except FormatError as failure:
                if failure.identity == query.identity:
                    return None
                continue
            if _answers(reply, query):
                # One that changes the case of names may be forged, or from a server that does so.
                exact = reply.question is None or reply.question == query.question
                return reply if exact else None
    return None


async def _by_stream(server: Server, question: Question, edns: Edns | None) -> Message:
    loop = asyncio.get_running_loop()
    query = _query(question, edns)
    family, address = _socket_address(server)
    with _socket(family, socket.SOCK_STREAM) as sock:
        await loop.sock_connect(sock, address)
        await loop.sock_sendall(sock, framed(encode(query)))
        size = int.from_bytes(await _exactly(sock, 2), "big")
        reply = decode(await _exactly(sock, size))
    if not _answers(reply, query) or reply.truncated:
        raise FormatError("a resolver answered something else")
    return reply


def _socket(family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
    """Return a socket that does not block. Raises OSError, also when only spare ones are left."""
    sock = socket.socket(family, kind)
    sock.setblocking(False)
    if sock.fileno() >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE:
        sock.close()
        raise OSError(errno.EMFILE, "there are spare descriptors only")
    return sock


async def _exactly(sock: socket.socket, count: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < count:
        part = await loop.sock_recv(sock, count - len(data))
        if not part:
            raise FormatError("a resolver ended its answer early")
        data += part
    return data


def _socket_address(
    server: Server,
) -> tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]:
    """Return where a server is for a socket, without a look-up. Raises OSError."""
    host, _, scope = server[0].partition("%")
    if ":" not in host:
        return socket.AF_INET, (host, server[1])
    index = 0 if not scope else int(scope) if scope.isdigit() else socket.if_nametoindex(scope)
    return socket.AF_INET6, (host, server[1], 0, index)


def host_servers(path: Path = RESOLV_CONF) -> list[Server]:
    """Return the resolvers that the host is configured with; its loopback when there is none.

    Raises network_failed for a configuration that is there, and cannot be read.
    """
    servers: list[Server] = []
    for words in _lines(path):
        if words[0] == "nameserver" and len(words) > 1 and _numeric(words[1]):
            servers.append((words[1], 53))
    return servers[:_SERVERS] or [("127.0.0.1", 53)]


def host_domains(path: Path = RESOLV_CONF) -> list[str]:
    """Return the host's search domains: names of its own network.

    Raises network_failed for a configuration that is there, and cannot be read: without it those
    names were open.
    """
    domains: list[str] = []
    for words in _lines(path):
        if words[0] in ("search", "domain"):  # the last one counts
            domains = [word.rstrip(".").lower() for word in words[1:] if word.rstrip(".")]
    return domains


def _numeric(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _lines(path: Path) -> list[list[str]]:
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return []
    except OSError as cause:
        raise error("network_failed", f"{path} cannot be read: {cause.strerror}") from cause
    return [words for line in text.splitlines() if line[:1] not in "#;" and (words := line.split())]
