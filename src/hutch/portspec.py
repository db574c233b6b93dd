"""The notation of published ports, `[IP:]HOST:GUEST`, and what of them can be.

Shared by the command line, the SDK and the service. Numeric addresses only: what a name leads to
may change. It must not know whether a port is free.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Final

from hutch.errors import HutchError, error
from hutch.networking import PublishedPort

LOOPBACK: Final = "127.0.0.1"
PORTS_MAX: Final = 256
"""Ports that one sandbox may publish."""

PORT_MAX: Final = 0xFFFF

_SPEC: Final = re.compile(
    r"(?:(?P<address>\[[^][]*\]|[^][:]*):)??"
    r"(?:(?P<host>[0-9]{1,5}(?:-[0-9]{1,5})?)?:)?"
    r"(?P<guest>[0-9]{1,5}(?:-[0-9]{1,5})?)"
    r"(?:/(?P<protocol>[a-z]+))?",
    re.IGNORECASE,
)
_EXPOSED: Final = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?")
_HINT: Final = "write it like 8080:80, 127.0.0.1:8080:80, [::1]:8080:80, 8000-8010:8000-8010 or 80"


def parse_ports(text: str) -> list[PublishedPort]:
    """Return what `[IP:]HOST:GUEST[/tcp]` stands for: one port, or each of a range.

    `GUEST` alone, an empty HOST and a HOST of 0 mean any free port of the host. Without an IP it is
    the host's loopback. Raises InvalidInput (bad_port).
    """
    found = _SPEC.fullmatch(text)
    if found is None:
        raise _bad(text, "it is no port to publish")
    protocol = (found["protocol"] or "tcp").lower()
    if protocol != "tcp":
        raise _bad(text, f"{protocol} cannot be published", "only TCP ports can be: leave it out")
    address = LOOPBACK
    if found["address"] is not None:
        inner = found["address"].removeprefix("[").removesuffix("]")
        address = parse_address(inner)
        if (":" in inner) != found["address"].startswith("["):
            raise _bad(text, "an IPv6 address is written in brackets, and no other")
    guests = _span(text, found["guest"])
    hosts: Sequence[int] = [0] * len(guests)
    if found["host"] is not None and found["host"] != "0":
        hosts = _span(text, found["host"])
    if len(hosts) != len(guests):
        raise _bad(text, "the two ranges are not of the same length")
    return [PublishedPort(guest, host, address) for guest, host in zip(guests, hosts, strict=True)]


def _span(text: str, part: str) -> range:
    first, _, last = part.partition("-")
    ports = range(int(first), int(last or first) + 1)
    if not ports or not 1 <= ports[0] <= ports[-1] <= PORT_MAX:
        raise _bad(text, f"{part} is no port nor a range of ports")
    if len(ports) > PORTS_MAX:
        raise _too_many(len(ports))
    return ports


def parse_host_port(text: str) -> tuple[int, str | None]:
    """Return the port of the host that `[IP:]HOST` names, and its address if there is one.

    Raises InvalidInput (bad_port).
    """
    address, colon, number = text.rpartition(":")
    if _EXPOSED.fullmatch(number) is None or "-" in number:
        raise _bad(text, "it is no port of the host", "write it like 8080 or 127.0.0.1:8080")
    port = _span(text, number)[0]
    return port, parse_address(address.removeprefix("[").removesuffix("]")) if colon else None


def port_list(ports: Iterable[int | str | PublishedPort]) -> list[PublishedPort]:
    """Return ports to publish that may be given as such, in the notation, or as a guest's number.

    Raises InvalidInput (bad_port).
    """
    found: list[PublishedPort] = []
    for port in ports:
        found += [port] if isinstance(port, PublishedPort) else parse_ports(str(port))
    return found


def parse_address(text: str) -> str:
    """Return a numeric address of a host as it is usually written. Raises InvalidInput (bad_port).

    An IPv4 address in IPv6 clothes is the former.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise _bad(text, "it is no numeric address", f"use one like {LOOPBACK}") from None
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    if getattr(address, "scope_id", None) is not None or address.is_multicast:
        raise _bad(text, "nothing can be published on such an address")
    return str(address)


