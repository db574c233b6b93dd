"""Ports of the host: taken by listening on them, chosen where any will do.

A port is taken from the moment when a socket listens there; nobody is accepted yet. It must not
know what listens for whom.
"""

import errno
import random
import re
import resource
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Final

from hutch.errors import HutchError, error
from hutch.networking import PublishedPort
from hutch.portspec import PORT_MAX, show_address

BACKLOG: Final = 128
_LOWEST: Final = 20_000
"""The first port that is chosen: below are those that people choose."""
_TRIES: Final = 64
SPARE: Final = 256
"""Descriptors that no connection to a port may have: for the VMs, files and users of the host."""
_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_ABSENT: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL, errno.ENODEV})


def listen(port: PublishedPort) -> socket.socket:
    """Take the port of the host, which is not 0. Raises OSError."""
    family = socket.AF_INET6 if ":" in port.address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setblocking(False)
        # Connections of before that are still winding down do not stand in the way.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((port.address, port.host_port))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def listen_anywhere(port: PublishedPort, avoided: Collection[int]) -> socket.socket:
    """Take any port of the host at that address, but none to be `avoided`. Raises OSError.

    Not one of those that the kernel gives to outgoing connections, if there are others: of two
    starts of a sandbox the later would find one of them taken now and then.
    """
    below = range(_LOWEST, _first_ephemeral())
    candidates = random.sample(below, min(_TRIES, len(below)))
    for number in [each for each in candidates if each not in avoided]:
        try:
            return listen(PublishedPort(port.guest_port, number, port.address))
        except OSError as cause:
            if cause.errno != errno.EADDRINUSE:
                raise
    return listen(PublishedPort(port.guest_port, 0, port.address))


def is_spare(fd: int) -> bool:
    """Tell whether a descriptor is one of the last that this process may have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit != resource.RLIM_INFINITY and fd >= limit - min(SPARE, limit // 4)


def _first_ephemeral() -> int:
    try:
        return int(re.split(r"\s+", _RANGE.read_text())[0])
    except (OSError, ValueError):
        return _LOWEST


def refusal(port: PublishedPort, cause: OSError, holder: str | None = None) -> HutchError:
    """Return what it means that a port cannot be taken; `holder` is the sandbox that has it."""
    where = show_address(port)
    if cause.errno == errno.EADDRINUSE:
        if holder is not None:
            return error(
                "port_taken",
                f"port {where} is taken: sandbox {holder} publishes it",
                hint="choose another port, or leave out the host's to get a free one",
                details={"port": port.host_port, "sandbox": holder},
            )
        return error(
            "port_taken",
            f"port {where} is taken by another program of the host",
            hint=f"`ss -ltnp 'sport = :{port.host_port}'` names it; choose another port",
            details={"port": port.host_port, "sandbox": None},
        )
    if cause.errno in (errno.EACCES, errno.EPERM):
        return error(
            "bad_port",
            f"port {where} is privileged, and the daemon is not root",
            hint=f"use a port from 1024 to {PORT_MAX}",
        )
    if cause.errno in _ABSENT:
        return error(
            "bad_port",
            f"the host has no address {port.address} to publish on",
            hint="see `ip address` for those it has",
        )
    return error("no_capacity", f"port {where} cannot be published: {cause.strerror or cause}")
