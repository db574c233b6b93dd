"""The networks of this host's sandboxes: implements `network.base.Network` over two processes.

Finds netd and the gateway or starts them, brings every sandbox's TAP from the one to the other, and
does so again when either died. Meanwhile nothing leaves a sandbox that had not left before.
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from hutch.errors import HutchError, error, from_json
from hutch.network import ability, tap
from hutch.network.base import Ability, Attachment
from hutch.network.channel import Channel, Values
from hutch.network.decided import Decided
from hutch.network.netd import namespace
from hutch.network.netd.process import CHECK_INTERVAL, arguments
from hutch.network.processes import (
    GATEWAY_ID,
    GATEWAY_SOCKET,
    NAMESPACE,
    NETD_ID,
    NETD_SOCKET,
    Companion,
    Launch,
    recall,
)
from hutch.networking import (
    Connection,
    NetworkInfo,
    NetworkMode,
    NetworkPolicy,
    NetworkRecord,
)
from hutch.settings import Settings
from hutch.tasks import Scope, in_thread, settle

log = logging.getLogger(__name__)

Call: TypeAlias = Callable[[str, Values, Sequence[int]], Awaitable[tuple[Values, list[int]]]]


@dataclass(frozen=True, slots=True)
class Options:
    """What a network is made with. `user` is that of the gateway, when we are root.

    `servers` are the resolvers that names are asked of (None: the host's own), `public_routes`
    those that count as default ones, `dns` what guests may ask and `limits` what else a sandbox
    may have (see the gateway). The rest is for tests.
    """

    home: Path
    runtime: Path
    user: int | None = None
    servers: Sequence[tuple[str, int]] | None = None
    public_routes: Sequence[str] = ()
    dns: Mapping[str, Any] | None = None
    limits: Mapping[str, Any] | None = None
    device: Path = tap.DEVICE
    gateway: Sequence[str] = (sys.executable, "-m", "hutch.network.gateway")
    interval: float = CHECK_INTERVAL

    @classmethod
    def of(cls, settings: Settings) -> "Options":
        """Return what the settings say. The gateway's user is the second past the VMs' own."""
        jailed = settings.jail and os.geteuid() == 0
        user = settings.uid_base + settings.uid_count + 1 if jailed else None
        return cls(home=settings.home, runtime=settings.runtime_dir, user=user)


@dataclass(slots=True)
class _Attached:
    """A sandbox in our care, and its TAP. `number` is that of the last record about it.

    `ifindex` is 0 until netd has told which one it is.
    Its attachment has the policy that is meant to be in force; `sure` tells that it is.
    """

    attachment: Attachment
    ifindex: int = 0
    number: int = 0
    sure: bool = True


class HostNetwork:
    """See `hutch.network.base.Network`.

    Calls for one sandbox come one after the other; those for several may overlap.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._directory = options.runtime / "network"
        self._rootless = os.geteuid() != 0
        logs = options.home / "network"
        self._decided = Decided(self._heard)
        self._netd = Companion(
            "netd",
            self._directory / NETD_SOCKET,
            self._directory / NETD_ID,
            logs / "netd.log",
            launch=self._launch_netd,
            met=self._met_netd,
            heir=self._inherit,
        )
        self._gateway = Companion(
            "the gateway",
            self._directory / GATEWAY_SOCKET,
            self._directory / GATEWAY_ID,
            logs / "gateway.log",
            launch=self._launch_gateway,
            met=self._met_gateway,
            handlers={"record": self._decided.told},
        )
        self._ability = Ability(taps=False, why="it has not been looked for yet")
        self._namespaces: list[int] = []
        self._attached: dict[str, _Attached] = {}
        self._coming: set[str] = set()
        self._adopted = False
        self._serving = asyncio.Lock()
        self._scope = Scope("network")
        self._reserved: frozenset[int] | None = None

    @property
    def ability(self) -> Ability:
        """What this host can do; known once it is open."""
        return self._ability

    async def open(self) -> None:
        """Find the two processes, or start them."""
        missing = ability.lacking(self._options.device)
        if missing is not None:
            self._ability = missing
            return
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lived = self._left_behind()
        self._netd.open()
        self._gateway.open()
        try:
            await self._netd.channel()
        except HutchError as cause:
            if cause.code != "network_missing" or lived:
                # No reason to start sandboxes without what they ask for, and VMs of an earlier
                # daemon may have their TAPs: netd is tried on, and until then attaching fails.
                log.error("the networks of sandboxes are not there yet: %s", cause.message)
                self._ability = Ability(taps=True)
                return
            log.warning("sandboxes have no networks: %s", cause.message)
            self._ability = Ability(
                taps=False, why=cause.message, hint=cause.hint or ability.hint()
            )
            await self.stop()

    async def close(self) -> None:
        """Let go of the two processes."""
        await self._decided.close()
        await self._scope.close()
        await self._gateway.close()
        await self._netd.close()
        self._let_go()

    async def stop(self) -> None:
        """End both processes."""
        await self._decided.close()
        await self._scope.close()
        await self._gateway.end()
        await self._netd.end()
        self._let_go()
        self._attached.clear()
        if not self._rootless:
            with contextlib.suppress(OSError):
                namespace.unpin(self._directory / NAMESPACE)

    def _left_behind(self) -> bool:
        """Tell whether there may be TAPs of VMs that an earlier daemon has left."""
        found = (recall(self._directory / name) for name in (NETD_ID, GATEWAY_ID))
        return any(found) or namespace.pinned(self._directory / NAMESPACE)

    def _inherit(self, fds: list[int]) -> None:
        """Keep the namespaces of a netd that is replaced, if nothing else does."""
        if fds and not namespace.pinned(self._directory / NAMESPACE):
            self._let_go()
            self._namespaces = fds
        else:
            _close(fds)

    def _let_go(self) -> None:
        _close(self._namespaces)
        self._namespaces = []

    # The two processes

    def _launch_netd(self, listening: int) -> Launch:
        fds = [os.dup(fd) for fd in self._namespaces]
        pinned = self._directory / NAMESPACE
        if not fds and not self._rootless and namespace.pinned(pinned):
            fds = [os.open(pinned, os.O_RDONLY | os.O_CLOEXEC)]
        given = arguments(
            listening,
            self._directory,
            device=self._options.device,
            rootless=self._rootless,
            net=fds[0] if fds else None,
            user=fds[1] if len(fds) > 1 else None,
            interval=self._options.interval,
        )
        return Launch([sys.executable, "-m", "hutch.network.netd", *given], fds=fds)

    def _launch_gateway(self, listening: int) -> Launch:
        options = self._options
        user = None if self._rootless else options.user
        told = {
            "user": user,
            "group": user,
            "servers": None if options.servers is None else [list(one) for one in options.servers],
            "public_routes": list(options.public_routes),
            "dns": dict(options.dns or {}),
            "limits": dict(options.limits or {}),
        }
        argv = [*options.gateway, "--control", str(listening)]
        return Launch(argv, stdin=json.dumps(told).encode())

    async def _met_netd(self, netd: Channel, answer: Values, fds: list[int]) -> None:
        if (why := answer.get("why")) is not None:
            _close(fds)
            raise from_json(why)
        self._let_go()
        self._namespaces = fds
        self._ability = Ability(taps=True, held=bool(answer.get("held")))
        if self._adopted:
            await self._tidy(netd)
        if not all(attached.sure for attached in self._attached.values()):
            self._scope.start("serve", self._serve())  # once netd gives out their sockets

    async def _tidy(self, netd: Channel) -> None:
        """Remove TAPs that nobody wants, as one may have been given up while netd was away."""
        taps = await _taps(netd)
        for sandbox_id, attached in list(self._attached.items()):
            if sandbox_id not in taps:
                log.error(
                    "the network of %s is lost; it has none until it starts again", sandbox_id
                )
                if not attached.ifindex:
                    del self._attached[sandbox_id]
            elif not attached.ifindex:
                attached.ifindex = taps[sandbox_id]
        for sandbox_id in taps.keys() - self._attached.keys() - self._coming:
            await netd.call("remove", {"sandbox_id": sandbox_id})

    async def _met_gateway(self, gateway: Channel, answer: Values, fds: list[int]) -> None:
        _close(fds)
        if self._reserved is not None:  # else what it knows of an earlier daemon is right
            await gateway.call("reserve", {"ports": sorted(self._reserved)})
        await self._order(gateway)
        # There may be many, which nothing else is to wait for.
        await self._decided.met(gateway, int(answer["pid"]))

    async def _serve(self) -> None:
        """Have the gateway serve what is attached, once it is there."""
        try:
            async with self._serving:
                await self._order(await self._gateway.channel())
        except HutchError as cause:
            log.error("the gateway does not serve all sandboxes yet: %s", cause.message)

    async def _order(self, gateway: Channel) -> None:
        """Have the gateway do as is meant for all sandboxes, and end those that are not ours."""
        there = await _known(gateway)
        for sandbox_id, attached in list(self._attached.items()):
            # As long as netd has not told which TAP it is, the gateway is taken to know it.
            known = sandbox_id in there and attached.ifindex in (0, there[sandbox_id])
            if self._attached.get(sandbox_id) is not attached or (known and attached.sure):
                continue
            if known or attached.ifindex:
                await self._put_in_order(gateway.call, attached, known=known)
        for sandbox_id in there if self._adopted else ():
            if sandbox_id not in self._attached and sandbox_id not in self._coming:
                await gateway.call("detach", {"sandbox_id": sandbox_id})

    async def _put_in_order(self, call: Call, attached: _Attached, *, known: bool) -> None:
        """Have the gateway do as is meant for a sandbox; if it cannot, the sandbox is closed."""
        sandbox_id = attached.attachment.sandbox_id
        given: NetworkPolicy | object | None = object()
        try:
            if not known:
                given = await self._again(call, attached)
            # Another one may be meant by now, which nobody could tell the gateway meanwhile.
            while (policy := attached.attachment.policy) is not given:
                await call(
                    "update", {"sandbox_id": sandbox_id, "policy": _policy_values(policy)}, ()
                )
                given = policy
            attached.sure = True
        except HutchError as cause:
            log.error("the network of %s stays closed: %s", sandbox_id, cause.message)
            with contextlib.suppress(HutchError):
                await call("detach", {"sandbox_id": sandbox_id}, ())

    async def _again(self, call: Call, attached: _Attached) -> NetworkPolicy | None:
        """Bring the sockets of a TAP that runs on to the gateway; return the policy it is given."""
        sandbox_id = attached.attachment.sandbox_id
        values, fds = await self._netd.call("sockets", {"sandbox_id": sandbox_id})
        try:
            attachment = attached.attachment
            await _put(call, attachment, values | {"number": attached.number}, fds)
        finally:
            _close(fds)
        return attachment.policy

    # What the service asks for

    async def attach(self, attachment: Attachment) -> int:
        """Make a TAP, and have the gateway answer on it."""
        sandbox_id = attachment.sandbox_id
        if sandbox_id in self._attached:
            await self.detach(sandbox_id)
        if not self._ability.taps:
            why, hint = self._ability.why, self._ability.hint
            raise error("network_missing", f"sandboxes have no networks here: {why}", hint=hint)
        self._coming.add(sandbox_id)
        try:
            values, fds = await self._netd.call("create", {"sandbox_id": sandbox_id})
            try:
                await _put(self._gateway.call, attachment, values, fds[1:])
            except BaseException:
                await settle(self._undo(sandbox_id, fds[0]))
                raise
            finally:
                _close(fds[1:])
            self._attached[sandbox_id] = _Attached(attachment, int(values["ifindex"]))
            return fds[0]
        finally:
            self._coming.discard(sandbox_id)

    async def _undo(self, sandbox_id: str, fd: int) -> None:
        await self._remove(sandbox_id)
        await in_thread(os.close, fd)

    async def adopt(self, attachments: Sequence[Attachment]) -> None:
        """Put those back in order whose VMs run on, and remove all others.

        What cannot be done yet is done once netd and the gateway are there.
        """
        self._adopted = True
        if not self._ability.taps:
            return
        self._attached |= {one.sandbox_id: _Attached(one, sure=False) for one in attachments}
        try:
            await self._tidy(await self._netd.channel())
        except HutchError as cause:
            log.error("sandboxes' networks are not in order yet: %s", cause.message)
        if self._attached or self._gateway.up:
            await self._serve()
        else:  # nobody waits for it
            self._scope.start("serve", self._serve())

    async def update(self, sandbox_id: str, policy: NetworkPolicy | None) -> int:
        """Put another policy in force."""
        attached = self._attached.get(sandbox_id)
        if attached is None:
            raise error("network_failed", f"{sandbox_id} has no network")
        # First what is meant: a gateway that comes back meanwhile is given that.
        attached.attachment, attached.sure = replace(attached.attachment, policy=policy), False
        try:
            values, fds = await self._gateway.call(
                "update", {"sandbox_id": sandbox_id, "policy": _policy_values(policy)}
            )
        except HutchError:
            attached.attachment = replace(attached.attachment, policy=None)
            attached.sure = False
            raise
        _close(fds)
        attached.sure = True
        return int(values.get("ended", 0))

    async def reserve(self, ports: Collection[int]) -> None:
        """Keep ports of the host from all sandboxes."""
        self._reserved = reserved = frozenset(ports)
        if self._ability.taps:
            await self._gateway.call("reserve", {"ports": sorted(reserved)})

    async def detach(self, sandbox_id: str) -> None:
        """End all connections, then remove the TAP."""
        if not self._ability.taps:
            return
        if self._attached.pop(sandbox_id, None) is not None or not self._adopted:
            await self._remove(sandbox_id)

    async def _remove(self, sandbox_id: str) -> None:
        """Remove what there is of a sandbox: first who answers, then the TAP."""
        for companion, method in ((self._gateway, "detach"), (self._netd, "remove")):
            try:
                await companion.call(method, {"sandbox_id": sandbox_id})
            except HutchError as cause:
                # The TAP ends with its VM, and a gateway that comes back knows nothing of it.
                log.warning("%s is not detached from %s: %s", sandbox_id, companion.name, cause)

    async def info(self, sandbox_id: str) -> NetworkInfo | None:
        """Return what the gateway knows of a sandbox."""
        if sandbox_id not in self._attached:
            return None
        values, _ = await self._gateway.call("info", {"sandbox_id": sandbox_id})
        told = values.get("info")
        if not isinstance(told, dict):
            return None
        return NetworkInfo(**(told | {"policy": _read_policy(told["policy"])}))

    async def connections(self, sandbox_id: str) -> Sequence[Connection]:
        """Return the open connections of a sandbox."""
        if sandbox_id not in self._attached:
            return ()
        values, _ = await self._gateway.call("connections", {"sandbox_id": sandbox_id})
        return [Connection(**one) for one in values["connections"]]

    # What was decided

    def records(self) -> AsyncIterator[NetworkRecord]:
        """Yield what is decided, for one reader."""
        return self._decided.records()

    def _heard(self, record: Values) -> None:
        if (attached := self._attached.get(record["sandbox_id"])) is not None:
            attached.number = max(attached.number, int(record["number"]))


async def _put(call: Call, attachment: Attachment, values: Values, fds: Sequence[int]) -> None:
    """Hand a sandbox's sockets and names to the gateway. Raises bad_policy, network_failed."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        names = os.open(attachment.names, flags, 0o600)
    except OSError as cause:
        raise error(
            "network_failed", f"{attachment.names} cannot be opened: {cause.strerror}"
        ) from cause
    try:
        _, given = await call(
            "attach",
            {
                "sandbox_id": attachment.sandbox_id,
                "name": attachment.name,
                "interface": values["interface"],
                "ifindex": values["ifindex"],
                "number": values.get("number", 0),
                "policy": _policy_values(attachment.policy),
            },
            [*fds, names],
        )
        _close(given)
    finally:
        os.close(names)


async def _taps(netd: Channel) -> dict[str, int]:
    values, _ = await netd.call("list")
    return {tap["sandbox_id"]: int(tap["ifindex"]) for tap in values["taps"]}


async def _known(gateway: Channel) -> dict[str, int]:
    values, _ = await gateway.call("list")
    return {one["sandbox_id"]: one["ifindex"] for one in values["sandboxes"]}


def _policy_values(policy: NetworkPolicy | None) -> Values | None:
    return None if policy is None else asdict(policy)


def _read_policy(told: Values) -> NetworkPolicy:
    return NetworkPolicy(**(told | {"mode": NetworkMode(told["mode"])}))


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
