"""Interfaces, routes and neighbours, as rtnetlink messages that the kernel takes in batches.

A program such as `ip` would take longer to start than all of a TAP's messages together. Knows
nothing of what they are for.
"""

import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Final

_ORDER: Final = sys.byteorder

_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_REPLACE, _EXCLUSIVE, _CREATE = 0x100, 0x200, 0x400

_NEW_LINK, _DELETE_LINK, _GET_LINK = 16, 17, 18
_NEW_ROUTE, _NEW_NEIGHBOUR = 24, 28
_LINK_ADDRESS, _LINK_NAME, _LINK_MTU, _LINK_ALIAS = 1, 3, 4, 20
_ROUTE_TO, _ROUTE_OUT, _ROUTE_METRIC = 1, 4, 6
_NEIGHBOUR_TO, _NEIGHBOUR_MAC = 1, 2
_UP: Final = 1
_TABLE_MAIN, _PROTOCOL_STATIC = 254, 4
_SCOPE_LINK, _SCOPE_HOST = 253, 254
_UNICAST, _LOCAL = 1, 2
_PERMANENT: Final = 0x80
_ATTRIBUTE_MASK: Final = 0x3FFF

_BUFFER: Final = 1 << 16
_ANSWER_TIME: Final = 10.0


class NetlinkError(OSError):
    """The kernel refused a message; the text names it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One request. `what` names it in errors: `route 198.18.0.2/32`."""

    kind: int
    flags: int
    body: bytes
    what: str


@dataclass(frozen=True, slots=True)
class Link:
    """An interface, as the kernel lists it."""

    index: int
    name: str
    alias: str
    up: bool


def _attribute(kind: int, content: bytes) -> bytes:
    length = 4 + len(content)
    return struct.pack("=HH", length, kind) + content + bytes(-length % 4)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _link(index: int, flags: int = 0, mask: int = 0) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, mask)


def set_link(
    index: int,
    *,
    up: bool,
    mac: str | None = None,
    mtu: int | None = None,
    alias: str | None = None,
) -> Message:
    """Change an interface: up or down, and what else is given."""
    body = _link(index, _UP if up else 0, _UP)
    if mac is not None:
        body += _attribute(_LINK_ADDRESS, _mac(mac))
    if mtu is not None:
        body += _number(_LINK_MTU, mtu)
    if alias is not None:
        body += _attribute(_LINK_ALIAS, alias.encode())
    return Message(_NEW_LINK, 0, body, f"link {index}")


def delete_link(index: int) -> Message:
    """Remove an interface, whoever holds it open."""
    return Message(_DELETE_LINK, 0, _link(index), f"removal of link {index}")


def add_route(to: IPv4Network, out: int, *, metric: int = 0, local: bool = False) -> Message:
    """Send an address range out of an interface, or (`local`) deliver it to this host."""
    head = struct.pack(
        "=BBBBBBBBI",
        socket.AF_INET,
        to.prefixlen,
        0,
        0,
        _TABLE_MAIN,
        _PROTOCOL_STATIC,
        _SCOPE_HOST if local else _SCOPE_LINK,
        _LOCAL if local else _UNICAST,
        0,
    )
    body = head + _number(_ROUTE_OUT, out)
    if to.prefixlen:
        body += _attribute(_ROUTE_TO, to.network_address.packed)
    if metric:
        body += _number(_ROUTE_METRIC, metric)
    return Message(_NEW_ROUTE, _CREATE | _EXCLUSIVE, body, f"route {to}")


def set_neighbour(index: int, address: str, mac: str) -> Message:
    """Fix what Ethernet address an IPv4 address has on an interface."""
    head = struct.pack("=BxxxiHBB", socket.AF_INET, index, _PERMANENT, 0, 0)
    body = head + _attribute(_NEIGHBOUR_TO, socket.inet_aton(address))
    body += _attribute(_NEIGHBOUR_MAC, _mac(mac))
    return Message(_NEW_NEIGHBOUR, _CREATE | _REPLACE, body, f"neighbour {address}")


class Netlink:
    """A socket to the kernel, of the network namespace in which it was made. Blocks, but briefly.

    Raises OSError when there can be none.
    """

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        try:
            self._sock.settimeout(_ANSWER_TIME)
            self._sock.bind((0, 0))
        except OSError:
            self._sock.close()
            raise
        self._number = 0

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def __enter__(self) -> "Netlink":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def change(self, messages: Sequence[Message]) -> None:
        """Have the kernel take messages in their order, all of them even if one fails.

        Raises NetlinkError for the first one that was refused, OSError.
        """
        sent: dict[int, str] = {}
        batch = b""
        for message in messages:
            self._number += 1
            sent[self._number] = message.what
            batch += self._packed(message.kind, message.flags | _ACK, message.body)
        self._sock.send(batch)
        failure: NetlinkError | None = None
        while sent:
            for kind, number, body in self._answers():
                if kind != _ERROR or number not in sent:
                    continue
                what = sent.pop(number)
                code = -int.from_bytes(body[:4], _ORDER, signed=True)
                if code and failure is None:
                    failure = NetlinkError(code, f"{what}: {os.strerror(code)}")
        if failure is not None:
            raise failure

    def links(self) -> list[Link]:
        """Return all interfaces. Raises OSError."""
        self._number += 1
        self._sock.send(self._packed(_GET_LINK, _DUMP, _link(0)))
        found: list[Link] = []
        while True:
            for kind, number, body in self._answers():
                if number != self._number:
                    continue
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    code = -int.from_bytes(body[:4], _ORDER, signed=True)
                    raise NetlinkError(code, f"the list of links: {os.strerror(code)}")
                if kind == _NEW_LINK:
                    found.append(_read_link(body))

    def _packed(self, kind: int, flags: int, body: bytes) -> bytes:
        head = struct.pack("=IHHII", 16 + len(body), kind, flags | _REQUEST, self._number, 0)
        return head + body + bytes(-len(body) % 4)

    def _answers(self) -> Iterator[tuple[int, int, bytes]]:
        data = self._sock.recv(_BUFFER)
        at = 0
        while at + 16 <= len(data):
            length, kind, _, number = struct.unpack_from("=IHHI", data, at)
            if not 16 <= length <= len(data) - at:
                raise NetlinkError(errno.EPROTO, "an answer of the kernel cannot be read")
            yield kind, number, data[at + 16 : at + length]
            at += length + -length % 4


def _read_link(body: bytes) -> Link:
    index, flags = struct.unpack_from("=iI", body, 4)
    name = alias = ""
    at = 16
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if length < 4:
            break
        content = body[at + 4 : at + length]
        if kind & _ATTRIBUTE_MASK == _LINK_NAME:
            name = content.rstrip(b"\0").decode(errors="replace")
        elif kind & _ATTRIBUTE_MASK == _LINK_ALIAS:
            alias = content.rstrip(b"\0").decode(errors="replace")
        at += length + -length % 4
    return Link(index, name, alias, bool(flags & _UP))


def remove_link(index: int) -> None:
    """Remove an interface; nothing happens when there is none. Slow (about 20 ms): for a thread.

    Raises OSError.
    """
    with Netlink() as netlink, contextlib.suppress(ProcessLookupError, FileNotFoundError):
        try:
            netlink.change([delete_link(index)])
        except NetlinkError as cause:
            if cause.errno != errno.ENODEV:
                raise
