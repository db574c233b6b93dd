"""What the daemon asks of the gateway: sandboxes attached, judged anew, detached, and told of.

One request, one method; the words are those of `hutch.networking`. Knows nothing of how anything is
judged or carried.
"""

import asyncio
import heapq
import itertools
import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

import hutch
from hutch.errors import error
from hutch.network.channel import Channel, Handler, Reply, Values
from hutch.network.dns import guest as dns_guest
from hutch.network.dns.client import Resolver, Server, host_domains, host_servers
from hutch.network.dns.guest import GuestLimits
from hutch.network.gateway.limits import DEFAULTS, Limits
from hutch.network.gateway.records import Records
from hutch.network.gateway.sandbox import Ends, Identity, Sandbox, Surroundings
from hutch.network.routes import Routes
from hutch.networking import NetworkMode, NetworkPolicy, NetworkRecord

log = logging.getLogger(__name__)

PAGE: Final = 512
"""Records in one answer: as many as a message has room for, however long they are."""

_ENDS: Final = 4


class Control:
    """All sandboxes of the gateway, and what may be asked about them."""

    def __init__(
        self,
        *,
        limits: Limits = DEFAULTS,
        dns: GuestLimits = dns_guest.DEFAULTS,
        servers: list[Server] | None = None,
        routes: Routes | None = None,
    ) -> None:
        """`servers` are the resolvers to ask; None: those that the host is configured with."""
        self.ended = asyncio.Event()
        """Set when the daemon wants the gateway to end."""
        self._sandboxes: dict[str, Sandbox] = {}
        self._listening: set[Channel] = set()
        self._sequence = itertools.count(1)
        self._place = 0
        asked: list[Server] | Callable[[], list[Server]] = (
            host_servers if servers is None else servers
        )
        self._around = Surroundings(
            limits=limits,
            dns=dns,
            routes=routes or Routes(),
            resolver=lambda: Resolver(asked),
            internal=host_domains,
            crowded=self._crowded,
        )

    def handlers(self, channel: Channel) -> Mapping[str, Handler]:
        """Return what a channel may ask for."""

        async def records(values: Values, fds: list[int]) -> Reply:
            _none(fds)
            self._listening = {known for known in self._listening if known.open} - {channel}
            reply = self._records(values)
            if not reply.values["more"]:  # else what is pushed would come before what it follows
                self._listening.add(channel)
            return reply

        return {
            "hello": self._hello,
            "attach": self._attach,
            "update": self._update,
            "detach": self._detach,
            "list": self._list,
            "info": self._info,
            "connections": self._connections,
            "records": records,
            "reserve": self._reserve,
            "end": self._end,
        }

    async def close(self) -> None:
        """Detach all sandboxes."""
        while self._sandboxes:
            _, sandbox = self._sandboxes.popitem()
            await sandbox.close()

    # Sandboxes

    async def _attach(self, values: Values, fds: list[int]) -> Reply:
        if len(fds) != _ENDS:
            _none(fds)
            raise error("network_failed", "a sandbox is attached with its four descriptors")
        ends = _ends(fds)
        try:
            policy = policy_of(values.get("policy"))
            identity = Identity(
                sandbox_id=_text(values, "sandbox_id"),
                name=_text(values, "name"),
                interface=_text(values, "interface"),
                ifindex=_number(values, "ifindex"),
            )
            old = self._sandboxes.get(identity.sandbox_id)
            number = max(values.get("number") or 0, 0 if old is None else old.records.number)
            records = Records(
                identity.sandbox_id, self._publish, sequence=self._sequence, number=number
            )
            sandbox = Sandbox(identity, ends, records, self._around)
        except BaseException as cause:
            ends.close()
            if isinstance(cause, OSError):
                raise error("network_failed", f"a sandbox's sockets are wrong: {cause}") from cause
            raise
        self._sandboxes[identity.sandbox_id] = sandbox
        if old is not None:
            await old.close()
        try:
            if policy is not None:
                await sandbox.update(policy)
        except BaseException:
            if self._sandboxes.get(identity.sandbox_id) is sandbox:
                del self._sandboxes[identity.sandbox_id]
            await sandbox.close()
            raise
        return Reply({"generation": sandbox.generation})

    async def _update(self, values: Values, fds: list[int]) -> Reply:
        _none(fds)
        sandbox = self._sandboxes.get(_text(values, "sandbox_id"))
        if sandbox is None:
            raise error("network_failed", f"{values['sandbox_id']} is not attached")
        ended = await sandbox.update(policy_of(values.get("policy")))
        return Reply({"ended": ended, "generation": sandbox.generation})

    async def _detach(self, values: Values, fds: list[int]) -> Reply:
        _none(fds)
        sandbox = self._sandboxes.pop(_text(values, "sandbox_id"), None)
        if sandbox is not None:
            await sandbox.close()
        return Reply()

    async def _reserve(self, values: Values, fds: list[int]) -> Reply:
        _none(fds)
        ports = values.get("ports")
        if not isinstance(ports, list) or not all(type(port) is int for port in ports):
            raise error("network_failed", "the ports to reserve must be a list of numbers")
        self._around.reserved.clear()
        self._around.reserved.update(ports)
        for sandbox in list(self._sandboxes.values()):
            await sandbox.reserve()
        return Reply()

    def _crowded(self) -> None:
        """Make room: the one who has the most connections has too many."""
        offender = max(self._sandboxes.values(), key=len, default=None)
        if offender is not None and (count := offender.shed()):
            log.warning("out of descriptors: %s loses %d", offender.identity.sandbox_id, count)

    # What is told

    async def _hello(self, values: Values, fds: list[int]) -> Reply:
        _none(fds)
        return Reply({"pid": os.getpid(), "version": hutch.__version__})

    async def _list(self, values: Values, fds: list[int]) -> Reply:
        _none(fds)
        told = [
            {
                "sandbox_id": sandbox.identity.sandbox_id,
                "interface": sandbox.identity.interface,
                "ifindex": sandbox.identity.ifindex,
            }
            for sandbox in self._sandboxes.values()
        ]
        return Reply({"sandboxes": told})

    async def _info(self, values: Values, fds: list[int]) -> Reply:
        _none(fds)
        sandbox = self._sandboxes.get(_text(values, "sandbox_id"))
        return Reply({"info": None if sandbox is None else asdict(sandbox.info())})

    async def _connections(self, values: Values, fds: list[int]) -> Reply:
        _none(fds)
        sandbox = self._sandboxes.get(_text(values, "sandbox_id"))
        open_now = [] if sandbox is None else sandbox.connections()
        return Reply({"connections": [asdict(connection.view()) for connection in open_now]})

    def _records(self, values: Values) -> Reply:
        since = _number(values, "since")
        if since > self._place:  # of an earlier life of the gateway
            since = 0
        rings = [sandbox.records.since(since) for sandbox in self._sandboxes.values()]
        page = list(itertools.islice(heapq.merge(*rings, key=lambda entry: entry[0]), PAGE + 1))
        more, page = len(page) > PAGE, page[:PAGE]
        return Reply(
            {
                "records": [asdict(record) for _, record in page],
                "next": page[-1][0] if page else since,
                "more": more,
            }
        )

    def _publish(self, place: int, record: NetworkRecord) -> None:
        self._place = place
        if not self._listening:
            return
        values = {"record": asdict(record), "next": place}
        for channel in self._listening:
            channel.notify("record", values)

    # The process

    async def _end(self, values: Values, fds: list[int]) -> Reply:
        _none(fds)
        self.ended.set()
        return Reply()


