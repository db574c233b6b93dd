"""The store's directory: an OCI image layout that other tools can read, with atomic updates.

It owns `blobs/` and `index.json`; it knows nothing of registries or root file systems. Blocking:
call it through `tasks.in_thread`. Blobs are written beside their place, verified, and renamed into
it.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hutch.errors import error
from hutch.images.config import (
    MANIFEST_LIMIT,
    OCI_MANIFEST,
    Descriptor,
    bad_image,
    parse_descriptor,
    parse_manifest,
    parse_object,
)

REF_NAME = "org.opencontainers.image.ref.name"
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """An image of the index: its manifest and the full reference it goes by (None: it has lost its
    last one).
    """

    manifest: Descriptor
    reference: str | None


class Pins:
    """Digests that a running pull or import needs: `gc` leaves them alone until it is over."""

    def __init__(self, counts: Counter[str], lock: threading.Lock) -> None:
        self._counts = counts
        self._lock = lock
        self._mine: list[str] = []

    def add(self, digest: str) -> None:
        """Keep the blob of this digest, which may be about to be written."""
        with self._lock:
            self._counts[digest] += 1
            self._mine.append(digest)

    def release(self) -> None:
        """Let go of all of them."""
        with self._lock:
            self._counts.subtract(self._mine)
            self._mine.clear()


class Layout:
    """An OCI image layout below `root`. Safe for several threads; the index also for several
    processes.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def create(self) -> None:
        """Make the directory a valid, empty layout unless it is one."""
        for part in ("blobs/sha256", "tmp"):
            (self.root / part).mkdir(parents=True, exist_ok=True)
        marker = self.root / "oci-layout"
        if not marker.exists():
            write_atomic(marker, b'{"imageLayoutVersion": "1.0.0"}', staging=self.root / "tmp")
        if not (self.root / "index.json").exists():
            with self._locked():
                if not (self.root / "index.json").exists():
                    self._write_index([])

    def sweep(self) -> None:
        """Remove what a killed process left half-written. Only for the one owner of the store, at
        its start.
        """
        for leftover in (self.root / "tmp").iterdir():
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)

    @contextlib.contextmanager
    def pins(self) -> Iterator[Pins]:
        """Give a batch of pins for the duration of a pull or import."""
        batch = Pins(self._counts, self._lock)
        try:
            yield batch
        finally:
            batch.release()

    # blobs

    def blob(self, digest: str) -> Path:
        """Return the path of a blob, whether it exists or not."""
        algorithm, _, value = digest.partition(":")
        return self.root / "blobs" / algorithm / value

    def has(self, descriptor: Descriptor) -> bool:
        """Tell whether the blob is here, in full size. (Its digest was verified when it was
        written.)
        """
        try:
            return self.blob(descriptor.digest).stat().st_size == descriptor.size
        except FileNotFoundError:
            return False

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        """Return a small blob. Raises ImageError (bad_image) when it is gone or larger than
        `limit`.
        """
        if descriptor.size > limit:
            raise bad_image(f"{descriptor.digest} is larger than {limit} bytes")
        try:
            return self.blob(descriptor.digest).read_bytes()
        except FileNotFoundError as cause:
            raise bad_image(f"the store lacks the blob {descriptor.digest}") from cause

    def add_bytes(self, body: bytes, media_type: str, pins: Pins) -> Descriptor:
        """Store a small blob and return its descriptor."""
        found = Descriptor(media_type, "sha256:" + hashlib.sha256(body).hexdigest(), len(body))
        pins.add(found.digest)
        if not self.has(found):
            write_atomic(self.blob(found.digest), body, staging=self.root / "tmp")
        return found

    def add_stream(
        self,
        source: IO[bytes],
        descriptor: Descriptor,
        pins: Pins,
        advance: Callable[[int], None] | None = None,
    ) -> None:
        """Store what `source` gives, which must be what `descriptor` says.

        `advance` is told the bytes as they come. Raises ImageError (bad_image for the wrong size,
        digest_mismatch) and leaves nothing.
        """
        pins.add(descriptor.digest)
        if self.has(descriptor):
            return
        digest, left = hashlib.new(descriptor.digest.partition(":")[0]), descriptor.size
        with self.scratch() as path:
            with open(path, "wb") as out:
                while chunk := source.read(min(CHUNK, left + 1)):
                    left -= len(chunk)
                    if left < 0:
                        break
                    digest.update(chunk)
                    out.write(chunk)
                    if advance:
                        advance(len(chunk))
                out.flush()
                os.fsync(out.fileno())
            if left:
                raise bad_image(f"{descriptor.digest} is not {descriptor.size} bytes long")
            check_digest(descriptor.digest, digest.hexdigest())
            self.adopt(path, descriptor)

    def add_body(self, body: bytes, descriptor: Descriptor, pins: Pins) -> None:
        """Store a small blob whose descriptor is known. Raises ImageError (bad_image,
        digest_mismatch).
        """
        self.add_stream(io.BytesIO(body), descriptor, pins)

    def add_checked(
        self, path: Path, descriptor: Descriptor, pins: Pins, advance: Callable[[int], None]
    ) -> None:
        """Move a file into the store that should be what `descriptor` says.

        Raises ImageError (bad_image for the wrong size, digest_mismatch).
        """
        pins.add(descriptor.digest)
        if path.stat().st_size != descriptor.size:
            raise bad_image(f"{descriptor.digest} is not {descriptor.size} bytes long")
        check_digest(descriptor.digest, file_digest(path, descriptor.digest, advance))
        self.adopt(path, descriptor)

    def pinned(self, digest: str) -> bool:
        """Tell whether a running batch needs this digest."""
        with self._lock:
            return self._counts[digest] > 0

    def add_file(self, path: Path, media_type: str, pins: Pins) -> Descriptor:
        """Move a file of the store's own scratch space into the store and return its descriptor."""
        with open(path, "rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
            os.fsync(source.fileno())
        found = Descriptor(media_type, f"sha256:{digest}", path.stat().st_size)
        pins.add(found.digest)
        self.adopt(path, found)
        return found

    def adopt(self, path: Path, descriptor: Descriptor) -> None:
        """Move a verified file of the same file system into its place. The caller has pinned it."""
        target = self.blob(descriptor.digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.chmod(path, 0o644)
        os.replace(path, target)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a path for a temporary file of the store; what is there at the end is removed."""
        fd, name = tempfile.mkstemp(dir=self.root / "tmp")
        os.close(fd)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    # the index

    def entries(self) -> list[Entry]:
        """Return all images of the index. Raises ImageError (bad_image) when it is damaged."""
        return [_entry(item) for item in self._read_index()]

    def tag(self, manifest: Descriptor, reference: str | None) -> None:
        """Let `reference` mean this manifest, and no other; None keeps it in the index without a
        name.
        """
        item = manifest.to_json()
        with self._locked():
            items = self._read_index()
            if reference is None:
                if any(i["digest"] == manifest.digest for i in items):
                    return
            else:
                item["annotations"] = {REF_NAME: reference}
                items = _untagged(items, reference)
                items = [i for i in items if i["digest"] != manifest.digest or _reference(i)]
            self._write_index([*items, item])

    def untag(self, reference: str) -> None:
        """Forget a reference; its image stays in the index, without a name if it was the last."""
        with self._locked():
            self._write_index(_untagged(self._read_index(), reference))

    def drop(self, digests: Sequence[str]) -> None:
        """Forget images altogether, with all their references."""
        with self._locked():
            gone = set(digests)
            self._write_index([i for i in self._read_index() if i["digest"] not in gone])

    def gc(self) -> list[Descriptor]:
        """Remove blobs that no image of the index and no running batch needs; return them."""
        removed = []
        # The index stays locked: a batch that began before cannot get its blobs referenced, and so
        # stays pinned.
        with self._locked():
            kept = {d for entry in self.entries() for d in self.reachable(entry.manifest)}
            for path in (self.root / "blobs").glob("*/*"):
                digest = f"{path.parent.name}:{path.name}"
                if digest in kept:
                    continue
                with self._lock:
                    if self._counts[digest] <= 0:
                        removed.append(Descriptor("", digest, path.stat().st_size))
                        path.unlink(missing_ok=True)
        return removed

    def reachable(self, manifest: Descriptor) -> list[str]:
        """Return the digests of an image's blobs: manifest, config, layers. A foreign index counts
        whole.
        """
        found = [manifest.digest]
        try:
            body = self.blob(manifest.digest).read_bytes()
        except FileNotFoundError:
            return found
        value = parse_object(body, manifest.digest)
        if isinstance(inner := value.get("manifests"), list):
            for item in inner:
                found += self.reachable(parse_descriptor(item, manifest.digest))
        elif isinstance(value.get("layers"), list):
            parsed = parse_manifest(body, manifest.digest)
            found += [parsed.config.digest, *(layer.digest for layer in parsed.layers)]
        return found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.root / "index.lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read_index(self) -> list[dict[str, Any]]:
        path = self.root / "index.json"
        if path.stat().st_size > MANIFEST_LIMIT:
            raise bad_image(f"{path} is larger than {MANIFEST_LIMIT} bytes")
        items = parse_object(path.read_bytes(), str(path)).get("manifests") or []
        if not isinstance(items, list):
            raise bad_image(f"{path} has no list of manifests")
        for item in items:
            parse_descriptor(item, str(path))
        return items

    def _write_index(self, items: Sequence[dict[str, Any]]) -> None:
        body = json.dumps({"schemaVersion": 2, "manifests": list(items)}, indent=1).encode()
        write_atomic(self.root / "index.json", body, staging=self.root / "tmp")


def write_atomic(path: Path, body: bytes, *, staging: Path | None = None) -> None:
    """Write a file so that a reader, also after a crash, sees all of it or nothing."""
    fd, name = tempfile.mkstemp(dir=staging or path.parent, prefix=".new-")
    try:
        with os.fdopen(fd, "wb") as out:
            out.write(body)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(name, 0o644)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def file_digest(path: Path, digest: str, advance: Callable[[int], None]) -> str:
    """Return the hex digest of a file, by the algorithm of `digest`; what was read is safe on the
    disk then.
    """
    hasher = hashlib.new(digest.partition(":")[0])
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            advance(len(chunk))
        os.fsync(file.fileno())
    return hasher.hexdigest()


def check_digest(wanted: str, got: str) -> None:
    """Raise ImageError (digest_mismatch) unless the hex digest `got` is that of the digest
    `wanted`.
    """
    if wanted.partition(":")[2] != got:
        raise error("digest_mismatch", f"the content of {wanted} has the digest {got}")


def _untagged(items: Sequence[dict[str, Any]], reference: str) -> list[dict[str, Any]]:
    """Return the index without a reference; an image that loses its last one stays, nameless."""
    kept = [item for item in items if _reference(item) != reference]
    named = {item["digest"] for item in kept}
    for item in items:
        if item["digest"] not in named:
            named.add(item["digest"])
            kept.append({key: item[key] for key in item if key != "annotations"})
    return kept


def _entry(item: dict[str, Any]) -> Entry:
    found = parse_descriptor(item, "index.json")
    manifest = Descriptor(found.media_type or OCI_MANIFEST, found.digest, found.size)
    return Entry(manifest, _reference(item))


def _reference(item: dict[str, Any]) -> str | None:
    annotations = item.get("annotations")
    name = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
    return name if isinstance(name, str) else None
