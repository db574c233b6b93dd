"""The image store: what the service calls. It ties layout, registry, archives, built-ins and root
file systems together.

Everything lives below `$HUTCH_HOME/images`: `oci/` (an OCI image layout), `rootfs/` (one file
system file per image) and `partial/` (unfinished downloads). One task at a time works on one image;
others that want it wait and find it done.
"""

import asyncio
import contextlib
import errno
import logging
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hutch.content import ImageInfo
from hutch.errors import HutchError, NotFound, error
from hutch.images import archive, builtin, config, rootfs
from hutch.images.base import Image, Report, RootFs
from hutch.images.build import Base, Builder, base_names, read_dockerfile
from hutch.images.compression import bomb_limit
from hutch.images.config import Config, Descriptor, Manifest
from hutch.images.flight import Flights
from hutch.images.layers import Layer
from hutch.images.layout import Entry, Layout, Pins
from hutch.images.progress import Meter, in_metered_thread
from hutch.images.reference import Reference, parse
from hutch.models import Progress, PullPolicy, Removed
from hutch.settings import Settings
from hutch.tasks import in_thread, settle_in_thread

if TYPE_CHECKING:
    from hutch.images.registry import Registry

log = logging.getLogger(__name__)

_WHOLE_ID = re.compile(r"(?:sha256:)?[0-9a-f]{64}")
_ID = re.compile(r"(?:sha256:)?([0-9a-f]{6,64})")


@dataclass(frozen=True, slots=True)
class _Found:
    """An image of the layout, read."""

    descriptor: Descriptor
    manifest: Manifest
    config: Config


