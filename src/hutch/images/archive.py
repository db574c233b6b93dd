"""Images from files: `docker save` archives, OCI archives and OCI layout directories.

An archive is unpacked into numbered scratch files, so that no name in it can mean a path of the
host. Everything is checked before it enters the layout; the index is the store's to write.
Blocking, but for `progress`.
"""

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from hutch.errors import HutchError, error
from hutch.images import config, reference, tar
from hutch.images.compression import Decompressed, bomb_limit, copy_stream
from hutch.images.config import Descriptor, bad_image
from hutch.images.layout import REF_NAME, Layout, Pins
from hutch.images.progress import Meter

_CONTAINERD_NAME = "io.containerd.image.name"
_JSON_LIMIT = 8 << 20
_FILES_LIMIT = 100_000
_IMAGES_LIMIT = 256
_LINKS_LIMIT = 16
_INDEX_DEPTH = 3


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image whose blobs are in the layout, and the references that the file gives it."""

    descriptor: Descriptor
    references: tuple[str, ...]


class _Files:
    """The files of an archive or directory by name; `movable` ones may be moved into the layout."""

    def __init__(
        self, paths: Mapping[str, Path], links: Mapping[str, str], *, movable: bool
    ) -> None:
        self._paths = paths
        self._links = links
        self.movable = movable

    def __contains__(self, name: str) -> bool:
        return self._target(name) in self._paths

    def path(self, name: str) -> Path:
        """Return where a file's content is. Raises ImageError (bad_image) when it is missing."""
        found = self._paths.get(self._target(name))
        if found is None:
            raise bad_image(f"the archive lacks {name}")
        return found

    def json(self, name: str) -> Any:
        """Return a small JSON file. Raises ImageError (bad_image)."""
        path = self.path(name)
        if path.stat().st_size > _JSON_LIMIT:
            raise bad_image(f"{name} is too large")
        try:
            return json.loads(path.read_bytes())
        except (ValueError, RecursionError) as cause:
            raise bad_image(f"{name} is not JSON: {cause}") from cause

    def _target(self, name: str) -> str:
        """Return the name that links, such as `docker save` makes for repeated layers, end at."""
        for _ in range(_LINKS_LIMIT):
            if name not in self._links:
                break
            name = self._links[name]
        return name


def load(
    meter: Meter, path: Path, layout: Layout, pins: Pins, scratch: Path, default_registry: str
) -> list[Loaded]:
    """Bring the images of a file or directory into the layout and return them.

    `scratch` is an empty directory on the layout's file system. Raises NotFound (image_not_found)
    for a missing path, ImageError (bad_image, digest_mismatch, no_platform).
    """
    if path.is_dir():
        files = _open_directory(path)
    elif path.is_file():
        files = _unpack(meter, path, scratch)
    else:
        raise error("image_not_found", f"there is no file or directory {path}")
    importer = _Importer(meter, files, layout, pins, default_registry)
    # An archive of `docker save` that is an OCI layout as well names its images only in
    # manifest.json.
    if "manifest.json" in files:
        return importer.docker()
    if "index.json" in files and "oci-layout" in files:
        return importer.oci()
    raise bad_image(f"{path} is neither a `docker save` archive nor an OCI archive or layout")


def _open_directory(path: Path) -> _Files:
    paths: dict[str, Path] = {}
    names = [path / "oci-layout", path / "index.json", *(path / "blobs").glob("*/*")]
    for item in names:
        # A link could lead to any file of the host.
        if item.is_file() and not item.is_symlink() and not item.parent.is_symlink():
            paths[str(item.relative_to(path))] = item
    return _Files(paths, {}, movable=False)


def _unpack(meter: Meter, path: Path, scratch: Path) -> _Files:
    paths: dict[str, Path] = {}
    links: dict[str, str] = {}
    free = os.statvfs(scratch)
    limit = bomb_limit(path.stat().st_size, free.f_bavail * free.f_frsize)
    with Decompressed(path, limit=limit, advance=meter.advance) as stream:
        for number, member in enumerate(tar.read_members(stream)):
            if number > _FILES_LIMIT:
                raise bad_image(f"{path.name} has more than {_FILES_LIMIT} files")
            name = _normal(member.name)
            if member.kind == tar.FILE:
                target = scratch / str(number)
                with open(target, "wb") as out:
                    copy_stream(stream, out, member.size)
                paths[name] = target
                links.pop(name, None)
            elif member.kind == tar.HARDLINK:
                links[name] = _normal(member.link)
            elif member.kind == tar.SYMLINK:
                parent = member.name.rpartition(b"/")[0]
                links[name] = _normal(parent + b"/" + member.link)
    if not paths:
        raise bad_image(f"{path.name} is no archive of images, or an empty one")
    return _Files(paths, links, movable=True)


def _normal(name: bytes) -> str:
    text = name.decode("utf-8", "surrogateescape")
    parts: list[str] = []
    for part in PurePosixPath(text).parts:
        if part == "..":
            parts[-1:] = []
        elif part != "/":
            parts.append(part)
    return "/".join(parts)


