"""The client of a daemon: its sandboxes as values, its images and kernels, the daemon itself.

For working in one sandbox there is sandbox.py.
"""

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Self, TypeVar

from hutch import errors
from hutch.content import ImageInfo, KernelInfo
from hutch.models import (
    Forked,
    PoolInfo,
    Progress,
    Removed,
    SandboxInfo,
    SandboxSpec,
    SnapshotInfo,
    TemplateInfo,
    from_json,
    to_json,
)
from hutch.reports import Check, DaemonInfo, Event, HostUsage
from hutch.sdk.aio.checkpoints import AsyncCheckpoints
from hutch.sdk.aio.transport import Transport, file_pieces, write_file
from hutch.sdk.http1 import Query, broken, key_header, quote
from hutch.settings import Settings

OnProgress = Callable[[Progress], None]
T = TypeVar("T")


class AsyncImages:
    """The image store. Paths are on the daemon's host."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(self) -> list[ImageInfo]:
        """Return all images, newest first."""
        answer = await self._transport.request("GET", "/v1/images")
        return [from_json(ImageInfo, item) for item in await answer.json()]

    async def inspect(self, ref: str) -> ImageInfo:
        """Return an image by reference, id, or unique prefix of one."""
        answer = await self._transport.request("GET", "/v1/images/inspect", {"ref": ref})
        return from_json(ImageInfo, await answer.json())

    async def pull(self, ref: str, *, on_progress: OnProgress | None = None) -> ImageInfo:
        """Fetch an image from its registry, also when it is already here."""
        body = {"reference": ref}
        result = await long_work(self._transport, "/v1/images/pull", body, on_progress)
        return from_json(ImageInfo, result)

    async def load(
        self, path: str, *, tag: str | None = None, on_progress: OnProgress | None = None
    ) -> Sequence[ImageInfo]:
        """Import a `docker save` or OCI archive, or an OCI layout directory."""
        body = {"path": path, "tag": tag}
        result = await long_work(self._transport, "/v1/images/load", body, on_progress)
        return [from_json(ImageInfo, item) for item in result]

    async def build(
        self,
        context: str,
        *,
        tag: str,
        dockerfile: str | None = None,
        args: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> ImageInfo:
        """Build a Dockerfile. Raises Missing (tool_missing), ImageError (build_failed)."""
        body = {
            "context": context,
            "tag": tag,
            "dockerfile": dockerfile,
            "args": dict(args or {}),
        }
        result = await long_work(self._transport, "/v1/images/build", body, on_progress)
        return from_json(ImageInfo, result)

    async def remove(self, ref: str, *, force: bool = False) -> Removed:
        """Drop a reference, and the content that nobody else needs."""
        query = {"ref": ref, "force": force}
        answer = await self._transport.request("DELETE", "/v1/images", query)
        return from_json(Removed, await answer.json())

    async def prune(self, *, everything: bool = False) -> Removed:
        """Drop unreferenced content; with `everything` also unused images."""
        body = {"all": everything}
        answer = await self._transport.request("POST", "/v1/images/prune", json=body)
        return from_json(Removed, await answer.json())


class AsyncKernels:
    """The kernel store. Paths are on the daemon's host."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(self) -> list[KernelInfo]:
        """Return all kernels."""
        answer = await self._transport.request("GET", "/v1/kernels")
        return [from_json(KernelInfo, item) for item in await answer.json()]

    async def pull(
        self, package: str | None = None, *, on_progress: OnProgress | None = None
    ) -> KernelInfo:
        """Fetch the distribution's kernel, without installing it."""
        body = {"package": package}
        result = await long_work(self._transport, "/v1/kernels/pull", body, on_progress)
        return from_json(KernelInfo, result)

    async def load(
        self, path: str, *, modules: str | None = None, name: str | None = None
    ) -> KernelInfo:
        """Import a vmlinuz or vmlinux with its modules directory."""
        body = {"path": path, "modules": modules, "name": name}
        answer = await self._transport.request("POST", "/v1/kernels/load", json=body)
        return from_json(KernelInfo, await answer.json())

    async def use(self, name: str) -> KernelInfo:
        """Make a kernel the one to boot."""
        answer = await self._transport.request("POST", "/v1/kernels/use", json={"name": name})
        return from_json(KernelInfo, await answer.json())

    async def remove(self, name: str) -> Removed:
        """Delete a kernel that no sandbox uses."""
        answer = await self._transport.request("DELETE", "/v1/kernels", {"name": name})
        return from_json(Removed, await answer.json())


class AsyncTemplates:
    """Frozen machines that sandboxes begin as clones of."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(self) -> list[TemplateInfo]:
        """Return all templates, the most recently used first."""
        answer = await self._transport.request("GET", "/v1/templates")
        return [from_json(TemplateInfo, item) for item in await answer.json()]

    async def build(
        self,
        image: str,
        *,
        cpus: int | None = None,
        memory: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> TemplateInfo:
        """Make the template of an image for sandboxes of a size (`memory` in bytes)."""
        body = {"image": image, "cpus": cpus, "memory": memory}
        result = await long_work(self._transport, "/v1/templates/build", body, on_progress)
        return from_json(TemplateInfo, result)

    async def remove(self, ref: str) -> Removed:
        """Drop a template, by its id or the beginning of one. Its sandboxes go on."""
        answer = await self._transport.request("DELETE", "/v1/templates", {"ref": ref})
        return from_json(Removed, await answer.json())

    async def prune(self) -> Removed:
        """Drop all templates that no sandbox is based on."""
        answer = await self._transport.request("POST", "/v1/templates/prune")
        return from_json(Removed, await answer.json())


class AsyncPools:
    """Clones that are started and warm before anybody asks for them."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(self) -> list[PoolInfo]:
        """Return all pools, in the order of their making."""
        answer = await self._transport.request("GET", "/v1/pools")
        return [from_json(PoolInfo, item) for item in await answer.json()]

    async def warm(
        self,
        image: str,
        size: int = 1,
        *,
        cpus: int | None = None,
        memory: int | None = None,
        wait: bool = True,
        on_progress: OnProgress | None = None,
    ) -> PoolInfo:
        """Have `size` clones ready, from now on, for sandboxes of a size (`memory` in bytes).

        With `wait` return once there are so many.
        """
        body = {"image": image, "size": size, "cpus": cpus, "memory": memory, "wait": wait}
        result = await long_work(self._transport, "/v1/pools/warm", body, on_progress)
        return from_json(PoolInfo, result)

    async def drain(self, image: str | None = None) -> Removed:
        """End the pools of an image (None: all) with the clones that wait in them."""
        query = {} if image is None else {"image": image}
        answer = await self._transport.request("DELETE", "/v1/pools", query)
        return from_json(Removed, await answer.json())