class ImageStore:
    """Implements `hutch.images.base.Images` on a directory. One per home; made on any thread, used
    on one loop.
    """

    def __init__(self, home: Path, settings: Settings) -> None:
        self._settings = settings
        self._root = home / "images"
        self._rootfs = self._root / "rootfs"
        self._layout = Layout(self._root / "oci")
        self._adopted = self._root / "adopted"
        self._partial = self._root / "partial"
        self._builder = Builder(self._root / "build", self._layout, settings)
        self._flights = Flights()
        self._ready = False

    @cached_property
    def _registry(self) -> "Registry":
        # Not above: its HTTP client is a tenth of the daemon's start, and many never pull.
        from hutch.images.registry import Registry

        return Registry(self._settings, self._layout, self._partial)

    # the seam

    async def ensure(self, reference: str, pull: PullPolicy, report: Report) -> Image:
        """Return the image with its rootfs, pulling and building what is missing.

        Two calls for one image do the work once. Raises bad_reference, image_not_found and all that
        a pull or the building of a rootfs can raise.
        """
        await self._open()
        async with self._flights.over(f"reference {reference}"):
            known = await in_thread(self._known, reference, pull)
            if known is not None:
                return await self._complete(known, reference, report)
            if _WHOLE_ID.fullmatch(reference):
                raise _not_found(reference, "an image that is not in the store has no id")
            wanted = parse(reference, self._settings.default_registry)
            if pull is PullPolicy.NEVER:
                raise _not_found(reference, "it is not in the store, and pulling was not allowed")
            async with self._adding() as pins:
                if wanted.builtin:
                    descriptor = await self._make_builtin(wanted, pins, report)
                else:
                    descriptor = await self._registry.pull(wanted, pins, report)
                image = await self._finish(descriptor, reference, report)
                await in_thread(self._layout.tag, descriptor, str(wanted))
                return image

    async def list(self) -> Sequence[ImageInfo]:
        """Return all images, in the order in which their references sort; nameless ones last."""
        await self._open()
        return await in_thread(self._infos)

    async def inspect(self, reference: str) -> ImageInfo:
        """Return one image by reference, id, or unique prefix (6 hex digits or more) of an id."""
        await self._open()
        descriptor = await in_thread(self._resolve, reference)
        return await in_thread(self._info, descriptor)

    async def pull(self, reference: str, report: Report) -> ImageInfo:
        """Fetch an image anew (a built-in is made anew) with its rootfs."""
        image = await self.ensure(reference, PullPolicy.ALWAYS, report)
        return await self.inspect(image.id)

    async def load(
        self, path: Path, report: Report, *, tag: str | None = None
    ) -> Sequence[ImageInfo]:
        """Import a `docker save` or OCI archive, or an OCI layout directory.

        With `tag`, the file must hold one image, which then goes by that name only. Raises
        image_not_found, bad_reference, bad_image, digest_mismatch, no_platform, disk_full; a
        failure leaves nothing.
        """
        name = None if tag is None else str(self._own_name(tag))
        await self._open()
        async with self._adding() as pins:
            return await self._load(path, report, name, pins)

    async def build(
        self,
        context: Path,
        report: Report,
        *,
        tag: str,
        dockerfile: Path | None = None,
        args: dict[str, str] | None = None,
    ) -> ImageInfo:
        """Build a Dockerfile with buildah; its base images may be those of this store.

        Raises bad_reference, bad_path, tool_missing, build_failed.
        """
        name = str(self._own_name(tag))
        await self._open()
        path, text = await in_thread(read_dockerfile, context, dockerfile)
        bases = await self._bases(base_names(text, args or {}), report)
        async with self._adding() as pins, self._scratch() as scratch:
            async with self._flights.over("build"):
                await self._builder.build(context, path, args or {}, bases, scratch / "out", report)
            loaded = await self._load(scratch / "out", report, name, pins)
        return loaded[0]

    def rootfs_path(self, image_id: str) -> RootFs | None:
        """Return the rootfs of an image whose id is known, or None when it is gone."""
        return rootfs.find(self._rootfs, image_id) or rootfs.find(self._adopted, image_id)

    def adopt_rootfs(self, path: Path, fstype: str, digest: str) -> str:
        """Take over a rootfs that has no image here; return the id that it goes by.

        The id is made of its content, `digest`, so that it never passes for an image's. It stays
        until it is pruned while nobody uses it. Blocking. Raises OSError.
        """
        return rootfs.adopt(self._adopted, path, fstype, digest)

    async def remove(
        self, reference: str, *, used: Sequence[str] = (), force: bool = False
    ) -> Removed:
        """Drop a reference (or, by id, the image with all of them) and the content that nobody else
        needs.

        Raises image_not_found; in_use when a sandbox uses the image, unless `force`: then the
        references go, and the content stays for the sandbox.
        """
        await self._open()
        return await in_thread(self._remove, reference, set(used), force)

    async def prune(self, *, used: Sequence[str] = (), everything: bool = False) -> Removed:
        """Drop nameless images, unfinished downloads and stray blobs; with `everything` all unused
        images.
        """
        await self._open()
        async with self._flights.over("build"):
            built = await in_thread(self._builder.clear)
        removed = await in_thread(self._prune, set(used), everything)
        return Removed(removed.removed, removed.bytes + built)

    # obtaining

    def _known(self, text: str, pull: PullPolicy) -> _Found | None:
        """Return what is here and need not be asked for."""
        try:
            named = self._resolve(text)
        except NotFound:
            return None
        # An id says exactly which content: there is nothing newer to get.
        by_id = _ID.fullmatch(text) is not None and text.removeprefix("sha256:") in named.digest
        return None if pull is PullPolicy.ALWAYS and not by_id else self._read(named)

    async def _finish(self, descriptor: Descriptor, text: str, report: Report) -> Image:
        return await self._complete(await in_thread(self._read, descriptor), text, report)

    async def _complete(self, found: _Found, text: str, report: Report) -> Image:
        """Return an image that is in the store, with its rootfs."""
        built = await self._ensure_rootfs(found, report)
        return Image(found.descriptor.digest, text, found.config.run, built)

    async def _load(
        self, path: Path, report: Report, name: str | None, pins: Pins
    ) -> Sequence[ImageInfo]:
        size = await in_thread(_file_size, path)
        meter = Meter(report, "import", path.name, size)
        registry = self._settings.default_registry
        async with self._scratch() as scratch:
            loaded = await in_metered_thread(
                meter, archive.load, path, self._layout, pins, scratch, registry
            )
        if name is not None and len(loaded) != 1:
            raise error(
                "bad_request", f"{path} holds {len(loaded)} images: they cannot all be {name}"
            )
        for image in loaded:
            await self._finish(image.descriptor, name or image.descriptor.digest, report)
        for image in loaded:
            for reference in (name,) if name else image.references or (None,):
                await in_thread(self._layout.tag, image.descriptor, reference)
        meter.finish()
        return [await in_thread(self._info, image.descriptor) for image in loaded]

    async def _bases(self, names: Sequence[str], report: Report) -> Sequence[Base]:
        """Return the base images as this store has them; what it has not, it makes or pulls."""
        bases = []
        for name in names:
            wanted = parse(name, self._settings.default_registry)
            await self.ensure(name, PullPolicy.MISSING, report)
            bases.append(Base(name, wanted, str(wanted)))
        return bases

    def _own_name(self, text: str) -> Reference:
        """Return the reference that a user gives an image of his own."""
        found = parse(text, self._settings.default_registry)
        if found.builtin or found.digest:
            what = "is a built-in image" if found.builtin else "is a digest"
            raise error(
                "bad_reference",
                f"{text} cannot be given to an image: it {what}",
                hint=f"choose a name like localhost/{found.repository}:mine",
            )
        return found

    @asynccontextmanager
    async def _adding(self) -> AsyncIterator[Pins]:
        """Pin what is being added; a failure or a cancellation leaves no blob of it."""
        try:
            with self._layout.pins() as pins, _full_disk(self._root):
                yield pins
        except BaseException:
            await asyncio.shield(in_thread(self._layout.gc))
            raise

    @asynccontextmanager
    async def _scratch(self) -> AsyncIterator[Path]:
        """Give an empty directory on the store's file system."""
        path = Path(tempfile.mkdtemp(dir=self._layout.root / "tmp"))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    async def _make_builtin(self, wanted: Reference, pins: Pins, report: Report) -> Descriptor:
        report(Progress("build", str(wanted), message="making the built-in image"))
        recipe = builtin.RECIPES[wanted.repository]
        with self._layout.scratch() as path:
            created = await builtin.make_layer(recipe.name, path)
            return await settle_in_thread(self._add_image, path, recipe, created, pins)

    def _add_image(
        self, layer: Path, recipe: builtin.Recipe, created: float, pins: Pins
    ) -> Descriptor:
        """Store a layer's tar file, moving it, with a config and manifest of its own."""
        tarred = self._layout.add_file(layer, config.OCI_LAYER, pins)
        body = config.make_config(
            recipe.config, [tarred.digest], created_by=recipe.created_by, created=created
        )
        described = self._layout.add_bytes(body, config.OCI_CONFIG, pins)
        manifest = config.make_manifest(described, [tarred])
        return self._layout.add_bytes(manifest, config.OCI_MANIFEST, pins)

    async def _ensure_rootfs(self, found: _Found, report: Report) -> RootFs:
        image_id = found.descriptor.digest
        async with self._flights.over(f"rootfs {image_id}"):
            if (built := rootfs.find(self._rootfs, image_id)) is not None:
                return built
            free = shutil.disk_usage(self._rootfs).free
            layers = [
                Layer(self._layout.blob(layer.digest), diff_id, bomb_limit(layer.size, free))
                for layer, diff_id in zip(found.manifest.layers, found.config.diff_ids, strict=True)
            ]
            with self._layout.pins() as pins, _full_disk(self._rootfs):
                for digest in (image_id, *(layer.digest for layer in found.manifest.layers)):
                    pins.add(digest)
                return await rootfs.build(self._rootfs, image_id, layers, report)

    # looking

    def _read(self, descriptor: Descriptor) -> _Found:
        """Return manifest and config of an image, checked to be one that this machine can run."""
        what = f"the image {descriptor.digest}"
        body = self._layout.read(descriptor, config.MANIFEST_LIMIT)
        manifest = config.parse_manifest(body, what)
        described = self._layout.read(manifest.config, config.CONFIG_LIMIT)
        parsed = config.parse_config(described, what)
        if len(parsed.diff_ids) != len(manifest.layers):
            raise config.bad_image(
                f"{what} has {len(manifest.layers)} layers, its config says {len(parsed.diff_ids)}"
            )
        config.check_platform(parsed, what)
        return _Found(descriptor, manifest, parsed)

    def _resolve(self, text: str) -> Descriptor:
        """Return what a reference, an id or a unique prefix of one means here."""
        entries = self._layout.entries()
        with contextlib.suppress(HutchError):
            full = str(parse(text, self._settings.default_registry))
            for entry in entries:
                if entry.reference == full:
                    return entry.manifest
        if match := _ID.fullmatch(text):
            prefix = "sha256:" + match[1]
            found = {
                e.manifest.digest: e.manifest
                for e in entries
                if e.manifest.digest.startswith(prefix)
            }
            if len(found) == 1:
                return next(iter(found.values()))
            if found:
                raise _not_found(text, f"{len(found)} images have an id that begins so")
        else:
            parse(text, self._settings.default_registry)
        raise _not_found(text, "it is not in the store")

    def _infos(self) -> Sequence[ImageInfo]:
        infos = []
        for descriptor in dict.fromkeys(e.manifest for e in self._layout.entries()):
            try:
                infos.append(self._info(descriptor))
            except HutchError as cause:  # put there, or damaged, by another tool
                log.warning("the image %s cannot be shown: %s", descriptor.digest, cause)
        return sorted(infos, key=lambda info: (not info.references, info.references, info.id))

    def _info(self, descriptor: Descriptor) -> ImageInfo:
        names = [
            e.reference for e in self._layout.entries() if e.manifest.digest == descriptor.digest
        ]
        found = self._read(descriptor)
        built = rootfs.find(self._rootfs, descriptor.digest)
        blobs = {
            layer.digest: layer.size for layer in (found.manifest.config, *found.manifest.layers)
        }
        return ImageInfo(
            id=descriptor.digest,
            references=sorted(name for name in names if name),
            architecture=found.config.architecture or config.host_architecture(),
            created_at=found.config.created_at,
            size=descriptor.size + sum(blobs.values()),
            layers=[layer.digest for layer in found.manifest.layers],
            config=found.config.run,
            rootfs_size=built.size if built else None,
            rootfs_type=built.fstype if built else None,
        )

    # removing

    def _remove(self, text: str, used: set[str], force: bool) -> Removed:
        descriptor = self._resolve(text)
        names = self._names(descriptor.digest)
        full = None
        with contextlib.suppress(HutchError):
            full = str(parse(text, self._settings.default_registry))
        doomed = [full] if full is not None and full in names else names
        last = len(doomed) == len(names)
        if last and descriptor.digest in used and not force:
            raise error(
                "in_use",
                f"the image {text} is used by a sandbox",
                hint="remove the sandbox first, or give --force to drop only the name",
            )
        for name in doomed:
            self._layout.untag(name)
        if not last or descriptor.digest in used:
            return Removed([*doomed])
        return self._drop([descriptor.digest], doomed)

    def _prune(self, used: set[str], everything: bool) -> Removed:
        entries = self._layout.entries()
        named = {e.manifest.digest for e in entries if e.reference}
        gone = {
            e.manifest.digest
            for e in entries
            if e.manifest.digest not in used and (everything or e.manifest.digest not in named)
        }
        names = [e.reference or e.manifest.digest for e in entries if e.manifest.digest in gone]
        freed = 0
        for path in self._partial.iterdir():
            if not self._layout.pinned(path.stem.replace("-", ":", 1)):
                freed += path.stat().st_blocks * 512
                path.unlink(missing_ok=True)
        dropped = self._drop(sorted(gone), names)
        kept = used | {e.manifest.digest for e in self._layout.entries()}
        for image_id in rootfs.images(self._rootfs) - kept:
            if not self._layout.pinned(image_id):
                freed += rootfs.remove(self._rootfs, image_id)
        for image_id in rootfs.images(self._adopted) - used:
            freed += rootfs.remove(self._adopted, image_id)
        return Removed(dropped.removed, dropped.bytes + freed)

    def _drop(self, digests: Sequence[str], names: Sequence[str]) -> Removed:
        self._layout.drop(digests)
        freed = sum(blob.size for blob in self._layout.gc())
        freed += sum(rootfs.remove(self._rootfs, digest) for digest in digests)
        return Removed([*names], freed)

    def _names(self, digest: str) -> Sequence[str]:
        entries: Sequence[Entry] = self._layout.entries()
        return [e.reference for e in entries if e.manifest.digest == digest and e.reference]

    async def _open(self) -> None:
        if not self._ready:
            async with self._flights.over("open"):
                if not self._ready:
                    await in_thread(self._create)
                    self._ready = True

    def _create(self) -> None:
        for directory in (self._rootfs, self._adopted, self._partial):
            directory.mkdir(parents=True, exist_ok=True)
        self._layout.create()
        self._layout.sweep()
        for leftover in self._rootfs.glob(".new-*"):
            leftover.unlink(missing_ok=True)
        self._drop_strays()

    def _drop_strays(self) -> None:
        """Remove what a killed process has stored and not come to name in the index.

        Downloads stay: they are resumed.
        """
        try:
            known = {entry.manifest.digest for entry in self._layout.entries()}
            self._layout.gc()
        except HutchError:
            return  # a damaged store does not say what is needed; whoever reads it is told
        for image_id in rootfs.images(self._rootfs) - known:
            rootfs.remove(self._rootfs, image_id)


@contextlib.contextmanager
def _full_disk(directory: Path) -> Iterator[None]:
    """Turn the host's ENOSPC into the error that says so."""
    try:
        yield
    except OSError as cause:
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise rootfs.disk_full(directory) from cause
        raise


def _file_size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _not_found(text: str, why: str) -> HutchError:
    return error("image_not_found", f"no image {text}: {why}", hint="see `hutch image ls`")
