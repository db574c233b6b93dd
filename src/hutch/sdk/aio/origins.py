"""What sandboxes begin from: images, kernels, templates and pools; and work that takes long.

For sandboxes there is client.py, for their moments snapshots.py.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hutch import errors
from hutch.content import ImageInfo, KernelInfo
from hutch.models import PoolInfo, Progress, Removed, TemplateInfo, from_json
from hutch.sdk.aio.transport import Transport
from hutch.sdk.http1 import broken

OnProgress = Callable[[Progress], None]


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
