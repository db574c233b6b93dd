"""Images, kernels and templates as the API offers them: the stores, with what sandboxes use.

Adds to the stores what they cannot know: which images and kernels are in use, and the events.
"""

from collections.abc import Sequence
from pathlib import Path

from hutch.content import ImageInfo, KernelInfo
from hutch.errors import error
from hutch.images.base import Report
from hutch.models import Removed, SandboxSpec, TemplateInfo
from hutch.service.ahead import look_ahead
from hutch.service.machine import Booter
from hutch.service.parts import Parts
from hutch.service.pools import Pools
from hutch.service.registry import Registry


class HostImages:
    """Implements `Images` of the API's operations for one host."""

    def __init__(self, parts: Parts, registry: Registry, pools: Pools) -> None:
        self._images = parts.images
        self._pools = pools
        self._events = parts.events
        self._registry = registry

    async def list(self) -> Sequence[ImageInfo]:
        """Return all images."""
        return await self._images.list()

    async def inspect(self, reference: str) -> ImageInfo:
        """Return one image."""
        return await self._images.inspect(reference)

    async def pull(self, reference: str, report: Report) -> ImageInfo:
        """Fetch an image from its registry."""
        image = await self._images.pull(reference, report)
        self._events.emit("image.pulled", image.id, reference)
        return image

    async def load(
        self, path: Path, report: Report, *, tag: str | None = None
    ) -> Sequence[ImageInfo]:
        """Import an archive or an OCI layout directory."""
        images = await self._images.load(path, report, tag=tag)
        for image in images:
            self._events.emit("image.loaded", image.id, next(iter(image.references), ""))
        return images

    async def build(
        self,
        context: Path,
        report: Report,
        *,
        tag: str,
        dockerfile: Path | None = None,
        args: dict[str, str] | None = None,
    ) -> ImageInfo:
        """Build a Dockerfile."""
        image = await self._images.build(context, report, tag=tag, dockerfile=dockerfile, args=args)
        self._events.emit("image.built", image.id, tag)
        return image

    async def remove(self, reference: str, *, force: bool = False) -> Removed:
        """Drop a reference, and the content that nobody else needs."""
        used = self._registry.used_images()
        await self._free_of_pools(reference, force=force)
        removed = await self._images.remove(reference, used=used, force=force)
        self._events.emit("image.removed", reference, reference, bytes=removed.bytes)
        return removed

    async def _free_of_pools(self, reference: str, *, force: bool) -> None:
        """See to it that no pool needs an image that is to go. Raises in_use unless `force`."""
        pooled = self._pools.images()
        if pooled and (image := await self._images.inspect(reference)).id in pooled:
            if not force:
                raise error(
                    "in_use",
                    f"there is a pool of the image {reference}",
                    hint="end it with `hutch pool drain`, or give --force, which does that, too",
                )
            await self._pools.drain_image(image.id)

    async def prune(self, *, everything: bool = False) -> Removed:
        """Drop content without a name; with `everything` also images that nothing uses."""
        used = [*self._registry.used_images(), *self._pools.images()]
        removed = await self._images.prune(used=used, everything=everything)
        self._events.emit("image.pruned", "", bytes=removed.bytes)
        return removed


class HostKernels:
    """Implements `Kernels` of the API's operations for one host."""

    def __init__(self, parts: Parts, registry: Registry) -> None:
        self._kernels = parts.kernels
        self._events = parts.events
        self._registry = registry

    async def list(self) -> Sequence[KernelInfo]:
        """Return all kernels."""
        return await self._kernels.list()

    async def pull(self, report: Report, *, package: str | None = None) -> KernelInfo:
        """Fetch the distribution's kernel."""
        kernel = await self._kernels.pull(report, package=package)
        self._events.emit("kernel.pulled", kernel.name, kernel.name)
        return kernel

    async def load(
        self, path: Path, *, modules: Path | None = None, name: str | None = None
    ) -> KernelInfo:
        """Import a kernel from a file."""
        kernel = await self._kernels.load(path, modules=modules, name=name)
        self._events.emit("kernel.loaded", kernel.name, kernel.name)
        return kernel

    async def use(self, name: str) -> KernelInfo:
        """Make a kernel the one that new boots use."""
        kernel = await self._kernels.use(name)
        self._events.emit("kernel.used", kernel.name, kernel.name)
        return kernel

    async def remove(self, name: str) -> Removed:
        """Delete a kernel that no sandbox needs."""
        removed = await self._kernels.remove(name, used=self._registry.used_kernels())
        self._events.emit("kernel.removed", name, name, bytes=removed.bytes)
        return removed


class HostTemplates:
    """Implements `Templates` of the API's operations for one host."""

    def __init__(self, parts: Parts, booter: Booter, pools: Pools) -> None:
        self._parts = parts
        self._pools = pools
        self._booter = booter
        self._templates = booter.templates

    async def list(self) -> Sequence[TemplateInfo]:
        """Return all templates."""
        return await self._templates.infos()

    async def build(self, spec: SandboxSpec, report: Report) -> TemplateInfo:
        """Make the template that sandboxes like `spec` begin as clones of."""
        ahead = await look_ahead(self._parts, self._booter, spec, report)
        return await self._templates.info(await self._templates.build(ahead.recipe))

    async def remove(self, ref: str) -> Removed:
        """Drop a template."""
        template_id = self._templates.find(ref).id
        freed = await self._templates.drop(template_id, "it was removed")
        await self._pools.refresh()
        return Removed([template_id], freed)

    async def prune(self) -> Removed:
        """Drop the templates that no sandbox is based on."""
        unused = self._templates.unused()
        freed = [await self._templates.drop(each, "no sandbox used it") for each in unused]
        return Removed(list(unused), sum(freed))
