"""Root file systems: an image's layers as one read-only squashfs or EROFS file, built without root.

The merged tar stream goes straight into `mkfs.erofs --tar` (1.7 or later) or `tar2sqfs`, which take
owners, modes, devices and xattrs from the archive, not from any disk. The file is made beside its
place and renamed into it.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hutch import process
from hutch.errors import HutchError, error
from hutch.images.base import Report, RootFs
from hutch.images.layers import Layer, Tree, merge, write_tar
from hutch.images.progress import Meter, in_metered_thread
from hutch.tasks import settle_in_thread

FORMAT = 1
"""Part of every file's name: raised when what is built from the same layers changes."""

_SUFFIXES = ("squashfs", "erofs")
_EROFS_TAR = (1, 7)
_BUILD_TIMEOUT = 3600.0
_VERSION_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Builder:
    """The program that turns a tar stream into a file system file."""

    fstype: str
    argv: tuple[str, ...]


def path_of(directory: Path, image_id: str, fstype: str) -> Path:
    """Return where the rootfs of an image is, or would be."""
    return directory / f"{image_id.partition(':')[2]}-{FORMAT}.{fstype}"


def find(directory: Path, image_id: str) -> RootFs | None:
    """Return the rootfs of an image, if it was built."""
    for fstype in _SUFFIXES:
        path = path_of(directory, image_id, fstype)
        with contextlib.suppress(FileNotFoundError):
            return RootFs(path, fstype, path.stat().st_size)
    return None


def images(directory: Path) -> set[str]:
    """Return the ids of all images that have a rootfs here."""
    return {
        "sha256:" + path.name.partition("-")[0]
        for path in directory.iterdir()
        if path.suffix.lstrip(".") in _SUFFIXES and not path.name.startswith(".")
    }


def adopt(directory: Path, path: Path, fstype: str, digest: str) -> str:
    """Move a finished rootfs into `directory`; return the id that it goes by there.

    Blocking. Raises OSError, ValueError for what is no kind of rootfs.
    """
    if fstype not in _SUFFIXES:
        raise ValueError(f"{fstype!r} is no kind of root file system")
    image_id = "sha256:" + hashlib.sha256(f"adopted {fstype} {digest}".encode()).hexdigest()
    directory.mkdir(parents=True, exist_ok=True)
    if find(directory, image_id) is None:
        _settle(path, path_of(directory, image_id, fstype))
    return image_id


def remove(directory: Path, image_id: str) -> int:
    """Remove the rootfs files of an image, of any format; return the bytes freed."""
    freed = 0
    for path in directory.glob(f"{image_id.partition(':')[2]}-*"):
        freed += path.stat().st_blocks * 512
        path.unlink(missing_ok=True)
    return freed


async def choose_builder() -> Builder:
    """Return the best builder that this host has. Raises Missing (tool_missing).

    EROFS stays uncompressed. squashfs takes lz4 in 32 KiB blocks: under software emulation, reading
    all of a 130 MB Debian took 4.7-5.3 s with them, 5.4-6.6 s with blocks of 16 or 128 KiB or with
    zstd. It gets an export table, without which overlayfs has no file handles and breaks the hard
    links of the image.
    """
    if (program := process.which("mkfs.erofs")) is not None:
        shown = await process.run([program, "-V"], timeout=_VERSION_TIMEOUT, check=False)
        version = re.search(rb"(\d+)\.(\d+)", shown.stdout + shown.stderr)
        if version and (int(version[1]), int(version[2])) >= _EROFS_TAR:
            return Builder("erofs", (program, "-T0", "--quiet", "--tar=f"))
    program = process.require("tar2sqfs", "squashfs-tools-ng")
    options = ("-q", "-s", "-f", "-e", "-c", "lz4", "-b", "32768", "-j", "2")
    return Builder("squashfs", (program, *options))


async def build(directory: Path, image_id: str, layers: Sequence[Layer], report: Report) -> RootFs:
    """Build the rootfs of an image and return it.

    Raises ImageError (bad_image, digest_mismatch), Missing (tool_missing), NoCapacity (disk_full);
    a failure or a cancellation leaves nothing.
    """
    builder = await choose_builder()
    size = sum(layer.path.stat().st_size for layer in layers)
    scan = Meter(report, "check", image_id, size)
    tree = await in_metered_thread(scan, lambda meter: merge(layers, meter.advance))
    target = path_of(directory, image_id, builder.fstype)
    part = directory / f".new-{target.name}"
    try:
        meter = Meter(report, "rootfs", image_id, size)
        await _pack(builder, tree, layers, part, meter)
        await settle_in_thread(_settle, part, target)
        meter.finish()
    finally:
        part.unlink(missing_ok=True)
    return RootFs(target, builder.fstype, target.stat().st_size)


async def _pack(
    builder: Builder, tree: Tree, layers: Sequence[Layer], part: Path, meter: Meter
) -> None:
    free = shutil.disk_usage(part.parent).free
    reader, writer = os.pipe()
    failure: HutchError | None = None
    async with asyncio.TaskGroup() as group:
        feeding = group.create_task(in_metered_thread(meter, _feed, tree, layers, writer))
        try:
            await process.run(
                [*builder.argv, str(part)], timeout=_BUILD_TIMEOUT, stdin=reader, code="bad_image"
            )
        except HutchError as cause:
            failure = cause
        finally:
            # With the last reader gone, a feeder that still writes gets EPIPE and ends.
            os.close(reader)
    fed = feeding.result()
    if fed.failure is not None:
        raise fed.failure
    if failure is not None:
        # The builder says "I/O error" and removes its file, so the reason has to be worked out.
        if tree.content_size() > free:
            raise disk_full(part.parent) from failure
        raise failure
    if not fed.whole:
        raise error("bad_image", f"{builder.argv[0]} did not read the whole image")


@dataclass(frozen=True, slots=True)
class _Fed:
    """How the feeding ended: `whole` when the builder took all of it, `failure` when the layers are
    at fault.
    """

    whole: bool
    failure: HutchError | None = None


def _feed(meter: Meter, tree: Tree, layers: Sequence[Layer], writer: int) -> _Fed:
    """Write the tar stream into a pipe and close it.

    To the builder, an error looks like the end of the archive: what it made only counts when all of
    it was fed.
    """
    out = open(writer, "wb", buffering=1 << 20)  # noqa: SIM115 - closing may fail by itself
    try:
        write_tar(tree, layers, out, meter.advance)
        out.close()
    except BrokenPipeError:
        return _Fed(False)
    except HutchError as cause:
        return _Fed(False, cause)
    finally:
        with contextlib.suppress(BrokenPipeError):
            out.close()
    return _Fed(True)


def disk_full(directory: Path) -> HutchError:
    """Return the error for a host's disk without space."""
    return error(
        "disk_full",
        f"the disk of {directory} is full",
        hint="free some space, for example with `hutch image prune`",
    )


def _settle(part: Path, target: Path) -> None:
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.chmod(part, 0o644)
    os.replace(part, target)
