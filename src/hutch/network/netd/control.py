"""What netd does for the daemon: TAPs with their sockets, made, handed on again and removed.

The state is the kernel's: a TAP bears its sandbox's id as its alias, so that a netd that was
started again knows them all. It lives as long as its VM holds it, or until it is removed.
"""

import asyncio
import logging
import os
import socket
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import hutch
from hutch.errors import HutchError, error
from hutch.network import firewall, nfnetlink, rtnetlink, tap
from hutch.network.channel import Channel, Handler, Reply, Values
from hutch.network.rtnetlink import Link, Netlink
from hutch.tasks import settle_in_thread

log = logging.getLogger(__name__)

LOOPBACK: Final = "lo"
_BLOCK: Final = 1000
"""TAPs whose numbers are set aside at once, in the alias of the loopback interface: a number is
never used again, whoever was started again."""
_PROBE: Final = "hutchprobe"


class Netd:
    """The TAPs of the namespace that this process is in. `open` comes first."""

    def __init__(
        self, device: Path = tap.DEVICE, *, user: bool = False, why: HutchError | None = None
    ) -> None:
        """`user`: the namespace belongs to a user namespace. `why` there is none at all, if so."""
        self._device = device
        self._user = user
        self._netlink: Netlink | None = None
        self._frames: nfnetlink.FrameFilter | None = None
        self._taps: dict[str, Link] = {}
        self._sockets: dict[str, tap.Sockets] = {}
        self._next = self._reserved = 0
        self._loopback = 0
        # A lock is there as long as somebody holds it or waits for it.
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._why = why
        self._channels: set[Channel] = set()
        self.ending = asyncio.Event()

    async def open(self) -> None:
        """Prepare the namespace, or find it prepared. What is missing is told by `hello`."""
        if self._why is not None:
            return
        try:
            filtered = await firewall.load()
            firewall.sysctls()
            self._netlink = Netlink()
            links = self._netlink.links()
            self._find(links)
            if filtered:
                self._frames = nfnetlink.FrameFilter()
                for link in self._taps.values():
                    self._frames.add(link.name)
            self._probe()
        except HutchError as cause:
            self._why = cause
        except OSError as cause:
            self._why = error("network_missing", f"no network for sandboxes: {cause}")

    def _find(self, links: list[Link]) -> None:
        assert self._netlink is not None
        loopback = next(link for link in links if link.name == LOOPBACK)
        self._loopback = loopback.index
        if not loopback.up:
            self._netlink.change(firewall.routes(loopback.index))
        self._next = self._reserved = int(loopback.alias or 0)
        for link in links:
            if link.name.startswith(tap.PREFIX) and link.alias:
                self._taps[link.alias] = link

    def _probe(self) -> None:
        """Make a TAP, since only that tells whether one can be made. Raises OSError."""
        try:
            fd = tap.make(_PROBE, self._device)
        except OSError as cause:
            raise OSError(
                cause.errno, f"no TAP can be made with {self._device}: {cause.strerror}"
            ) from cause
        os.close(fd)

    def handlers(self, channel: Channel) -> Mapping[str, Handler]:
        """Return what a daemon's channel may call."""
        self._channels.add(channel)
        return {
            "hello": self._hello,
            "create": self._create,
            "sockets": self._again,
            "remove": self._remove,
            "list": self._list,
            "end": self._end,
        }

    def needed(self) -> bool:
        """Tell whether a daemon is connected, or a TAP still there."""
        self._channels = {channel for channel in self._channels if channel.open}
        if self._channels:
            return True
        self._sweep()
        return bool(self._taps)

    async def _hello(self, values: Values, fds: list[int]) -> Reply:
        """Tell what there is; with it go the namespaces, by which a successor finds the TAPs."""
        told: Values = {"pid": os.getpid(), "version": hutch.__version__, "held": False}
        if self._why is not None:
            return Reply(told | {"why": self._why.to_json()})
        kinds = ["net", "user"] if self._user else ["net"]
        given = [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds]
        return Reply(told | {"why": None}, given, gives=True)

    async def _list(self, values: Values, fds: list[int]) -> Reply:
        self._sweep()
        found = [
            {"sandbox_id": owner, "interface": link.name, "ifindex": link.index}
            for owner, link in self._taps.items()
        ]
        return Reply({"taps": found})

    def _sweep(self) -> None:
        """Forget the TAPs that ended with their VMs."""
        if self._netlink is None:
            return
        there = {link.index for link in self._netlink.links()}
        for owner, link in list(self._taps.items()):
            if link.index not in there:
                self._forget(owner)
                if self._frames is not None:
                    self._frames.remove(link.name)

    async def _create(self, values: Values, fds: list[int]) -> Reply:
        owner = str(values["sandbox_id"])
        async with self._lock(owner):
            await self._take_away(owner)
            if self._why is not None or self._netlink is None:
                raise self._why or error("network_failed", "netd is not ready")
            name = self._new_name()
            fd = index = -1
            try:
                fd, index = tap.open_tap(name, owner, self._netlink, self._device)
                made = tap.sockets(name)
                if self._frames is not None:
                    try:
                        self._frames.add(name)
                    except OSError:
                        made.close()
                        raise
            except OSError as cause:
                if fd >= 0:
                    await settle_in_thread(os.close, fd)
                raise error("network_failed", f"no TAP for {owner}: {cause}") from cause
            self._taps[owner] = Link(index, name, owner, True)
            self._sockets[owner] = made
            # The TAP is the VM's: it ends with it, however that ends.
            handed = [fd, *(os.dup(number) for number in made.filenos())]
            return Reply({"interface": name, "ifindex": index}, handed, gives=True)

    def _new_name(self) -> str:
        assert self._netlink is not None
        if self._next == self._reserved:
            reserved = self._reserved + _BLOCK
            self._netlink.change([rtnetlink.set_link(self._loopback, up=True, alias=str(reserved))])
            self._reserved = reserved
        name = f"{tap.PREFIX}{self._next}"
        self._next += 1
        return name

    async def _again(self, values: Values, fds: list[int]) -> Reply:
        """Hand on the sockets of a TAP again. What waits in them is reset: nobody judged it."""
        owner = str(values["sandbox_id"])
        async with self._lock(owner):
            link = self._taps.get(owner)
            if link is None or not _there(link):
                raise error("network_failed", f"{owner} has no TAP")
            made = self._sockets.get(owner)
            if made is None:
                try:
                    made = self._sockets[owner] = tap.sockets(link.name)
                except OSError as cause:
                    raise error("network_failed", f"no sockets for {owner}: {cause}") from cause
            made.drain()
            return Reply({"interface": link.name, "ifindex": link.index}, made.filenos())

    async def _remove(self, values: Values, fds: list[int]) -> Reply:
        owner = str(values["sandbox_id"])
        async with self._lock(owner):
            await self._take_away(owner)
        return Reply()

    async def _take_away(self, owner: str) -> None:
        link = self._taps.get(owner)
        if link is None:
            return
        self._forget(owner)
        try:
            await settle_in_thread(rtnetlink.remove_link, link.index)
            if self._frames is not None:
                self._frames.remove(link.name)
        except OSError as cause:
            raise error("network_failed", f"{link.name} cannot be removed: {cause}") from cause

    def _forget(self, owner: str) -> None:
        del self._taps[owner]
        if (made := self._sockets.pop(owner, None)) is not None:
            made.drain()
            made.close()

    def _lock(self, owner: str) -> asyncio.Lock:
        lock = self._locks.get(owner)
        if lock is None:
            lock = self._locks[owner] = asyncio.Lock()
        return lock

    async def _end(self, values: Values, fds: list[int]) -> Reply:
        self.ending.set()
        return Reply()

    async def close(self) -> None:
        """Close all that is held here. TAPs stay with their VMs."""
        for made in self._sockets.values():
            made.close()
        if self._frames is not None:
            self._frames.close()
        if self._netlink is not None:
            self._netlink.close()


def _there(link: Link) -> bool:
    try:
        return socket.if_indextoname(link.index) == link.name
    except OSError:
        return False
