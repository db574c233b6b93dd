"""Which ports of the host lead to which sandboxes, from the making of a sandbox to its end.

Ports are taken before a sandbox starts, and given up when it has stopped; it keeps them while it is
paused or parked, and a connection wakes it. What they are is on record, so the next daemon listens
on the same. Connections go through the agent: no network is needed, and nothing of the host, nor
Hutch itself, can be reached this way.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final

from hutch.errors import HutchError, error
from hutch.guest.base import Guest, TunnelStream
from hutch.models import SandboxState
from hutch.networking import GUEST_ADDRESS, PublishedPort
from hutch.portspec import (
    LOOPBACK,
    check_ports,
    clash,
    exposed_ports,
    parse_address,
    show_address,
    show_port,
)
from hutch.service.hostports import listen, listen_anywhere, refusal
from hutch.service.inuse import UsedTunnel
from hutch.service.parts import Parts
from hutch.service.publication import Publication, Reserved, key_of
from hutch.service.registry import Entry, Registry
from hutch.service.sandbox import Sandbox
from hutch.tasks import Scope, settle

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 5.0
"""After what time a port is tried again that somebody else has taken while the daemon was away."""

_RESTING: Final = (SandboxState.PAUSED, SandboxState.PARKED)
_DIALLED: Final = (LOOPBACK, "::1", GUEST_ADDRESS)
"""Where in a guest its port is looked for: most listen everywhere, the others on one of these."""


class Publishing:
    """The published ports of one host's sandboxes."""

    def __init__(
        self, parts: Parts, registry: Registry, awake: Callable[[Entry], Awaitable[Sandbox]]
    ) -> None:
        """`awake` returns the running sandbox, waking it if it rests."""
        self._parts = parts
        self._registry = registry
        self._awake = awake
        self._published: dict[str, Publication] = {}
        self._reserved: list[Reserved] = []
        self._repairs = Scope("published ports")
        self._wakes: dict[str, asyncio.Task[HutchError | None]] = {}
        self._telling = False
        self._told: frozenset[int] = frozenset()
        self._repaired: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    # ---- before there is a sandbox

    @contextlib.contextmanager
    def reserving(self, name: str) -> Iterator[Reserved]:
        """Take ports in the block for a sandbox of that name; what it does not `keep` is given up.

        See `take`, `take_where_free` and `keep`.
        """
        reserved = Reserved(name)
        self._reserved.append(reserved)
        try:
            with reserved.until_kept():
                yield reserved
        finally:
            self._reserved.remove(reserved)
            self._announce()

    def take(
        self, reserved: Reserved, ports: Iterable[PublishedPort], *, chosen: bool = True
    ) -> None:
        """Take ports, and find a free one for each that is 0.

        Without `chosen` those that were chosen by number are only noted, as for a sandbox that
        does not start now. Raises port_taken, bad_port.
        """
        for port in ports:
            if port.host_port == 0:
                self._take_any(reserved, port)
            elif chosen:
                reserved.note(port, self._listen(port))
            else:
                reserved.note(port, None)
        self._announce()

    def take_exposed(self, reserved: Reserved, exposed: Iterable[str]) -> None:
        """Take a free port for each that an image exposes, but those that are published anyhow.

        Raises bad_port.
        """
        known = {port.guest_port for port in reserved.ports}
        more = [port for port in exposed_ports(exposed) if port.guest_port not in known]
        check_ports([*reserved.ports, *more])
        self.take(reserved, more)

    def take_where_free(self, reserved: Reserved, ports: Iterable[PublishedPort]) -> None:
        """Take ports, and another for each that cannot be had: at its address, else on loopback.

        Raises bad_port, no_capacity when there is none at all.
        """
        for port in ports:
            if port.host_port:
                with contextlib.suppress(HutchError):
                    reserved.note(port, self._listen(port))
                    continue
            try:
                self._take_any(reserved, port)
            except HutchError:
                if port.address == LOOPBACK:
                    raise
                self._take_any(reserved, dataclasses.replace(port, address=LOOPBACK))
        self._announce()

    def _take_any(self, reserved: Reserved, port: PublishedPort) -> None:
        on_record = {each.host_port for entry in self._registry for each in entry.info.ports}
        avoided = on_record | {each.host_port for each in reserved.ports}
        try:
            listener = listen_anywhere(port, avoided)
        except OSError as cause:
            raise refusal(port, cause) from cause
        number = int(listener.getsockname()[1])
        reserved.note(dataclasses.replace(port, host_port=number), listener)

    def _listen(self, port: PublishedPort) -> socket.socket:
        try:
            return listen(port)
        except OSError as cause:
            raise refusal(port, cause, self._holder(port)) from cause

    def _holder(self, port: PublishedPort) -> str | None:
        """Return the name of the sandbox that has a port."""
        for sandbox_id, publication in self._published.items():
            if publication.holds(port) and (entry := self._registry.by_id(sandbox_id)) is not None:
                return entry.info.name
        return next((each.name for each in self._reserved if each.holds(port)), None)

    def keep(self, reserved: Reserved, entry: Entry) -> None:
        """Let a sandbox that is about to start have what was taken for it."""
        if reserved.ports:
            reserved.hand_over(self._of(entry))

    # ---- the life of a sandbox

    def prepare(self, entry: Entry) -> None:
        """Take the ports of a sandbox that is about to start; `serve` is to follow, or `withdraw`.

        Raises port_taken, bad_port; then it has none.
        """
        if not entry.info.ports:
            return
        publication = self._of(entry)
        try:
            for port in entry.info.ports:
                if not publication.has(port):
                    publication.add(port, self._listen(port))
        except BaseException:
            publication.shut()
            del self._published[entry.info.id]
            raise
        finally:
            self._announce()

    def serve(self, entry: Entry) -> None:
        """Take connections for a sandbox that lives. Idempotent.

        A port that cannot be had is noted and tried again: the sandbox runs already.
        """
        if self._closed:
            return
        publication = self._of(entry)
        self._try(entry, publication)
        publication.serve()
        self._announce()
        noted = any(port.error for port in entry.info.ports)
        if (publication.failed or noted) and entry.info.id not in self._repaired:
            work = self._repair(entry, publication)
            self._repaired[entry.info.id] = self._repairs.start(entry.info.id, work)

    async def withdraw(self, entry: Entry) -> None:
        """Give the ports of a sandbox up that has stopped, or did not start."""
        publication = self._published.pop(entry.info.id, None)
        repair = self._repaired.pop(entry.info.id, None)
        if repair is not None:  # its next life has a repair of its own
            repair.cancel()
        if publication is not None:
            await publication.close()
        self._announce()

    async def close(self) -> None:
        """Give all ports up."""
        self._closed = True
        await self._repairs.close()
        published = list(self._published.values())
        self._published.clear()
        for publication in published:
            publication.shut()
        for publication in published:
            await publication.close()

    def _announce(self) -> None:
        """Have the network keep published ports from sandboxes that may reach the host's."""
        if self._ports() != self._told and not self._telling and not self._closed:
            self._telling = True
            self._repairs.start("telling the network", self._tell())

    def _ports(self) -> frozenset[int]:
        """Return what is listened on: what is only on record may be another program's."""
        held = [each.taken for each in self._published.values()]
        held += [each.taken for each in self._reserved]
        return frozenset(number for taken in held for number in taken)

    async def _tell(self) -> None:
        try:
            while (ports := self._ports()) != self._told:
                self._told = ports
                try:
                    await self._parts.network.reserve(ports)
                except HutchError as failure:
                    log.warning("published ports are not kept from sandboxes yet: %s", failure)
        finally:
            self._telling = False

    def _of(self, entry: Entry) -> Publication:
        found = self._published.get(entry.info.id)
        if found is None:
            found = self._published[entry.info.id] = Publication(
                entry.info.id,
                functools.partial(self._connect, entry),
                self._parts.settings.port_connections,
            )
        return found

    # ---- ports that others have taken meanwhile

    def _try(self, entry: Entry, publication: Publication) -> bool:
        """Take what is not taken; return whether anything has changed."""
        before = dict(publication.failed)
        for port in entry.info.ports:
            if not publication.has(port):
                try:
                    publication.add(port, self._listen(port))
                except HutchError as failure:
                    publication.failed[key_of(port)] = failure
        return before.keys() != publication.failed.keys()

    async def _repair(self, entry: Entry, publication: Publication) -> None:
        try:
            await self._note(entry, publication)
            while publication.failed and not publication.closed:
                await asyncio.sleep(RETRY_SECONDS)
                if not publication.closed and self._try(entry, publication):
                    self._announce()
                    await self._note(entry, publication)
        finally:
            if self._repaired.get(entry.info.id) is asyncio.current_task():
                del self._repaired[entry.info.id]

    async def _note(self, entry: Entry, publication: Publication) -> None:
        """Put on record, and tell, which ports are not published, and which are again."""
        async with entry.lock:
            if publication.closed or entry.removed:
                return
            before = entry.info.ports
            now = [publication.noted(port) for port in before]
            if now == before:
                return
            try:
                await settle(self._record(entry, now))
            except HutchError as failure:
                log.warning("the ports of %s are not on record: %s", entry.info.name, failure)
        for old, new in zip(before, now, strict=True):
            if new.error is not None and old != new:
                log.warning("%s does not publish a port: %s", entry.info.name, new.error)
                self._emit("sandbox.port_failed", entry, port=show_port(new), message=new.error)
            elif old != new:
                self._emit("sandbox.published", entry, ports=[show_port(new)])

    async def _record(self, entry: Entry, ports: Sequence[PublishedPort]) -> None:
        await self._parts.store.amend(entry.info.id, ports=list(ports))
        # Not the row that the store returns: of its state the memory may know better.
        entry.have_ports(ports)

    def _emit(self, kind: str, entry: Entry, **fields: object) -> None:
        self._parts.events.emit(kind, entry.info.id, entry.info.name, **fields)

    # ---- connections

    async def _connect(self, entry: Entry, port: int) -> TunnelStream:
        """Reach a port of a sandbox, which is woken if it rests, and in use until that is closed.

        Raises wrong_state, guest_refused, and why it does not wake.
        """
        while entry.turning or entry.info.state in _RESTING:
            await self._wake(entry)
        sandbox = entry.running()
        with sandbox.activity.use():
            guest = await sandbox.connection.get()
            return UsedTunnel(await _dial(guest, port), sandbox.activity)

    async def _wake(self, entry: Entry) -> None:
        """Wake a sandbox: once for all who wait for it, who share how that fails, too.

        One wake for each would keep the sandbox from whoever is to stop it for as long as they all
        take. Raises why it does not wake.
        """
        task = self._wakes.get(entry.info.id)
        if task is None or task.done():
            if self._closed:
                raise error("wrong_state", "the daemon is about to end")
            task = self._repairs.start(f"wake {entry.info.id}", self._try_to_wake(entry))
            self._wakes[entry.info.id] = task
        await asyncio.wait({task})
        if task.cancelled():
            raise error("wrong_state", f"the wake of sandbox {entry.info.name} was given up")
        if (failure := task.result()) is not None:
            raise failure

    async def _try_to_wake(self, entry: Entry) -> HutchError | None:
        try:
            await self._awake(entry)
        except HutchError as failure:
            return failure
        finally:
            self._wakes.pop(entry.info.id, None)
        return None

    # ---- what users ask for

    async def list(self, ref: str) -> Sequence[PublishedPort]:
        """Return what a sandbox publishes, in the order in which that was asked for."""
        return self._registry.find(ref).info.ports

    async def publish(self, ref: str, ports: Sequence[PublishedPort]) -> Sequence[PublishedPort]:
        """Publish more ports of a sandbox; return them with their numbers. See the Protocol."""
        entry, wanted = self._registry.find(ref), check_ports(ports)
        async with entry.lock:
            entry.check_present()
            self._check_own(entry, wanted)
            publication = self._published.get(entry.info.id)
            with self.reserving(entry.info.name) as reserved:
                self.take(reserved, wanted, chosen=publication is not None)
                await settle(self._add(entry, reserved, publication))
            self._emit("sandbox.published", entry, ports=[*map(show_port, reserved.ports)])
            return reserved.ports

    def _check_own(self, entry: Entry, wanted: Sequence[PublishedPort]) -> None:
        for port in wanted:
            if port.host_port and any(clash(port, other) for other in entry.info.ports):
                raise error(
                    "port_taken",
                    f"port {show_address(port)} is taken: sandbox {entry.info.name} publishes it",
                    hint=f"`hutch port {entry.info.name}` lists what it publishes",
                    details={"port": port.host_port, "sandbox": entry.info.name},
                )
        check_ports([*entry.info.ports, *wanted])  # together they may be too many

    async def _add(self, entry: Entry, reserved: Reserved, publication: Publication | None) -> None:
        await self._record(entry, [*entry.info.ports, *reserved.ports])
        if publication is not None:
            reserved.hand_over(publication)

    async def unpublish(
        self, ref: str, host_port: int, address: str | None = None
    ) -> Sequence[PublishedPort]:
        """Give ports of the host up, and break their connections off. See the Protocol."""
        entry = self._registry.find(ref)
        where = None if address is None else parse_address(address)
        async with entry.lock:
            entry.check_present()
            gone = [
                port
                for port in entry.info.ports
                if port.host_port == host_port and where in (None, port.address)
            ]
            if not gone:
                raise error(
                    "port_not_found",
                    f"sandbox {entry.info.name} does not publish the host's port {host_port}",
                    hint=f"`hutch port {entry.info.name}` lists what it publishes",
                )
            await settle(self._remove(entry, gone))
            self._emit("sandbox.unpublished", entry, ports=[*map(show_port, gone)])
            return gone

    async def _remove(self, entry: Entry, gone: Sequence[PublishedPort]) -> None:
        await self._record(entry, [port for port in entry.info.ports if port not in gone])
        if (publication := self._published.get(entry.info.id)) is not None:
            for port in gone:
                await publication.remove(port)
            self._announce()


async def _dial(guest: Guest, port: int) -> TunnelStream:
    """Connect to a port of a guest, at whichever of its addresses. Raises guest_refused."""
    for address in _DIALLED[:-1]:
        try:
            return await guest.tunnel(port, address)
        except HutchError as failure:
            if failure.code != "guest_refused":
                raise
    return await guest.tunnel(port, _DIALLED[-1])