def check_ports(ports: Sequence[PublishedPort]) -> list[PublishedPort]:
    """Return ports to publish with their addresses in the usual form. Raises bad_port.

    None may stand there twice.
    """
    if len(ports) > PORTS_MAX:
        raise _too_many(len(ports))
    checked: list[PublishedPort] = []
    for port in ports:
        if not 1 <= port.guest_port <= PORT_MAX or not 0 <= port.host_port <= PORT_MAX:
            raise _bad(f"{port.host_port}:{port.guest_port}", f"ports are 1 to {PORT_MAX}")
        port = PublishedPort(port.guest_port, port.host_port, parse_address(port.address))
        if any(clash(port, other) for other in checked):
            raise _bad(show_port(port), "it is asked for twice")
        checked.append(port)
    return checked


def clash(one: PublishedPort, other: PublishedPort) -> bool:
    """Tell whether two cannot both be: the same port of one address, or of all of its kind.

    Two free ports for the same port of the guest are one too many.
    """
    if one.host_port != other.host_port:
        return False
    if one.host_port == 0:
        return (one.guest_port, one.address) == (other.guest_port, other.address)
    return overlap(one.address, other.address)


def overlap(one: str, other: str) -> bool:
    """Tell whether a port of two addresses can be used only once."""
    if (":" in one) != (":" in other):
        return False
    return one == other or one in _ANY or other in _ANY


_ANY: Final = frozenset({"0.0.0.0", "::"})


def exposed_ports(texts: Iterable[str]) -> list[PublishedPort]:
    """Return the TCP ports that an image exposes (`80/tcp`), each for any free port of the host.

    An image has no say in more than that. Raises bad_port.
    """
    ports: dict[int, PublishedPort] = {}
    for text in texts:
        part, _, protocol = text.partition("/")
        if protocol.lower() in ("", "tcp"):
            if _EXPOSED.fullmatch(part) is None:
                raise _bad(text, "the image exposes it, and it is no port")
            ports.update({guest: PublishedPort(guest) for guest in _span(text, part)})
    return list(ports.values())


def show_port(port: PublishedPort) -> str:
    """Return `IP:HOST->GUEST/tcp`."""
    return f"{show_address(port)}->{port.guest_port}/tcp"


def show_address(port: PublishedPort) -> str:
    """Return `IP:HOST`, as it stands in a URL."""
    host = f"[{port.address}]" if ":" in port.address else port.address
    return f"{host}:{port.host_port}"


def show_ports(ports: Iterable[PublishedPort]) -> str:
    """Return published ports in a line, with ranges where they follow each other."""
    spans: list[tuple[PublishedPort, PublishedPort]] = []
    for port in sorted(ports, key=lambda each: (each.address, each.guest_port, each.host_port)):
        if spans and _follows(spans[-1][1], port):
            spans[-1] = (spans[-1][0], port)
        else:
            spans.append((port, port))
    return ", ".join(_show_span(first, last) for first, last in spans)


def _follows(last: PublishedPort, port: PublishedPort) -> bool:
    ahead = (port.address, port.guest_port - 1, port.host_port - 1)
    return (last.address, last.guest_port, last.host_port) == ahead


def _show_span(first: PublishedPort, last: PublishedPort) -> str:
    if first == last:
        return show_port(first)
    return f"{show_address(first)}-{last.host_port}->{first.guest_port}-{last.guest_port}/tcp"


def _bad(text: str, why: str, hint: str = _HINT) -> HutchError:
    return error("bad_port", f"{text!r}: {why}", hint=hint)


def _too_many(number: int) -> HutchError:
    return error(
        "bad_port",
        f"{number} ports are more than a sandbox can publish",
        hint=f"publish {PORTS_MAX} at most",
    )
