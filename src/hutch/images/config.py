"""OCI manifests and image configs: read within bounds, made when Hutch builds an image, turned into
`ImageConfig`.

Pure: bytes in, values out. What it reads comes from strangers, so every type is checked.
"""

import json
import platform
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hutch.content import ImageConfig
from hutch.errors import HutchError, error
from hutch.images.reference import is_digest
from hutch.models import timestamp

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX_TYPES = (OCI_INDEX, DOCKER_LIST)
MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)

MANIFEST_LIMIT = 4 << 20
CONFIG_LIMIT = 8 << 20
_LAYERS_LIMIT = 1024
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A pointer to content: its media type, digest and size in bytes."""

    media_type: str
    digest: str
    size: int

    def to_json(self) -> dict[str, Any]:
        """Return the descriptor as manifests hold it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image of one platform: its config and its layers, the lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Config:
    """An image config: the part that runs, and what says how the layers go together."""

    run: ImageConfig
    architecture: str
    os: str
    created_at: str | None
    diff_ids: tuple[str, ...]


def host_architecture() -> str:
    """Return this machine's architecture by the name that OCI gives it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def parse_object(body: bytes, what: str) -> dict[str, Any]:
    """Return a JSON object. Raises ImageError (bad_image), naming `what`."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as cause:
        raise bad_image(f"{what} is not JSON: {cause}") from cause
    if not isinstance(value, dict):
        raise bad_image(f"{what} is not a JSON object")
    return value


def parse_descriptor(value: Any, what: str) -> Descriptor:
    """Return a checked descriptor. Raises ImageError (bad_image)."""
    if isinstance(value, dict):
        kind, digest, size = value.get("mediaType", ""), value.get("digest"), value.get("size")
        sound = isinstance(digest, str) and is_digest(digest) and isinstance(kind, str)
        if sound and type(size) is int and size >= 0:
            return Descriptor(kind, str(digest), size)
    raise bad_image(f"{what} has a malformed descriptor")


def parse_manifest(body: bytes, what: str) -> Manifest:
    """Return the manifest of one image. Raises ImageError (bad_image)."""
    value = parse_object(body, what)
    layers = value.get("layers")
    if not isinstance(layers, list) or len(layers) > _LAYERS_LIMIT:
        raise bad_image(f"{what} has no list of at most {_LAYERS_LIMIT} layers")
    return Manifest(
        parse_descriptor(value.get("config"), what),
        tuple(parse_descriptor(layer, what) for layer in layers),
    )


def choose_platform(body: bytes, what: str, architecture: str) -> Descriptor:
    """Return the manifest (or inner index) of an index that fits Linux on `architecture`.

    Of several variants the plainest is taken, since it runs everywhere. An entry that names no
    platform fits when it is the only one. Raises ImageError (no_platform, bad_image).
    """
    value = parse_object(body, what)
    entries = value.get("manifests")
    if not isinstance(entries, list):
        raise bad_image(f"{what} has no list of manifests")
    offered: list[str] = []
    fitting: list[tuple[str, Descriptor]] = []
    for entry in entries:
        found = parse_descriptor(entry, what)
        if found.media_type not in (*MANIFEST_TYPES, *INDEX_TYPES):
            continue
        named = entry.get("platform")
        if not isinstance(named, dict):
            if len(entries) == 1:
                return found
            continue
        name = f"{named.get('os')}/{named.get('architecture')}"
        offered.append(name)
        if name == f"linux/{architecture}":
            fitting.append((str(named.get("variant") or ""), found))
    if not fitting:
        raise no_platform(what, architecture, sorted({o for o in offered if "unknown" not in o}))
    return min(fitting, key=lambda pair: pair[0])[1]