class _Importer:
    def __init__(
        self, meter: Meter, files: _Files, layout: Layout, pins: Pins, default_registry: str
    ) -> None:
        self._meter = meter
        self._files = files
        self._layout = layout
        self._pins = pins
        self._default_registry = default_registry
        self._moved: dict[Path, Descriptor] = {}

    def docker(self) -> list[Loaded]:
        """Import what `manifest.json` lists."""
        listed = self._files.json("manifest.json")
        if not isinstance(listed, list) or not 0 < len(listed) <= _IMAGES_LIMIT:
            raise bad_image(f"manifest.json does not list 1 to {_IMAGES_LIMIT} images")
        return [self._docker_image(item) for item in listed]

    def _docker_image(self, item: Any) -> Loaded:
        if not isinstance(item, dict) or not isinstance(item.get("Config"), str):
            raise bad_image("manifest.json has a malformed image")
        names, tags = item.get("Layers"), item.get("RepoTags") or []
        if not _are_texts(names) or not _are_texts(tags):
            raise bad_image("manifest.json has an image with malformed layers or tags")
        body = self._read_small(item["Config"], config.CONFIG_LIMIT)
        parsed = config.parse_config(body, f"the image config {item['Config']}")
        config.check_platform(parsed, "the archive's image")
        if len(names) != len(parsed.diff_ids):
            raise bad_image("an image of the archive has not as many layers as its config says")
        described = self._layout.add_bytes(body, config.OCI_CONFIG, self._pins)
        layers = [
            self._docker_layer(name, diff_id)
            for name, diff_id in zip(names, parsed.diff_ids, strict=True)
        ]
        manifest = config.make_manifest(described, layers)
        descriptor = self._layout.add_bytes(manifest, config.OCI_MANIFEST, self._pins)
        return Loaded(descriptor, tuple(filter(None, (self._name(tag) for tag in tags))))

    def _docker_layer(self, name: str, diff_id: str) -> Descriptor:
        path = self._files.path(name)
        if path not in self._moved:
            with open(path, "rb") as file:
                magic = file.read(4)
            kind = config.OCI_LAYER
            if magic.startswith(b"\x1f\x8b"):
                kind += "+gzip"
            elif magic == b"\x28\xb5\x2f\xfd":
                kind += "+zstd"
            found = self._layout.add_file(path, kind, self._pins)
            if kind == config.OCI_LAYER and found.digest != diff_id:
                raise error("digest_mismatch", f"the layer {name} is {found.digest}, not {diff_id}")
            self._moved[path] = found
        return self._moved[path]

    def oci(self) -> list[Loaded]:
        """Import what `index.json` lists for this machine."""
        index = self._files.json("index.json")
        listed = index.get("manifests") if isinstance(index, dict) else None
        if not isinstance(listed, list) or not 0 < len(listed) <= _IMAGES_LIMIT:
            raise bad_image(f"index.json does not list 1 to {_IMAGES_LIMIT} images")
        names: dict[Descriptor, list[str]] = {}
        skipped: HutchError | None = None
        for item in listed:
            entry = config.parse_descriptor(item, "index.json")
            try:
                found = self._oci_image(entry)
            except HutchError as cause:
                if cause.code != "no_platform":
                    raise
                skipped = cause  # the same image of another machine may stand beside it
                continue
            given = names.setdefault(found, [])
            if (name := self._annotated(item)) and name not in given:
                given.append(name)
        if not names and skipped is not None:
            raise skipped
        return [Loaded(found, tuple(given)) for found, given in names.items()]

    def _oci_image(self, entry: Descriptor) -> Descriptor:
        for _ in range(_INDEX_DEPTH):
            body = self._read_blob(entry, config.MANIFEST_LIMIT)
            if "manifests" not in config.parse_object(body, entry.digest):
                break
            entry = config.choose_platform(body, entry.digest, config.host_architecture())
        manifest = config.parse_manifest(body, entry.digest)
        described = self._read_blob(manifest.config, config.CONFIG_LIMIT)
        parsed = config.parse_config(described, f"the image config {manifest.config.digest}")
        config.check_platform(parsed, "the archive's image")
        for layer in manifest.layers:
            self._add_blob(layer)
        self._layout.add_body(described, manifest.config, self._pins)
        kind = entry.media_type or config.OCI_MANIFEST
        found = Descriptor(kind, entry.digest, entry.size)
        self._layout.add_body(body, found, self._pins)
        return found

    def _add_blob(self, blob: Descriptor) -> None:
        self._pins.add(blob.digest)
        if self._layout.has(blob):
            return
        path = self._files.path(_blob_name(blob))
        if self._files.movable:
            self._layout.add_checked(path, blob, self._pins, self._meter.advance)
            return
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(file, "rb") as source:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise bad_image(f"{path} is no regular file")
            self._layout.add_stream(source, blob, self._pins, self._meter.advance)

    def _read_blob(self, blob: Descriptor, limit: int) -> bytes:
        if self._layout.has(blob):
            return self._layout.read(blob, limit)
        return self._read_small(_blob_name(blob), limit)

    def _read_small(self, name: str, limit: int) -> bytes:
        path = self._files.path(name)
        if path.stat().st_size > limit:
            raise bad_image(f"{name} is too large")
        return path.read_bytes()

    def _annotated(self, item: Any) -> str | None:
        """Return the full reference of an index entry; a bare tag names no image."""
        notes = item.get("annotations")
        if isinstance(notes, dict):
            for key in (_CONTAINERD_NAME, REF_NAME):
                text = notes.get(key)
                if (
                    isinstance(text, str)
                    and re.search(r"[/:]", text)
                    and (name := self._name(text))
                ):
                    return name
        return None

    def _name(self, text: str) -> str | None:
        try:
            return str(reference.parse(text, self._default_registry))
        except HutchError:
            return None


def _blob_name(blob: Descriptor) -> str:
    return "blobs/" + blob.digest.replace(":", "/")


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
