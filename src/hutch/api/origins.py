"""What the API can ask for of that which sandboxes begin from: images, kernels, templates, pools.

Protocols, as those of `operations`, and under the same rules.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from hutch.content import ImageInfo, KernelInfo
from hutch.images.base import Report
from hutch.models import PoolInfo, Removed, SandboxSpec, TemplateInfo


class Images(Protocol):
    """The image store, with what sandboxes use of it."""

    async def list(self) -> Sequence[ImageInfo]:
        """Return all images, newest first."""

    async def inspect(self, reference: str) -> ImageInfo:
        """Return an image by reference, id, or unique prefix of one."""

    async def pull(self, reference: str, report: Report) -> ImageInfo:
        """Fetch an image from its registry, also when it is already here."""

    async def load(
        self, path: Path, report: Report, *, tag: str | None = None
    ) -> Sequence[ImageInfo]:
        """Import a `docker save` or OCI archive, or an OCI layout directory."""

    async def build(
        self,
        context: Path,
        report: Report,
        *,
        tag: str,
        dockerfile: Path | None = None,
        args: dict[str, str] | None = None,
    ) -> ImageInfo:
        """Build a Dockerfile. Raises Missing (tool_missing), ImageError (build_failed)."""

    async def remove(self, reference: str, *, force: bool = False) -> Removed:
        """Drop a reference, and the content that nobody else needs."""

    async def prune(self, *, everything: bool = False) -> Removed:
        """Drop unreferenced content; with `everything` also unused images."""


class Kernels(Protocol):
    """The kernel store."""

    async def list(self) -> Sequence[KernelInfo]:
        """Return all kernels of the store."""

    async def pull(self, report: Report, *, package: str | None = None) -> KernelInfo:
        """Fetch the distribution's kernel, without installing it."""

    async def load(
        self, path: Path, *, modules: Path | None = None, name: str | None = None
    ) -> KernelInfo:
        """Import a vmlinuz or vmlinux with its modules directory."""

    async def use(self, name: str) -> KernelInfo:
        """Make a kernel the active one."""

    async def remove(self, name: str) -> Removed:
        """Delete a kernel that no sandbox uses."""


class Templates(Protocol):
    """Frozen machines that sandboxes begin as clones of."""

    async def list(self) -> Sequence[TemplateInfo]:
        """Return all templates, the most recently used first."""

    async def build(self, spec: SandboxSpec, report: Report) -> TemplateInfo:
        """Make the template that sandboxes like `spec` begin as clones of, if there is none yet.

        Raises InvalidInput (bad_size, bad_setting) where there can be none.
        """

    async def remove(self, ref: str) -> Removed:
        """Drop a template, by its id or the beginning of one. Its sandboxes go on."""

    async def prune(self) -> Removed:
        """Drop all templates that no sandbox is based on."""


class Pools(Protocol):
    """Clones that are started and warm before anybody asks for them.

    A sandbox that is made takes over one that fits, and its id. A pool outlives the daemon, and is
    filled again then.
    """

    async def list(self) -> Sequence[PoolInfo]:
        """Return all pools, in the order of their making."""

    async def warm(self, spec: SandboxSpec, size: int, report: Report, *, wait: bool) -> PoolInfo:
        """Have `size` clones for sandboxes like `spec` ready from now on.

        With `wait` return once there are so many; when that is cancelled, the pool stays. Raises
        InvalidInput (bad_size, bad_setting) where there can be none, and why one was not made.
        """

    async def drain(self, image: str | None = None) -> Removed:
        """End the pools of an image (None: all). Raises NotFound (pool_not_found)."""
