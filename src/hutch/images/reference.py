"""Image references, parsed as container tools parse them: registry, repository, tag and digest.

Pure: it knows nothing of stores or registries. The bare names of `BUILTIN` (no registry, no tag)
mean the images that Hutch makes by itself; `docker.io/library/busybox` and `busybox:latest` mean
the registry's.
"""

import re
from dataclasses import dataclass

from hutch.errors import HutchError, error

BUILTIN = ("busybox", "debian")
DOCKER_HUB = "docker.io"

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:.]+\])(?::([0-9]{{1,5}}))?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_ID = re.compile(r"(?:sha256:)?[0-9a-f]{64}")
_NAME_LIMIT = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """What names an image. `registry` is empty for a built-in; else one of `tag` and `digest` is
    set.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def builtin(self) -> bool:
        """Tell whether Hutch makes this image by itself."""
        return not self.registry

    @property
    def name(self) -> str:
        """The registry and repository, or the built-in's name."""
        return self.repository if self.builtin else f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        """Return the full reference, which parses to an equal one."""
        if self.builtin:
            return self.repository
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"


def parse(text: str, default_registry: str = DOCKER_HUB) -> Reference:
    """Return the reference that `text` stands for, with what it leaves out filled in.

    A tag beside a digest is dropped, since the digest says all. Raises InvalidInput
    (bad_reference).
    """
    if text in BUILTIN:
        return Reference("", text)
    if _ID.fullmatch(text):
        raise _bad(text, "it is the id of an image")
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _bad(text, "what follows the @ is no sha256 or sha512 digest")
    first, slash, remainder = rest.partition("/")
    if slash and _is_registry(first):
        registry, rest = first, remainder
    else:
        registry = default_registry
    repository, colon, tag = rest.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _bad(text, f"{tag!r} is no tag")
    port = _REGISTRY.fullmatch(registry)
    if port is None or int(port[1] or 0) > 65535:
        raise _bad(text, f"{registry!r} is no registry")
    if registry == "index.docker.io":
        registry = DOCKER_HUB
    if registry == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    if not _NAME.fullmatch(repository):
        lower = _NAME.fullmatch(repository.lower())
        raise _bad(text, "its name must be in lower case" if lower else "its name is malformed")
    if len(registry) + 1 + len(repository) > _NAME_LIMIT:
        raise _bad(text, f"its name is longer than {_NAME_LIMIT} characters")
    if digest:
        return Reference(registry, repository, digest=digest)
    return Reference(registry, repository, tag=tag or "latest")


def is_digest(text: str) -> bool:
    """Tell whether `text` is a well-formed digest of a kind that the store can verify."""
    return _DIGEST.fullmatch(text) is not None


def _is_registry(component: str) -> bool:
    """Tell a registry from the first part of a repository: by a dot, a port, capitals, or being
    localhost.
    """
    return (
        "." in component
        or ":" in component
        or component == "localhost"
        or component != component.lower()
    )


def _bad(text: str, why: str) -> HutchError:
    return error(
        "bad_reference",
        f"{text!r} is not an image reference: {why}",
        hint="write it like debian, alpine:3.20 or registry.example:5000/team/app@sha256:…",
    )
