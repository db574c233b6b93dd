"""The gateway as a process: its settings, its rights, its one socket to the daemon.

It begins with the daemon's rights, imports all that it will ever need, and then becomes a user who
may do nothing but have sockets. It outlives the daemon, and ends when it is told to.
"""

import argparse
import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import IO, Any, Final, Self

from hutch.errors import error
from hutch.network import names
from hutch.network.addresses import Network
from hutch.network.channel import serve
from hutch.network.dns import guest as dns_guest
from hutch.network.dns.client import Server
from hutch.network.dns.guest import GuestLimits
from hutch.network.gateway.control import Control
from hutch.network.gateway.limits import DEFAULTS, Limits
from hutch.network.routes import Routes
from hutch.tasks import Scope

log = logging.getLogger(__name__)

FILES: Final = 1 << 18
"""Descriptors that it asks for: two for a connection, and a few hundred connections a sandbox."""
NR_OPEN: Final = Path("/proc/sys/fs/nr_open")

_PR_SET_NO_NEW_PRIVS: Final = 38


@dataclass(frozen=True, slots=True)
class Settings:
    """What the daemon says on standard input: one JSON object.

    `user` and `group` are who to become (None: nobody else), `servers` the resolvers to ask (None:
    the host's), `public_routes` the routes that count as default ones, `dns` what guests may ask.
    """

    user: int | None = None
    group: int | None = None
    servers: list[Server] | None = None
    public_routes: tuple[Network, ...] = ()
    limits: Limits = DEFAULTS
    dns: GuestLimits = dns_guest.DEFAULTS

    @classmethod
    def read(cls, stream: IO[bytes]) -> Self:
        """Read them to the end of a stream. Raises bad_setting."""
        try:
            values: dict[str, Any] = json.loads(stream.read() or b"{}")
            servers = values.get("servers")
            return cls(
                user=values.get("user"),
                group=values.get("group"),
                servers=None if servers is None else [(str(ip), int(port)) for ip, port in servers],
                public_routes=tuple(map(ip_network, values.get("public_routes") or ())),
                limits=Limits.of(values.get("limits") or {}),
                dns=GuestLimits.of(values.get("dns") or {}),
            )
        except (ValueError, TypeError, AttributeError) as cause:
            raise error("bad_setting", f"the gateway's settings cannot be read: {cause}") from cause


def take_files(wanted: int = FILES) -> int:
    """Raise the limit of descriptors as far as this process may; returns what it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        wanted = min(wanted, int(NR_OPEN.read_text()))
    for limit in (max(wanted, hard), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        except (OSError, ValueError):  # only root may raise the hard one
            continue
        return limit
    return soft


def drop_rights(user: int | None, group: int | None) -> None:
    """Become another user for good, with nothing left of what this process may do.

    Raises OSError; nothing may be accepted then.
    """
    if user is not None and group is not None:
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
        if 0 in (*os.getresuid(), *os.getresgid()) or os.getgroups():
            raise PermissionError("the gateway could not give up its rights")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the gateway; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m hutch.network.gateway")
    parser.add_argument("--control", type=int, required=True, help="a listening Unix socket")
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    settings = Settings.read(sys.stdin.buffer)
    listener = socket.socket(fileno=arguments.control)
    os.umask(0o077)
    files = take_files()
    _import_the_rest()
    drop_rights(settings.user, settings.group)
    log.info("the gateway runs as user %d with %d descriptors", os.getuid(), files)
    asyncio.run(run(listener, settings))
    log.info("the gateway ends")
    return 0


def _import_the_rest() -> None:
    """Load what is loaded on first use: later, its files may not be readable any more."""
    names.normal("b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example")
    gc.collect()
    gc.freeze()


async def run(listener: socket.socket, settings: Settings) -> None:
    """Serve channels on a listening socket until told to end."""
    control = Control(
        limits=settings.limits,
        dns=settings.dns,
        servers=settings.servers,
        routes=Routes(settings.public_routes),
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, control.ended.set)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    async with Scope("gateway") as scope:
        serving = scope.start("channels", serve(listener, control.handlers, name="the daemon"))
        ended = scope.start("end", control.ended.wait())
        await asyncio.wait({serving, ended}, return_when=asyncio.FIRST_COMPLETED)
        await control.close()
