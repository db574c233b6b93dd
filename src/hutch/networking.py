"""What is told of the network: policies, what they decided, connections, published ports.

Values that cross the API, as those of `hutch.models`, and as light: no imports but the standard
library.
"""

from dataclasses import dataclass, field
from enum import StrEnum

GATEWAY_ADDRESS = "198.18.0.1"
"""Where every guest finds its router, its resolver and its clock."""
GUEST_ADDRESS = "198.18.0.2"
"""What every guest holds: a clone has nothing to change, and nothing that is bound to it breaks."""
HOST_ADDRESS = "198.18.0.3"
"""What `host.hutch` resolves to: the host's loopback, as far as a policy opens it."""
SYNTHETIC_RANGE = "198.18.0.0/15"
"""What names are answered with (RFC 2544, which no public host has); the first 256 are ours."""

GATEWAY_MAC = "52:54:00:68:75:00"
GUEST_MAC = "52:54:00:68:75:01"


class NetworkMode(StrEnum):
    """What a sandbox reaches of what no rule names."""

    PUBLIC = "public"  # public addresses, but neither the host nor its networks
    DENY = "deny"  # nothing
    OPEN = "open"  # everything but the host and metadata services
    NONE = "none"  # nothing, whatever the rules say: its network is down


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """What a sandbox may reach.

    A rule of `allow` or `deny` is a name (`example.com`, `*.example.com`), an address or a CIDR,
    each with a port if need be: `NAME:22`, `NAME:*`, `[2001:db8::1]:443`, `NAME:443/tcp` for what
    is not TLS on 443 nor HTTP on 80. An allowed name alone means ports 80 and 443, a denied one all
    ports. What is denied stays so whatever is allowed. `allow_host` are ports of the host's
    loopback, reached at `host.hutch`; `allow_lan` opens the networks that the host is on. `preset`
    says where the policy came from, if it has a name.
    """

    mode: NetworkMode = NetworkMode.PUBLIC
    allow: list[str] = field(default_factory=list)
    deny: list[str] = field(default_factory=list)
    allow_host: list[int] = field(default_factory=list)
    allow_lan: bool = False
    preset: str | None = None


class Reason(StrEnum):
    """Why the network did what it did: stable codes, the same in every answer, log and event."""

    ALLOWED = "allowed"
    DENIED_BY_RULE = "denied_by_rule"  # a rule of `deny`
    NOT_ALLOWED = "not_allowed"  # no rule of `allow`, and the mode opens nothing of the kind
    PORT_NOT_ALLOWED = "port_not_allowed"  # the name is allowed, on other ports
    ADDRESS_LAN = "address_lan"  # on a network of the host, or behind one
    ADDRESS_HOST = "address_host"  # the host itself
    ADDRESS_METADATA = "address_metadata"  # a cloud's metadata service
    ADDRESS_SPECIAL = "address_special"  # multicast, reserved, and other addresses of no host
    ADDRESS_UNKNOWN = "address_unknown"  # of the synthetic range, and never given out
    INTERNAL_NAME = "internal_name"  # a name of a private network
    NAME_NOT_FOUND = "name_not_found"
    RESOLVE_FAILED = "resolve_failed"
    SERVER_NAME_MISSING = "server_name_missing"  # TLS without SNI
    SERVER_NAME_MISMATCH = "server_name_mismatch"  # the SNI is not the name that was resolved
    HOST_MISMATCH = "host_mismatch"  # the same of HTTP's Host
    BAD_PROTOCOL = "bad_protocol"  # no TLS on 443, no HTTP on 80, or a broken one
    LIMIT = "limit"  # too many connections, look-ups or bytes
    UPSTREAM_REFUSED = "upstream_refused"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    POLICY_CHANGED = "policy_changed"  # it was allowed when it began
    NETWORK_DOWN = "network_down"  # mode none


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy says to one question.

    `rule` is the one that decided, as it was written; `text` is a sentence for a person and `hint`
    the next step, in the imperative.
    """

    allowed: bool
    reason: Reason
    rule: str | None = None
    text: str = ""
    hint: str | None = None


class NetworkLayer(StrEnum):
    """Where something was decided."""

    DNS = "dns"
    TCP = "tcp"
    TLS = "tls"
    HTTP = "http"
    UDP = "udp"


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """One line of a sandbox's network log: what it asked for, and what became of it.

    `number` counts up for each sandbox. `detail` is what the layer adds: a record type, a method
    and path without its query, an SNI.
    """

    number: int
    at: str
    sandbox_id: str
    layer: NetworkLayer
    allowed: bool
    reason: Reason
    name: str | None = None
    address: str | None = None
    port: int | None = None
    rule: str | None = None
    text: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Connection:
    """An open connection of a sandbox. `sent` and `received` are the sandbox's bytes."""

    id: int
    state: str
    name: str | None
    address: str
    port: int
    opened_at: str
    sent: int
    received: int
    rule: str | None = None
    server_name: str | None = None


@dataclass(frozen=True, slots=True)
class NetworkInfo:
    """A sandbox's network as `hutch network show` tells of it.

    `generation` counts the policy's changes. The counters are since its network was attached.
    """

    sandbox_id: str
    name: str
    attached: bool
    policy: NetworkPolicy
    generation: int = 0
    connections: int = 0
    connections_total: int = 0
    denied_total: int = 0
    lookups_total: int = 0
    names: int = 0
    sent: int = 0
    received: int = 0
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A port of the host that leads to one of a sandbox.

    `address` is the host's, numeric. A `host_port` of 0 is replaced by a free one when it is
    published. `error` is why nothing listens there although the sandbox lives: it is tried again.
    """

    guest_port: int
    host_port: int = 0
    address: str = "127.0.0.1"
    error: str | None = None


@dataclass(frozen=True, slots=True)
class NetworkChange:
    """What is to become of a sandbox's policy.

    `policy` takes its place, if given; then rules of `remove` are taken out of both lists, as they
    are written, and the others added. None leaves a part as it is.
    """

    policy: NetworkPolicy | None = None
    mode: NetworkMode | None = None
    allow: list[str] = field(default_factory=list)
    deny: list[str] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    allow_host: list[int] = field(default_factory=list)
    close_host: list[int] = field(default_factory=list)
    allow_lan: bool | None = None


@dataclass(frozen=True, slots=True)
class NetworkChanged:
    """What a change has done: the network as it is now, and how many connections were ended."""

    network: NetworkInfo
    ended: int
