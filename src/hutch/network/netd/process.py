"""The life of the process netd: into its namespace, serve, and end when nobody needs it.

It outlives the daemon. With no daemon connected and no TAP left it ends by itself, and the gateway
with it, so that nothing stays behind a daemon that never came back.
"""

import argparse
import asyncio
import concurrent.futures.thread  # noqa: F401 - now: see `namespace.make` on what can be loaded later
import encodings.ascii  # noqa: F401
import logging
import os
import resource
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hutch.errors import HutchError, error
from hutch.network import processes, tap
from hutch.network.channel import serve
from hutch.network.netd import namespace
from hutch.network.netd.control import Netd
from hutch.tasks import Scope

log = logging.getLogger(__name__)

CHECK_INTERVAL: Final = 2.0
"""Seconds between two looks at whether netd is needed; it ends after `UNNEEDED` looks in a row."""
UNNEEDED: Final = 2


def arguments(
    control: int,
    directory: Path,
    *,
    device: Path = tap.DEVICE,
    rootless: bool = False,
    net: int | None = None,
    user: int | None = None,
    interval: float = CHECK_INTERVAL,
) -> list[str]:
    """Return what the process is started with; `control` is its listening socket.

    `net` and `user` are descriptors of namespaces to enter, instead of making new ones.
    """
    given = ["--control", str(control), "--directory", str(directory), "--device", str(device)]
    given += ["--interval", str(interval)]
    given += ["--rootless"] if rootless else []
    given += [] if net is None else ["--net", str(net)]
    given += [] if user is None else ["--user", str(user)]
    return given


def _parse(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="netd")
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--device", type=Path, required=True)
    parser.add_argument("--interval", type=float, required=True)
    parser.add_argument("--rootless", action="store_true")
    parser.add_argument("--net", type=int)
    parser.add_argument("--user", type=int)
    return parser.parse_args(given)


def main(given: Sequence[str]) -> int:
    """Run netd until it is told to end, or nobody needs it. Returns its exit code."""
    options = _parse(given)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each TAP takes three
    why = None
    try:
        _settle_in(options)
    except OSError as cause:
        why = error(
            "network_missing",
            f"no namespace for sandboxes' networks: {cause}",
            hint=None if options.rootless else "root needs CAP_SYS_ADMIN and CAP_NET_ADMIN",
        )
    asyncio.run(_serve(options, why))
    return 0


def _settle_in(options: argparse.Namespace) -> None:
    """Go into the namespace. Raises OSError."""
    if options.net is None:
        namespace.make(user=options.rootless)
        if not options.rootless:
            try:
                namespace.pin(options.directory / processes.NAMESPACE)
            except OSError as cause:
                # In many a container nothing may be mounted. It is found as without root, then.
                log.warning("the namespace is lost if netd and the daemon die at once: %s", cause)
        return
    namespace.enter(options.net, options.user)
    for fd in (options.net, options.user):
        if fd is not None:
            os.close(fd)


async def _serve(options: argparse.Namespace, why: HutchError | None) -> None:
    netd = Netd(options.device, user=options.rootless, why=why)
    await netd.open()
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    listener = socket.socket(fileno=options.control)
    try:
        async with Scope("netd") as scope:
            scope.start("serve", serve(listener, netd.handlers, name="netd"))
            ended = scope.start("ended", netd.ending.wait())
            terminated = scope.start("terminated", told.wait())
            unneeded = scope.start("unneeded", _unneeded(netd, options.interval))
            await asyncio.wait((ended, terminated, unneeded), return_when=asyncio.FIRST_COMPLETED)
            asked, unasked = ended.done(), unneeded.done() and unneeded.exception() is None
        # Terminated while there are TAPs, it leaves the namespace for its successor.
        _leave(options, for_good=asked or not _needed(netd), unasked=unasked and not asked)
    finally:
        listener.close()
        await netd.close()


def _leave(options: argparse.Namespace, *, for_good: bool, unasked: bool) -> None:
    directory = options.directory
    if for_good and not options.rootless:
        namespace.unpin(directory / processes.NAMESPACE)
    if unasked:
        log.info("no daemon came back, and no sandbox is left")
        processes.dismiss(directory / processes.GATEWAY_SOCKET, directory / processes.GATEWAY_ID)
        # Last who we are: a daemon that comes now waits until we are gone.
        for name in (processes.NETD_SOCKET, processes.NETD_ID):
            (directory / name).unlink(missing_ok=True)


def _needed(netd: Netd) -> bool:
    """Tell whether netd is needed; as long as that cannot be found out, it is."""
    try:
        return netd.needed()
    except OSError as cause:
        log.warning("whether a sandbox is left cannot be told: %s", cause)
        return True


async def _unneeded(netd: Netd, interval: float) -> None:
    times = 0
    while times < UNNEEDED:
        await asyncio.sleep(interval)
        times = 0 if _needed(netd) else times + 1
