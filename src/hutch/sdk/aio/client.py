"""The client of a daemon: its sandboxes as values, and the daemon itself.

For working in one sandbox there is sandbox.py; what sandboxes begin from is in origins.py.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Self

from hutch import errors
from hutch.models import Forked, Progress, Removed, SandboxInfo, SandboxSpec, from_json, to_json
from hutch.networking import PublishedPort
from hutch.reports import Check, DaemonInfo, Event, HostUsage
from hutch.sdk.aio.checkpoints import AsyncCheckpoints
from hutch.sdk.aio.origins import AsyncImages, AsyncKernels, AsyncPools, AsyncTemplates, OnProgress
from hutch.sdk.aio.snapshots import AsyncSnapshots
from hutch.sdk.aio.transport import Transport
from hutch.sdk.http1 import Query, broken, quote
from hutch.settings import Settings


class AsyncClient:
    """A daemon's client; the daemon is started when it is first needed.

    >>> async with AsyncClient() as client:  # doctest: +SKIP
    ...     for info in await client.list(all=True):
    ...         print(info.name, info.state)
    """

    def __init__(self, settings: Settings | None = None, *, socket: str | None = None) -> None:
        """Use the daemon of `settings` (default: those in force), or the one at `socket`."""
        self.transport = Transport(settings, socket)
        self.images = AsyncImages(self.transport)
        self.kernels = AsyncKernels(self.transport)
        self.templates = AsyncTemplates(self.transport)
        self.snapshots = AsyncSnapshots(self.transport)
        self.pools = AsyncPools(self.transport)
        self.checkpoints = AsyncCheckpoints(self.transport)

    async def create(
        self, spec: SandboxSpec, *, on_progress: OnProgress | None = None
    ) -> SandboxInfo:
        """Make a sandbox and start it; when that fails, or is cancelled, nothing is left of it."""
        socket = await self.transport.websocket("/v1/run")
        try:
            await socket.send_json({"spec": to_json(spec), "attach": False, "size": None})
            while (message := await socket.receive()) is not None:
                value = message.json()
                if "error" in value:
                    raise errors.from_json(value["error"])
                if "progress" in value and on_progress is not None:
                    on_progress(from_json(Progress, value["progress"]))
                if "running" in value:
                    return from_json(SandboxInfo, value["running"])
        finally:
            socket.close()
        raise broken("the daemon ended the connection before the sandbox ran")

    async def list(
        self,
        *,
        all: bool = False,
        labels: Mapping[str, str] | None = None,
        states: tuple[str, ...] = (),
        name: str | None = None,
        image: str | None = None,
    ) -> list[SandboxInfo]:
        """Return the sandboxes that match; without `all` and `states` only those not stopped."""
        query = {
            "all": all,
            "label": [f"{key}={value}" if value else key for key, value in (labels or {}).items()],
            "state": list(states),
            "name": name,
            "image": image,
        }
        answer = await self.transport.request("GET", "/v1/sandboxes", query)
        return [from_json(SandboxInfo, item) for item in await answer.json()]

    async def get(self, ref: str) -> SandboxInfo:
        """Return a sandbox by id, name or unique id prefix. Raises NotFound."""
        return await self.sandbox_request("GET", ref, "")

    async def start(self, ref: str, *, template: bool = True) -> SandboxInfo:
        """Start a sandbox that is created or stopped; without `template` it boots cold."""
        return await self.sandbox_request("POST", ref, "/start", json={"template": template})

    async def stop(
        self, ref: str, *, timeout: float | None = None, signal: str | None = None
    ) -> SandboxInfo:
        """Stop a sandbox: a signal to its main process, and after `timeout` seconds its end."""
        body = {"timeout": timeout, "signal": signal}
        return await self.sandbox_request("POST", ref, "/stop", json=body)

    async def restart(self, ref: str, *, timeout: float | None = None) -> SandboxInfo:
        """Stop a sandbox, if it runs, and start it."""
        body = {"timeout": timeout, "signal": None}
        return await self.sandbox_request("POST", ref, "/restart", json=body)

    async def fork(
        self, ref: str, names: Sequence[str] = (), *, count: int | None = None
    ) -> Forked:
        """Make running children of a sandbox, which goes on, all from one moment of it.

        `names` are those of the first, `count` is how many there shall be (None: as many, or one).
        """
        body = {"names": list(names), "count": count}
        path = f"/v1/sandboxes/{quote(ref)}/fork"
        answer = await self.transport.request("POST", path, json=body)
        return from_json(Forked, await answer.json())

    async def kill(self, ref: str, signal: str = "KILL") -> SandboxInfo:
        """End a sandbox at once (KILL), or signal its main process."""
        return await self.sandbox_request("POST", ref, "/kill", json={"signal": signal})

    async def pause(self, ref: str) -> SandboxInfo:
        """Stop a sandbox's CPUs, until it is resumed or used; its memory stays."""
        return await self.sandbox_request("POST", ref, "/pause")

    async def resume(self, ref: str) -> SandboxInfo:
        """Let a paused or parked sandbox go on. Raises EngineError (parked_unusable)."""
        return await self.sandbox_request("POST", ref, "/resume")

    async def park(self, ref: str) -> SandboxInfo:
        """Write a sandbox's memory to disk and end its VM, until it is resumed or used."""
        return await self.sandbox_request("POST", ref, "/park")

    async def rename(self, ref: str, name: str) -> SandboxInfo:
        """Give a sandbox another name."""
        return await self.sandbox_request("POST", ref, "/rename", json={"name": name})

    async def publish(self, ref: str, ports: Sequence[PublishedPort]) -> Sequence[PublishedPort]:
        """Publish more ports of a sandbox, and return them with their numbers on the host.

        Raises InvalidInput (bad_port), Conflict (port_taken); then none of them is published.
        """
        path = f"/v1/sandboxes/{quote(ref)}/ports"
        body = {"ports": to_json(list(ports))}
        answer = await self.transport.request("POST", path, json=body)
        return [from_json(PublishedPort, item) for item in await answer.json()]

    async def unpublish(
        self, ref: str, host_port: int, *, address: str | None = None
    ) -> Sequence[PublishedPort]:
        """Give a port of the host up; return what it led to. Raises NotFound (port_not_found)."""
        path = f"/v1/sandboxes/{quote(ref)}/ports/{host_port}"
        answer = await self.transport.request("DELETE", path, {"address": address})
        return [from_json(PublishedPort, item) for item in await answer.json()]

    async def wait(self, ref: str, *, timeout: float | None = None) -> SandboxInfo:
        """Return a sandbox once it is not running. Raises GuestError (guest_timeout)."""
        return await self.sandbox_request("GET", ref, "/wait", {"timeout": timeout})

    async def remove(self, ref: str, *, force: bool = False) -> Removed:
        """Delete a sandbox; with `force` also one that runs."""
        path = f"/v1/sandboxes/{quote(ref)}"
        answer = await self.transport.request("DELETE", path, {"force": force})
        return from_json(Removed, await answer.json())

    async def info(self) -> DaemonInfo:
        """Return the daemon's own state."""
        answer = await self.transport.request("GET", "/v1/daemon")
        return from_json(DaemonInfo, await answer.json())

    async def usage(self) -> HostUsage:
        """Return what the host has and what each sandbox takes of it."""
        answer = await self.transport.request("GET", "/v1/usage")
        return from_json(HostUsage, await answer.json())

    async def doctor(self) -> Sequence[Check]:
        """Check everything that Hutch needs of the daemon's host."""
        answer = await self.transport.request("GET", "/v1/doctor")
        return [from_json(Check, item) for item in await answer.json()]

    async def settings(self) -> dict[str, dict[str, Any]]:
        """Return the daemon's settings, each with its value and origin."""
        answer = await self.transport.request("GET", "/v1/settings")
        values: dict[str, dict[str, Any]] = await answer.json()
        return values

    async def events(
        self, *, since: int | None = None, follow: bool = False
    ) -> AsyncIterator[Event]:
        """Yield the events still kept, from sequence number `since` on; with `follow` for ever."""
        query = {"since": since, "follow": follow}
        answer = await self.transport.request("GET", "/v1/events", query)
        try:
            async for line in answer.lines():
                yield from_json(Event, line["event"])
        finally:
            await answer.close()

    async def close(self) -> None:
        """End the client's connections; the daemon goes on."""
        await self.transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def sandbox_request(
        self, method: str, ref: str, path: str, query: Query | None = None, *, json: Any = None
    ) -> SandboxInfo:
        """Send a request whose answer is a sandbox."""
        where = f"/v1/sandboxes/{quote(ref)}{path}"
        answer = await self.transport.request(method, where, query, json=json)
        return from_json(SandboxInfo, await answer.json())
