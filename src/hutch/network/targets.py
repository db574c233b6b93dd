"""What a person asks a policy about: a name, an address or a URL, and what it says to that.

The answer is what a sandbox would get, but for what only a look-up of the name can tell: whether
its addresses are public.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from hutch.errors import HutchError, error
from hutch.network.addresses import Address, parse
from hutch.network.names import normal
from hutch.network.policy import Rules
from hutch.network.routes import Routes
from hutch.networking import Decision

DEFAULT_PORT = 443
_PORTS = {
    "amqp": 5672,
    "amqps": 5671,
    "ftp": 21,
    "git": 9418,
    "git+ssh": 22,
    "http": 80,
    "https": 443,
    "ldap": 389,
    "ldaps": 636,
    "mongodb": 27017,
    "mysql": 3306,
    "postgres": 5432,
    "postgresql": 5432,
    "redis": 6379,
    "rediss": 6379,
    "ssh": 22,
    "ws": 80,
    "wss": 443,
}


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked about: `name` (normal) or `address`, and a port."""

    text: str
    name: str | None
    address: Address | None
    port: int


def parse_target(text: str) -> Target:
    """Return the target of `NAME[:PORT]`, `ADDRESS[:PORT]`, `[ADDRESS]:PORT` or a URL.

    Without a port it is that of the URL's scheme, or 443. Raises InvalidInput (bad_request).
    """
    host, port = _of_url(text) if "://" in text else _of_words(text)
    try:
        return Target(text, None, parse(host), port)
    except ValueError:
        pass
    try:
        return Target(text, normal(host), None, port)
    except ValueError as cause:
        raise _bad(text, str(cause)) from cause


def judge(rules: Rules, routes: Routes, target: Target) -> Decision:
    """Return what a policy says to a connection to a target, from this host."""
    if target.address is not None:
        before = rules.connect(None, target.port)
        kind = routes.kind(target.address)
        said = rules.address(target.address, kind, target.port)
        return said if before.allowed else before if said.allowed else said
    assert target.name is not None
    said = rules.lookup(target.name)
    return rules.connect(target.name, target.port) if said.allowed else said


def _bad(text: str, what: str) -> HutchError:
    return error(
        "bad_request",
        f"{text[:80]!r} is no target: {what}",
        hint="write it like example.com, example.com:22, 10.0.0.1:80, [2001:db8::1]:443 or a URL",
    )


def _of_url(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as cause:
        raise _bad(text, "it is a broken URL") from cause
    if not host:
        raise _bad(text, "its URL has no host")
    port = port if port is not None else _PORTS.get(parts.scheme)
    if not port:
        raise _bad(text, "its URL has no port")
    return host, port


def _of_words(text: str) -> tuple[str, int]:
    if text.startswith("[") or text.count(":") == 1:
        host, colon, port = text.rpartition(":")
        if colon and "]" not in port:
            if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
                raise _bad(text, f"{port[:20]!r} is no port")
            return host, int(port)
    return text, DEFAULT_PORT
