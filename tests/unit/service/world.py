"""What is around a service under test: engine, agents and stores, which outlive it as VMs do."""

import contextlib
import copy
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest

from hutch.content import ImageConfig, ImageInfo
from hutch.engine.base import ExitKind, MachineExit, MachineSpec
from hutch.engine.fake import FakeEngine, Serve
from hutch.errors import HutchError
from hutch.guest.base import Channel, Output, OutputGap
from hutch.guest.fake import FakeAgent
from hutch.guest.session import connect_guest
from hutch.images.base import Image, Kernel, Report, RootFs
from hutch.models import ExecOutcome, PullPolicy, SandboxInfo, SandboxSpec
from hutch.network.fake import FakeNetwork
from hutch.service.capacity import Capacity
from hutch.service.host import DATABASE, HostService
from hutch.service.hostmemory import HostMemory
from hutch.service.spec import HostSize
from hutch.service.values import LogQuery
from hutch.settings import GIB, Settings
from hutch.state.sqlite import SqliteStore
from hutch.tasks import Scope

Done = TypeVar("Done")

IMAGE_ID = "sha256:" + "ab" * 32


class TinyImages:
    """One image, `busybox`; `fail` is raised instead, `hang` makes `ensure` wait."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "root.squashfs"
        self.path.write_bytes(b"root")
        self.config = ImageConfig(command=["sleep", "1000"], env={"PATH": "/bin"})
        self.fail: HutchError | None = None
        self.asked: list[str] = []
        self.adopted: dict[str, Path] = {}

    async def ensure(self, reference: str, pull: PullPolicy, report: Report) -> Image:
        self.asked.append(reference)
        if self.fail is not None:
            raise self.fail
        return Image(IMAGE_ID, reference, self.config, RootFs(self.path, "squashfs", 4))

    async def inspect(self, reference: str) -> ImageInfo:
        assert reference == IMAGE_ID
        return ImageInfo(IMAGE_ID, ["busybox"], "amd64", None, 4, [], self.config)

    def rootfs_path(self, image_id: str) -> RootFs | None:
        path = self.adopted.get(image_id, self.path)
        return RootFs(path, "squashfs", 4) if path.exists() else None

    def adopt_rootfs(self, path: Path, fstype: str, digest: str) -> str:
        image_id = "sha256:" + hashlib.sha256(digest.encode()).hexdigest()
        self.adopted[image_id] = path.replace(self.path.with_name(f"adopted-{len(self.adopted)}"))
        return image_id


class TinyKernels:
    """One kernel of a few bytes."""

    def __init__(self, directory: Path) -> None:
        self.kernel = Kernel("tiny", "6.1", directory / "vmlinux", directory / "initramfs")
        self.kernel.vmlinux.write_bytes(b"kernel")
        self.kernel.initramfs.write_bytes(b"initramfs")
        self.fail: HutchError | None = None

    async def ensure(self, name: str | None, report: Report) -> Kernel:
        if self.fail is not None:
            raise self.fail
        return self.kernel

    async def list(self) -> Sequence[Any]:
        return []


class World:
    """Machines and files of one host; `service` makes a daemon's life on it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        settings.home.mkdir(parents=True)
        settings.runtime_dir.mkdir(parents=True)
        self.agents: dict[str, FakeAgent] = {}
        self.silent = False
        self.deaf_clones = False
        """Whether nothing in a clone answers."""
        self.engine = FakeEngine(self._serve, self._serve_clone)
        self.engine.serve_child = self._serve_child
        self.refuse_disks = False
        """Whether no writable disk can be mounted."""
        self.deny_entropy = False
        self.network = FakeNetwork()
        self.images: Any = TinyImages(settings.home)
        self.kernels: Any = TinyKernels(settings.home)
        self._scope = Scope("world")
        self.obeys_shutdown = True
        self.memory = HostMemory(64 * GIB, 60 * GIB)

    @contextlib.asynccontextmanager
    async def _serve(self, path: Path) -> AsyncIterator[None]:
        async with self._agent(path, ready=False):
            yield

    @contextlib.asynccontextmanager
    async def _serve_clone(self, path: Path) -> AsyncIterator[None]:
        async with self._agent(path, ready=True):
            yield

    def _serve_child(self, spec: MachineSpec) -> Serve:
        """Keep an agent as it is now; in what is made of it, its programs begin anew."""
        source = self.agents[spec.id]
        stage, frozen, files = source.stage, source.frozen, copy.deepcopy(source.files)
        running = [each.request for each in source.sessions.values() if each.result is None]

        @contextlib.asynccontextmanager
        async def serve(path: Path) -> AsyncIterator[None]:
            async with self._agent(path, ready=True) as agent:
                agent.stage, agent.frozen, agent.files = stage, frozen, copy.deepcopy(files)
                for request in running:
                    agent.start_program(request)
                yield

        return serve

    @contextlib.asynccontextmanager
    async def _agent(self, path: Path, *, ready: bool) -> AsyncIterator[FakeAgent]:
        sandbox_id = path.parent.name

        def power_off(action: str) -> None:
            kind = ExitKind.REBOOT if action == "reboot" else ExitKind.POWEROFF
            if self.obeys_shutdown:
                self.end_machine(sandbox_id, MachineExit(kind))

        agent = FakeAgent(path, ready=ready, on_shutdown=power_off)
        agent.silent = self.silent or (ready and self.deaf_clones)
        agent.deny_entropy, agent.refuse_disk = self.deny_entropy, self.refuse_disks
        self.agents[sandbox_id] = agent
        async with agent:
            yield agent

    def end_machine(self, sandbox_id: str, end: MachineExit) -> None:
        """End a VM from outside, in the background."""
        for process in self.engine.running():
            if process.record.directory.name == sandbox_id:
                self._scope.start("end", process.end(end))

    async def base_disk(self, home: Path, size: int) -> Path:
        path = home / f"base-{size}"
        if not path.exists():
            with path.open("wb") as file:
                file.truncate(size)
        return path

    def service(self, **changes: Any) -> HostService:
        """Return a service; another one on the same world is the daemon's next life."""
        parts: dict[str, Any] = {
            "store": SqliteStore(self.settings.home / DATABASE),
            "engine": self.engine,
            "images": self.images,
            "kernels": self.kernels,
            "connect_guest": connect_guest,
            "base_disk": self.base_disk,
            "network": self.network,
            "host": HostSize(8, 64 * GIB),
            "capacity": Capacity(self.settings, read=lambda: self.memory),
        }
        return HostService(self.settings, **(parts | changes))

    def agent(self, info: SandboxInfo) -> FakeAgent:
        """Return the agent in a sandbox's VM."""
        return self.agents[info.id]

    def leftovers(self) -> list[str]:
        """Return what no sandbox should leave: machines, directories, sockets."""
        found = [f"machine {process.record.directory.name}" for process in self.engine.running()]
        found += [f"the network of {each}" for each in self.network.attached]
        for parent in (self.settings.runtime_dir, self.settings.home / "sandboxes"):
            found += [str(path) for path in parent.glob("[st]b_*")]
        return found + [str(path) for path in self.layers()]

    def layers(self) -> list[Path]:
        """Return the files of all layers of disks."""
        return sorted((self.settings.home / "layers").glob("*"))

    def templates(self) -> list[Path]:
        """Return the directories of templates, also of half-made ones."""
        return sorted((self.settings.home / "templates").glob("*"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.engine.close()
        await self._scope.close()


def spec(*command: str, **fields: Any) -> SandboxSpec:
    """Return a request for a sandbox of the tiny image."""
    return SandboxSpec("busybox", command=list(command) or None, **fields)


async def output(session: Any) -> tuple[bytes, bytes, ExecOutcome]:
    """Read a session to its end, acknowledging all; offsets must be without a hole."""
    parts = {Channel.STDOUT: b"", Channel.STDERR: b""}
    starts = dict(session.offsets)
    event = None
    async for event in session:
        if isinstance(event, Output):
            assert event.offset == starts[event.channel] + len(parts[event.channel])
            parts[event.channel] += event.data
            session.ack(event.channel, len(event.data))
        else:
            assert not isinstance(event, OutputGap), event
    assert isinstance(event, ExecOutcome)
    return parts[Channel.STDOUT], parts[Channel.STDERR], event


async def expect(code: str, work: Awaitable[object]) -> HutchError:
    """Await `work`, which must fail with an error of that code."""
    with pytest.raises(HutchError) as caught:
        await work
    assert caught.value.code == code
    return caught.value


async def in_time(act: Callable[[float], Awaitable[Done]]) -> Done:
    """Return what comes of work that a time limit must not overtake, with the first that does not.

    A busy machine may need a longer one than is worth waiting for elsewhere.
    """
    for limit in (0.4, 2.0, 10.0):
        with contextlib.suppress(HutchError):
            return await act(limit)
    return await act(60.0)


async def read_logs(service: HostService, ref: str, **query: Any) -> bytes:
    """Return the bytes of a log, both channels as they come; gaps as `<N missing>`."""
    text = b""
    async for record in service.sandboxes.logs(ref, LogQuery(**query)):
        text += record.data if not record.missing else b"<%d missing>" % record.missing
    return text
