"""The seam between the service and images.

`Images` is the local store with its sources; `Kernels` is the store of kernels with their
initramfs. Both work on directories below `$HUTCH_HOME` that other OCI tools can read, need no root,
and are safe for several tasks at once: a blob, a rootfs or a kernel is made once, beside its place,
and renamed into it.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hutch.content import ImageConfig, ImageInfo, KernelInfo
from hutch.models import Progress, PullPolicy, Removed

Report = Callable[[Progress], None]
"""Called with the progress of long work, from the event loop; must not block."""


@dataclass(frozen=True, slots=True)
class RootFs:
    """A read-only file system file built from an image: `fstype` is squashfs or erofs."""

    path: Path
    fstype: str
    size: int


@dataclass(frozen=True, slots=True)
class Image:
    """An image ready to boot."""

    id: str
    reference: str
    config: ImageConfig
    rootfs: RootFs


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel ready to boot: an ELF vmlinux, and an initramfs with the agent and its modules."""

    name: str
    version: str
    vmlinux: Path
    initramfs: Path


class Images(Protocol):
    """The image store.

    Errors: bad_reference, image_not_found, registry_*, digest_mismatch, bad_image, no_platform …
    """

    async def ensure(self, reference: str, pull: PullPolicy, report: Report) -> Image:
        """Return the image with its rootfs, pulling and building what is missing.

        Names of built-in images are references too. Two calls for one image do the work once.
        """

    async def list(self) -> Sequence[ImageInfo]:
        """Return all images, newest first."""

    async def inspect(self, reference: str) -> ImageInfo:
        """Accepts a reference, a full id, or a unique prefix of at least 6 hex digits of one."""

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
        """Build a Dockerfile with buildah. Raises tool_missing, build_failed."""

    async def remove(
        self, reference: str, *, used: Sequence[str] = (), force: bool = False
    ) -> Removed:
        """Drop a reference, and the content nobody else needs.

        `used` are ids that sandboxes use: in_use.
        """

    async def prune(self, *, used: Sequence[str] = (), everything: bool = False) -> Removed:
        """Drop unreferenced content; with `everything` also images that no sandbox uses."""

    def rootfs_path(self, image_id: str) -> RootFs | None:
        """Return the rootfs of an image by its full id (`start` after `stop`); None when gone."""

    def adopt_rootfs(self, path: Path, fstype: str, digest: str) -> str:
        """Take over a rootfs that has no image here; return the id that it goes by.

        It never passes for an image's. It stays while somebody uses it. Blocking. Raises OSError.
        """


class Kernels(Protocol):
    """The kernel store.

    Errors: kernel_missing, kernel_not_found, bad_image, tool_missing, in_use.
    """

    async def ensure(self, name: str | None, report: Report) -> Kernel:
        """Return the named or the active kernel with an up-to-date initramfs.

        Fetches one when the store is empty.
        """

    async def list(self) -> Sequence[KernelInfo]:
        """Return all kernels of the store."""

    async def pull(self, report: Report, *, package: str | None = None) -> KernelInfo:
        """Fetch the distribution's cloud kernel with its package manager, without installing it."""

    async def load(
        self, path: Path, *, modules: Path | None = None, name: str | None = None
    ) -> KernelInfo:
        """Import a vmlinuz or vmlinux with its modules directory."""

    async def use(self, name: str) -> KernelInfo:
        """Make a kernel the active one."""

    async def remove(self, name: str, *, used: Sequence[str] = ()) -> Removed:
        """Delete a kernel. `used` are names that sandboxes use: in_use."""


def no_report(progress: Progress) -> None:
    """Ignore progress."""


ByteStream = AsyncIterator[bytes]
