"""Images, kernels and templates in memory, as the API asks for them."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hutch.content import ImageConfig, ImageInfo, KernelInfo
from hutch.errors import error
from hutch.models import (
    Progress,
    Removed,
    SandboxSpec,
    TemplateInfo,
    TemplatePoint,
)
from tests.unit.api.fake_programs import NOW


def image(reference: str) -> ImageInfo:
    return ImageInfo("sha256:1", [reference], "amd64", NOW, 10, ["sha256:2"], ImageConfig())


class FakeImages:
    """Images that are made by asking."""

    def __init__(self) -> None:
        self.all: dict[str, ImageInfo] = {"busybox": image("busybox")}
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def list(self) -> Sequence[ImageInfo]:
        return list(self.all.values())

    async def inspect(self, reference: str) -> ImageInfo:
        if reference not in self.all:
            raise error("image_not_found", f"no image {reference}")
        return self.all[reference]

    async def pull(self, reference: str, report: Any) -> ImageInfo:
        if reference == "hang":
            report(Progress("pull", "sha256:9", 1, 100))
            self.started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if reference == "nosuch":
            raise error("image_not_found", "no image nosuch", hint="check its name")
        if reference == "bug":
            raise ZeroDivisionError("a bug")
        for done in range(1000):
            report(Progress("pull", f"sha256:{done % 2}", done, 1000))
        self.all[reference] = image(reference)
        return self.all[reference]

    async def load(self, path: Path, report: Any, *, tag: str | None = None) -> Sequence[ImageInfo]:
        return [image(tag or path.name)]

    async def build(
        self,
        context: Path,
        report: Any,
        *,
        tag: str,
        dockerfile: Path | None = None,
        args: dict[str, str] | None = None,
    ) -> ImageInfo:
        return image(tag)

    async def remove(self, reference: str, *, force: bool = False) -> Removed:
        await self.inspect(reference)
        del self.all[reference]
        return Removed([reference], 10)

    async def prune(self, *, everything: bool = False) -> Removed:
        return Removed([], 0)


class FakeKernels:
    """One kernel."""

    kernel = KernelInfo("6.1", "6.1.0", "package", 10, ["virtio"], True)

    async def list(self) -> Sequence[KernelInfo]:
        return [self.kernel]

    async def pull(self, report: Any, *, package: str | None = None) -> KernelInfo:
        report(Progress("fetch", "kernel"))
        return self.kernel

    async def load(
        self, path: Path, *, modules: Path | None = None, name: str | None = None
    ) -> KernelInfo:
        return replace(self.kernel, name=name or path.name)

    async def use(self, name: str) -> KernelInfo:
        if name != self.kernel.name:
            raise error("kernel_not_found", f"no kernel {name}")
        return self.kernel

    async def remove(self, name: str) -> Removed:
        return Removed([(await self.use(name)).name], 10)


class FakeTemplates:
    """One template."""

    info = TemplateInfo(
        id="0123456789ab-cdef01",
        key="0123456789ab" + "0" * 52,
        point=TemplatePoint.FRESH,
        image="busybox",
        image_id="sha256:1",
        kernel="6.1",
        accelerator="tcg",
        machine="microvm",
        cpus=1,
        memory=512 << 20,
        disk=10 << 30,
        created_at=NOW,
        used_at=NOW,
        build_seconds=2.5,
        sandboxes=2,
        running=1,
        disk_bytes=90 << 20,
        memory_bytes=80 << 20,
    )

    async def list(self) -> Sequence[TemplateInfo]:
        return [self.info]

    async def build(self, spec: SandboxSpec, report: Any) -> TemplateInfo:
        if spec.memory == 3:
            raise error("bad_size", "no template of that size")
        report(Progress("build", "template"))
        return replace(self.info, image=spec.image, cpus=spec.cpus or 1)

    async def remove(self, ref: str) -> Removed:
        if not self.info.id.startswith(ref):
            raise error("template_not_found", f"no template {ref}")
        return Removed([self.info.id], 10)

    async def prune(self) -> Removed:
        return Removed([self.info.id], 10)
