"""What is told of content: images and kernels.

Values that cross the API, as those of `hutch.models`, and as light: no imports but the standard
library.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The part of an OCI image config that Hutch honours or records."""

    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = ""
    stop_signal: str = "SIGTERM"
    volumes: list[str] = field(default_factory=list)
    exposed_ports: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image of the local store. `id` is its manifest's digest; `size` is that of its blobs."""

    id: str
    references: list[str]
    architecture: str
    created_at: str | None
    size: int
    layers: list[str]
    config: ImageConfig
    rootfs_size: int | None = None
    rootfs_type: str | None = None


@dataclass(frozen=True, slots=True)
class KernelInfo:
    """A kernel of the store. `source` says where it came from: package, host, or a path."""

    name: str
    version: str
    source: str
    size: int
    modules: list[str]
    active: bool