class AsyncSnapshots:
    """Points in time of sandboxes, by id, name or unique id prefix."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(
        self, sandbox: str | None = None, *, checkpoints: bool = False
    ) -> list[SnapshotInfo]:
        """Return all snapshots, oldest first, or those of one sandbox; with its checkpoints."""
        query: Query = {"sandbox": sandbox, "checkpoints": checkpoints}
        answer = await self._transport.request("GET", "/v1/snapshots", query)
        return [from_json(SnapshotInfo, item) for item in await answer.json()]

    async def create(
        self,
        sandbox: str,
        *,
        name: str | None = None,
        disk_only: bool = False,
        freeze: bool = True,
        key: bytes | str | None = None,
    ) -> SnapshotInfo:
        """Take a snapshot of a sandbox, which goes on; `disk_only` without its memory.

        `freeze` off, with `disk_only`, leaves its programs running meanwhile. With `key` it is
        encrypted.
        """
        body = {"sandbox": sandbox, "name": name, "disk_only": disk_only, "freeze": freeze}
        if key is not None:
            body["encrypt"] = True
        answer = await self._transport.request(
            "POST", "/v1/snapshots", json=body, headers=key_header(key)
        )
        return from_json(SnapshotInfo, await answer.json())

    async def get(self, ref: str) -> SnapshotInfo:
        """Return a snapshot. Raises NotFound."""
        answer = await self._transport.request("GET", f"/v1/snapshots/{quote(ref)}")
        return from_json(SnapshotInfo, await answer.json())

    async def restore(
        self,
        ref: str,
        name: str | None = None,
        *,
        disk_only: bool = False,
        key: bytes | str | None = None,
    ) -> SandboxInfo:
        """Make a sandbox that goes on from a snapshot; with `disk_only` it boots from its disk.

        `key` is that of an encrypted one.
        """
        path, body = f"/v1/snapshots/{quote(ref)}/restore", {"name": name, "disk_only": disk_only}
        answer = await self._transport.request("POST", path, json=body, headers=key_header(key))
        return from_json(SandboxInfo, await answer.json())

    async def remove(self, ref: str) -> Removed:
        """Remove a snapshot. What was restored from it goes on."""
        answer = await self._transport.request("DELETE", f"/v1/snapshots/{quote(ref)}")
        return from_json(Removed, await answer.json())

    async def collect(self, keep: int, sandbox: str | None = None) -> Removed:
        """Remove all but the `keep` newest snapshots of each sandbox, or of one."""
        body = {"keep": keep, "sandbox": sandbox}
        answer = await self._transport.request("POST", "/v1/snapshots/gc", json=body)
        return from_json(Removed, await answer.json())

    async def export(
        self, ref: str, local: str | os.PathLike[str], *, key: bytes | str | None = None
    ) -> int:
        """Write a snapshot into one local file, for `load` on any host; returns its bytes.

        The file appears whole or not at all, readable by its owner alone; with `key` encrypted.
        """
        return await write_file(local, self.stream(ref, key=key), name=f"{ref}.hutch", mode=0o600)

    async def stream(self, ref: str, *, key: bytes | str | None = None) -> AsyncIterator[bytes]:
        """Yield the file that `export` writes, as it comes."""
        query = None if key is None else {"encrypt": True}
        path = f"/v1/snapshots/{quote(ref)}/export"
        answer = await self._transport.request("GET", path, query, headers=key_header(key))
        try:
            async for piece in answer:
                yield piece
        finally:
            await answer.close()

    async def load(
        self,
        source: str | os.PathLike[str] | AsyncIterator[bytes],
        *,
        name: str | None = None,
        key: bytes | str | None = None,
    ) -> SnapshotInfo:
        """Take in an exported snapshot: a local file, or its bytes as they come.

        `key` is that of an encrypted one.
        """
        body = source if isinstance(source, AsyncIterator) else file_pieces(source)
        path = "/v1/snapshots/import"
        answer = await self._transport.request(
            "POST", path, {"name": name}, body=body, headers=key_header(key)
        )
        return from_json(SnapshotInfo, await answer.json())


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


async def long_work(
    transport: Transport, path: str, body: Any, on_progress: OnProgress | None
) -> Any:
    """Run long work of the API and return its result; leaving early cancels it."""
    answer = await transport.request("POST", path, json=body)
    try:
        async for line in answer.lines():
            if "progress" in line and on_progress is not None:
                on_progress(from_json(Progress, line["progress"]))
            if "error" in line:
                raise errors.from_json(line["error"])
            if "result" in line:
                return line["result"]
    finally:
        await answer.close()
    raise broken("the daemon ended the connection before the result")
