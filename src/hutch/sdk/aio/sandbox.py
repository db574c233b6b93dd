"""One sandbox: made or found, worked in, stopped, removed."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Self

from hutch import errors
from hutch.models import IdleAction, PullPolicy, SandboxInfo, SandboxSpec, SnapshotInfo, from_json
from hutch.networking import NetworkPolicy, PublishedPort
from hutch.portspec import port_list, show_address
from hutch.reports import ProcessInfo, SandboxStats
from hutch.sdk.aio.client import AsyncClient
from hutch.sdk.aio.commands import AsyncCommands, AsyncPty
from hutch.sdk.aio.files import AsyncFiles
from hutch.sdk.aio.networks import AsyncNetwork
from hutch.sdk.aio.origins import OnProgress
from hutch.sdk.http1 import quote
from hutch.sdk.policies import as_policy
from hutch.sdk.values import CHANNELS, LogChunk
from hutch.sdk.websocket import BINARY


class AsyncSandbox:
    """A sandbox. As a context manager, one that `create` made is removed at the end.

    >>> async with await AsyncSandbox.create("busybox") as box:  # doctest: +SKIP
    ...     result = await box.commands.run("echo hello")
    ...     print(result.stdout, result.exit_code)
    """

    def __init__(
        self, info: SandboxInfo, client: AsyncClient, *, owned: bool, own_client: bool
    ) -> None:
        """Use `create` or `connect`. `owned`: removed at the context's end."""
        self.info = info
        """The sandbox as it was last seen; `refresh` looks again."""
        self.client = client
        self.commands = AsyncCommands(client.transport, info.id)
        self.files = AsyncFiles(client.transport, info.id)
        self.pty = AsyncPty(self.commands)
        self.network = AsyncNetwork(client.transport, info.id)
        self._owned = owned
        self._own_client = own_client

    @classmethod
    async def create(
        cls,
        image: str = "busybox",
        *,
        name: str | None = None,
        command: Sequence[str] | None = None,
        entrypoint: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        cpus: int | None = None,
        memory: int | None = None,
        disk: int | None = None,
        timeout: float = 0.0,
        idle_timeout: float | None = None,
        idle_action: IdleAction | str | None = None,
        network: NetworkPolicy | str | None = None,
        labels: Mapping[str, str] | None = None,
        hostname: str | None = None,
        kernel: str | None = None,
        auto_remove: bool = False,
        ports: Iterable[int | str | PublishedPort] = (),
        pull: PullPolicy | str = PullPolicy.MISSING,
        on_progress: OnProgress | None = None,
        client: AsyncClient | None = None,
    ) -> Self:
        """Make a sandbox of an image and start it.

        Without `command` it has no main process, and lives until it is stopped. `memory` and `disk`
        are bytes, `timeout` is seconds from each start (0: none). When nobody has used it for
        `idle_timeout` seconds (0: never) `idle_action` is done: pause, park or stop. `ports` are
        to be published: `8000`, or as `hutch run -p` takes them, "8080:80". `network` is what it
        may reach: a policy, `public`, `deny`, `open`, `none`, or what `hutch run --policy` takes.
        Raises what the daemon raises: NotFound (image_not_found), Conflict (name_taken), NoCapacity
        …
        """
        spec = SandboxSpec(
            image=image,
            name=name,
            command=None if command is None else list(command),
            entrypoint=None if entrypoint is None else list(entrypoint),
            env=dict(env or {}),
            workdir=cwd,
            user=user,
            idle=command is None and entrypoint is None,
            cpus=cpus,
            memory=memory,
            disk=disk,
            timeout=timeout,
            idle_timeout=idle_timeout,
            idle_action=None if idle_action is None else IdleAction(idle_action),
            network=None if network is None else as_policy(network),
            auto_remove=auto_remove,
            labels=dict(labels or {}),
            hostname=hostname,
            kernel=kernel,
            pull=PullPolicy(pull),
            ports=port_list(ports),
        )
        mine = client or AsyncClient()
        try:
            info = await mine.create(spec, on_progress=on_progress)
        except BaseException:
            if client is None:
                await mine.close()
            raise
        return cls(info, mine, owned=True, own_client=client is None)

    @classmethod
    async def connect(cls, ref: str, *, client: AsyncClient | None = None) -> Self:
        """Return an existing sandbox, by id, name or unique id prefix. Raises NotFound."""
        mine = client or AsyncClient()
        try:
            info = await mine.get(ref)
        except BaseException:
            if client is None:
                await mine.close()
            raise
        return cls(info, mine, owned=False, own_client=client is None)

    @classmethod
    async def list(
        cls,
        *,
        all: bool = False,
        labels: Mapping[str, str] | None = None,
        client: AsyncClient | None = None,
    ) -> Sequence[SandboxInfo]:
        """Return the sandboxes that are not stopped, or all; `connect` to work in one."""
        if client is not None:
            return await client.list(all=all, labels=labels)
        async with AsyncClient() as mine:
            return await mine.list(all=all, labels=labels)

    @property
    def id(self) -> str:
        """The sandbox's id."""
        return self.info.id

    @property
    def name(self) -> str:
        """The sandbox's name, as last seen."""
        return self.info.name

    @property
    def ports(self) -> Sequence[PublishedPort]:
        """The ports that it publishes, as last seen."""
        return self.info.ports

    async def publish(self, *ports: int | str | PublishedPort) -> Sequence[PublishedPort]:
        """Publish more ports: `8000` on a free port of the host, or "8080:80".

        Raises Conflict (port_taken).
        """
        published = await self.client.publish(self.id, port_list(ports))
        await self.refresh()
        return published

    async def unpublish(self, host_port: int, *, address: str | None = None) -> None:
        """Give a port of the host up. Raises NotFound (port_not_found)."""
        await self.client.unpublish(self.id, host_port, address=address)
        await self.refresh()

    async def url(self, port: int, scheme: str = "http") -> str:
        """Return where a port of it is reached from this host; it is published if need be."""
        found = [each for each in self.ports if each.guest_port == port]
        [published, *_] = found or await self.publish(port)
        return f"{scheme}://{show_address(published)}"

    async def refresh(self) -> SandboxInfo:
        """Look at the sandbox again."""
        self.info = await self.client.get(self.id)
        return self.info

    async def start(self) -> SandboxInfo:
        """Start it after a stop, with its files as they were."""
        self.info = await self.client.start(self.id)
        return self.info

    async def stop(self, *, timeout: float | None = None, signal: str | None = None) -> SandboxInfo:
        """Stop it; its files stay. After `timeout` seconds (None: the setting's) it is killed."""
        self.info = await self.client.stop(self.id, timeout=timeout, signal=signal)
        return self.info

    async def pause(self) -> SandboxInfo:
        """Stop its CPUs, until it is resumed or used; its memory stays."""
        self.info = await self.client.pause(self.id)
        return self.info

    async def resume(self) -> SandboxInfo:
        """Let it go on after `pause` or `park`. Raises EngineError (parked_unusable)."""
        self.info = await self.client.resume(self.id)
        return self.info

    async def park(self) -> SandboxInfo:
        """Write its memory to disk and end its VM, until it is resumed or used."""
        self.info = await self.client.park(self.id)
        return self.info

    async def snapshot(self, name: str | None = None, *, disk_only: bool = False) -> SnapshotInfo:
        """Take a snapshot of it: `client.snapshots.restore` makes sandboxes that go on from it."""
        return await self.client.snapshots.create(self.id, name=name, disk_only=disk_only)

    async def checkpoint(self, message: str = "") -> SnapshotInfo:
        """Take a checkpoint, which `undo` puts it back to."""
        return await self.client.checkpoints.create(self.id, message)

    async def undo(self, number: int = 1, *, to: str | None = None) -> SandboxInfo:
        """Put it back to its `number`th last checkpoint, or `to` one by id or name."""
        self.info = await self.client.checkpoints.undo(self.id, number, to=to)
        return self.info

    async def fork(self, names: Sequence[str] = (), *, count: int | None = None) -> Sequence[Self]:
        """Return running children of it, all from one moment; `names` are those of the first.

        Each is removed at the end of its context. Those that did not come up are left out.
        """
        forked = await self.client.fork(self.id, names, count=count)
        return [
            type(self)(info, self.client, owned=True, own_client=False) for info in forked.children
        ]

    async def kill(self, signal: str = "KILL") -> SandboxInfo:
        """End it at once (KILL), or signal its main process."""
        self.info = await self.client.kill(self.id, signal)
        return self.info

    async def wait(self, *, timeout: float | None = None) -> SandboxInfo:
        """Return once it is not running. Raises GuestError (guest_timeout) after `timeout` s."""
        self.info = await self.client.wait(self.id, timeout=timeout)
        return self.info

    async def remove(self) -> None:
        """Delete it, running or not, with its files."""
        await self.client.remove(self.id, force=True)
        self._owned = False

    async def stats(self) -> SandboxStats:
        """Return its use of resources."""
        path = f"/v1/sandboxes/{quote(self.id)}/stats"
        answer = await self.client.transport.request("GET", path)
        return from_json(SandboxStats, await answer.json())

    async def processes(self) -> Sequence[ProcessInfo]:
        """Return its process table."""
        path = f"/v1/sandboxes/{quote(self.id)}/processes"
        answer = await self.client.transport.request("GET", path)
        return [from_json(ProcessInfo, item) for item in await answer.json()]

    async def logs(
        self,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: str | None = None,
        until: str | None = None,
        boot: bool = False,
        exec_id: str = "main",
    ) -> AsyncIterator[LogChunk]:
        """Yield what its main process (or a detached exec) wrote, with `boot` the console.

        `since` and `until` are RFC 3339 timestamps, `tail` counts lines; with `follow` what comes
        from now on, too.
        """
        query = {
            "follow": follow,
            "tail": tail,
            "since": since,
            "until": until,
            "boot": boot,
            "exec": exec_id,
        }
        path = f"/v1/sandboxes/{quote(self.id)}/logs"
        socket = await self.client.transport.websocket(path, query)
        try:
            while (message := await socket.receive()) is not None:
                if message.kind == BINARY:
                    moment = int.from_bytes(message.data[1:9], "little")
                    yield LogChunk(CHANNELS[message.data[0]], moment, message.data[9:])
                    continue
                value = message.json()
                if "error" in value:
                    raise errors.from_json(value["error"])
                gap = value["gap"]
                yield LogChunk(CHANNELS[gap["channel"]], 0, b"", gap["size"])
        finally:
            socket.close()

    async def close(self) -> None:
        """Let go of it: it lives on."""
        if self._own_client:
            await self.client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            if self._owned:
                await self.remove()
        except errors.NotFound:
            return  # it has removed itself, or somebody else has
        finally:
            await self.close()