def policy_of(values: object) -> NetworkPolicy | None:
    """Return the policy that a message has, with all its fields. Raises bad_policy.

    A field that was lost on its way here is an error: no default may open what it closed.
    """
    if values is None:
        return None
    if not isinstance(values, dict):
        raise error("bad_policy", "a policy must be an object")
    try:
        mode = NetworkMode(str(values.get("mode")))
    except ValueError as cause:
        raise error("bad_policy", f"there is no network mode {values.get('mode')!r}") from cause
    allow_lan, preset = values.get("allow_lan"), values.get("preset")
    if not isinstance(allow_lan, bool):
        raise error("bad_policy", "`allow_lan` of a policy must be true or false")
    return NetworkPolicy(
        mode=mode,
        allow=_list_of(values, "allow", str),
        deny=_list_of(values, "deny", str),
        allow_host=_list_of(values, "allow_host", int),
        allow_lan=allow_lan,
        preset=preset if isinstance(preset, str) else None,
    )


def _list_of(values: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    content = values.get(name)
    if not isinstance(content, list) or not all(type(item) is kind for item in content):
        raise error("bad_policy", f"`{name}` of a policy must be a list")
    return list(content)


def _ends(fds: list[int]) -> Ends:
    """Return the sockets behind descriptors; on failure, all are closed."""
    listener, dns, clock, names = fds
    made: list[socket.socket] = []
    try:
        for fd in (listener, dns, clock):
            made.append(socket.socket(fileno=fd))
    except OSError as cause:
        for sock in made:
            sock.close()
        _none(fds[len(made) :])
        raise error("network_failed", f"a sandbox's sockets are none: {cause}") from cause
    return Ends(made[0], made[1], made[2], names)


def _none(fds: list[int]) -> None:
    """Close descriptors that nobody wants."""
    for fd in fds:
        os.close(fd)


def _text(values: Values, name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not value:
        raise error("network_failed", f"a request to the gateway lacks `{name}`")
    return value


def _number(values: Values, name: str) -> int:
    value = values.get(name, 0)
    if type(value) is not int:
        raise error("network_failed", f"`{name}` of a request must be a number")
    return value
