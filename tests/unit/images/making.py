"""Images made for tests, by means that are not the ones under test: the standard library's tarfile,
plain JSON.
"""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from hutch.images.base import Report
from hutch.models import Progress
from hutch.settings import Settings, load_settings

TYPES = {
    "file": tarfile.REGTYPE,
    "link": tarfile.LNKTYPE,
    "symlink": tarfile.SYMTYPE,
    "char": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
    "dir": tarfile.DIRTYPE,
    "fifo": tarfile.FIFOTYPE,
}


def entry(
    name: str, kind: str = "file", data: bytes = b"", **attributes: Any
) -> tuple[tarfile.TarInfo, bytes]:
    """An archive entry; attributes are those of TarInfo, and `xattrs` (bytes values)."""
    info = tarfile.TarInfo(name)
    info.type = TYPES[kind]
    info.mode = 0o755 if kind == "dir" else 0o644
    info.size = len(data)
    for key, value in attributes.items():
        if key == "xattrs":
            info.pax_headers = {
                f"SCHILY.xattr.{name}": text.decode("utf-8", "surrogateescape")
                for name, text in value.items()
            }
        else:
            setattr(info, key, value)
    return info, data


def layer(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """The tar archive of a layer."""
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape"
    ) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def sha256(body: bytes) -> str:
    return "sha256:" + hashlib.sha256(body).hexdigest()


def compress(body: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(body, 1, mtime=0)
    if how == "zstd":
        return zstandard.ZstdCompressor().compress(body)
    return body


@dataclass
class MadeImage:
    """An image as blobs by digest. Changing a blob or its descriptor makes it a broken one."""

    layers: Sequence[bytes]
    how: str = "gzip"
    run: dict[str, Any] = field(default_factory=lambda: {"Cmd": ["sh"], "Env": ["PATH=/bin"]})
    architecture: str = "amd64"
    diff_ids: list[str] | None = None

    def __post_init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        config = {
            "architecture": self.architecture,
            "os": "linux",
            "config": self.run,
            "rootfs": {
                "type": "layers",
                "diff_ids": self.diff_ids or [sha256(x) for x in self.layers],
            },
            "history": [{"created_by": "test"} for _ in self.layers],
        }
        suffix = f"+{self.how}" if self.how else ""
        kind = f"application/vnd.oci.image.layer.v1.tar{suffix}"
        self.manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self.add(
                json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"
            ),
            "layers": [self.add(compress(body, self.how), kind) for body in self.layers],
        }
        self.descriptor = self.add(
            json.dumps(self.manifest).encode(), str(self.manifest["mediaType"])
        )

    def add(self, body: bytes, kind: str) -> dict[str, Any]:
        self.blobs[sha256(body)] = body
        return {"mediaType": kind, "digest": sha256(body), "size": len(body)}

    @property
    def id(self) -> str:
        return str(self.descriptor["digest"])

    def index(self) -> dict[str, Any]:
        """The body of an index with this image for this machine, beside others."""
        other = {
            "mediaType": self.descriptor["mediaType"],
            "digest": "sha256:" + "0" * 64,
            "size": 7,
        }
        return {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [
                {**other, "platform": {"os": "linux", "architecture": "s390x"}},
                {**self.descriptor, "platform": {"os": "linux", "architecture": "amd64"}},
                {**other, "platform": {"os": "unknown", "architecture": "unknown"}},
            ],
        }

    def write_layout(self, path: Path, reference: str | None = "example.org/made:1") -> Path:
        """Write an OCI layout directory."""
        (path / "blobs/sha256").mkdir(parents=True)
        for digest, body in self.blobs.items():
            (path / "blobs" / digest.replace(":", "/")).write_bytes(body)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        item = dict(self.descriptor)
        if reference:
            item["annotations"] = {"org.opencontainers.image.ref.name": reference}
        (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [item]}))
        return path

    def write_docker_archive(self, path: Path, tags: Sequence[str] = ("made:1",)) -> Path:
        """Write what `docker save` of old wrote: uncompressed layers, the second of two equal ones
        a link.
        """
        config = self.blobs[self.manifest["config"]["digest"]]  # type: ignore[index]
        entries = [entry("config.json", data=config)]
        names: list[str] = []
        for number, body in enumerate(self.layers):
            name = f"{number}/layer.tar"
            if body in self.layers[:number]:
                first = list(self.layers).index(body)
                entries.append(entry(name, "symlink", linkname=f"../{first}/layer.tar"))
            else:
                entries.append(entry(name, data=body))
            names.append(name)
        listed = [{"Config": "config.json", "RepoTags": list(tags), "Layers": names}]
        entries.append(entry("manifest.json", data=json.dumps(listed).encode()))
        path.write_bytes(layer(*entries))
        return path


def simple_image(text: bytes = b"hello", **changes: Any) -> MadeImage:
    """A small image with one file."""
    return MadeImage([layer(entry("etc", "dir"), entry("etc/hello", data=text))], **changes)


def settings_with(**changes: Any) -> Settings:
    return load_settings(changes)


class Reports(list[Progress]):
    """A report function that remembers."""

    def __call__(self, progress: Progress) -> None:
        self.append(progress)


_: Report = Reports()