def parse_config(body: bytes, what: str) -> Config:
    """Return an image config, wrong types refused. Raises ImageError (bad_image)."""
    value = parse_object(body, what)
    rootfs = value.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or not all(
        isinstance(item, str) and is_digest(item) for item in diff_ids
    ):
        raise bad_image(f"{what} has no list of layer digests (rootfs.diff_ids)")
    run = value.get("config")
    if run is None:
        run = {}
    if not isinstance(run, dict):
        raise bad_image(f"{what} has a malformed `config`")
    created = value.get("created")
    return Config(
        _run_config(run, what),
        architecture=_text(value, "architecture", what),
        os=_text(value, "os", what) or "linux",
        created_at=created if isinstance(created, str) else None,
        diff_ids=tuple(diff_ids),
    )


def check_platform(config: Config, what: str) -> None:
    """Raise ImageError (no_platform) unless the image is made for Linux on this machine."""
    host = host_architecture()
    if config.os != "linux" or config.architecture not in ("", host):
        raise no_platform(what, host, [f"{config.os}/{config.architecture}"])


def make_config(
    run: ImageConfig, diff_ids: Sequence[str], *, created_by: str, created: float
) -> bytes:
    """Return the config of an image that Hutch makes, history included (buildah needs it).

    `created` is in Unix seconds; the same arguments give the same bytes.
    """
    now = timestamp(created)
    value = {
        "created": now,
        "architecture": host_architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": run.entrypoint or None,
            "Cmd": run.command,
            "Env": [f"{name}={text}" for name, text in run.env.items()],
            "WorkingDir": run.workdir,
            "Labels": run.labels or None,
        },
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": [{"created": now, "created_by": created_by} for _ in diff_ids],
    }
    return json.dumps(value, indent=1).encode()


def make_manifest(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """Return an OCI manifest."""
    value = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config.to_json(),
        "layers": [layer.to_json() for layer in layers],
    }
    return json.dumps(value, indent=1).encode()


def bad_image(message: str) -> HutchError:
    """Return the error for an image that is malformed, truncated or hostile."""
    return error("bad_image", message)


def no_platform(what: str, architecture: str, offered: Sequence[str]) -> HutchError:
    """Return the error for an image that this machine cannot run."""
    return error(
        "no_platform",
        f"{what} has no variant for linux/{architecture}; it has {', '.join(offered) or 'none'}",
        hint="choose an image or tag that is built for this machine",
    )


def _run_config(run: Mapping[str, Any], what: str) -> ImageConfig:
    environment = {}
    for item in _texts(run, "Env", what):
        name, _, value = item.partition("=")
        environment[name] = value
    labels = run.get("Labels")
    if labels is None:
        labels = {}
    if not isinstance(labels, dict):
        raise bad_image(f"{what} has malformed `Labels`")
    return ImageConfig(
        entrypoint=_texts(run, "Entrypoint", what),
        command=_texts(run, "Cmd", what),
        env=environment,
        # A relative one is taken from the root, as container tools do.
        workdir=posixpath.join("/", _text(run, "WorkingDir", what)),
        user=_text(run, "User", what),
        stop_signal=_text(run, "StopSignal", what) or "SIGTERM",
        volumes=_keys(run, "Volumes", what),
        exposed_ports=_keys(run, "ExposedPorts", what),
        labels={str(key): str(value) for key, value in labels.items()},
    )


def _text(table: Mapping[str, Any], key: str, what: str) -> str:
    value = table.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or "\0" in value:
        raise bad_image(f"{what} has a malformed `{key}`")
    return value


def _texts(table: Mapping[str, Any], key: str, what: str) -> list[str]:
    value = table.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(
        isinstance(item, str) and "\0" not in item for item in value
    ):
        raise bad_image(f"{what} has a malformed `{key}`")
    return list(value)


def _keys(table: Mapping[str, Any], key: str, what: str) -> list[str]:
    value = table.get(key)
    if value is None:
        return []
    if not isinstance(value, dict):
        raise bad_image(f"{what} has malformed `{key}`")
    return sorted(str(item) for item in value)
