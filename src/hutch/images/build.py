"""Dockerfiles, built by buildah where it is installed, without a daemon and without root where the
host allows.

buildah works in a storage of its own below the store; base images that the store has are handed to
it, so that `FROM` finds what `hutch image ls` shows. The result is an OCI layout, which `archive`
imports like any other.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hutch import process
from hutch.errors import error
from hutch.images.base import Report
from hutch.images.layout import Layout, write_atomic
from hutch.images.reference import Reference
from hutch.models import Progress
from hutch.settings import Settings
from hutch.tasks import in_thread

_BUILD_TIMEOUT = 3600.0
_STEP_TIMEOUT = 600.0
_FROM = re.compile(
    r"^\s*FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?\s*$", re.IGNORECASE | re.MULTILINE
)
_ARG = re.compile(r"^\s*ARG\s+([A-Za-z_][A-Za-z0-9_]*)(?:=(\S*))?\s*$", re.IGNORECASE)
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|([A-Za-z_][A-Za-z0-9_]*))")
_DOCKERFILE_LIMIT = 1 << 20
_POLICY = {"default": [{"type": "insecureAcceptAnything"}]}


@dataclass(frozen=True, slots=True)
class Base:
    """A base image that the store has: what the Dockerfile calls it, and what the layout does."""

    text: str
    reference: Reference
    stored: str


def base_names(dockerfile: str, args: Mapping[str, str]) -> list[str]:
    """Return the images that a Dockerfile builds on, its global ARGs filled in; stages and
    `scratch` left out.
    """
    values: dict[str, str] = {}
    head = re.split(r"^\s*FROM\s", dockerfile, maxsplit=1, flags=re.IGNORECASE | re.MULTILINE)[0]
    for line in head.splitlines():
        if match := _ARG.match(line):
            values[match[1]] = args.get(match[1], (match[2] or "").strip("\"'"))
    stages: set[str] = {"scratch"}
    names: list[str] = []
    for match in _FROM.finditer(dockerfile):
        name = _VARIABLE.sub(lambda m: values.get(m[1] or m[3]) or m[2] or "", match[1])
        if name and name.lower() not in stages and name not in names:
            names.append(name)
        if match[2]:
            stages.add(match[2].lower())
    return names


def read_dockerfile(context: Path, dockerfile: Path | None) -> tuple[Path, str]:
    """Return the Dockerfile's path and text. Raises InvalidInput (bad_path)."""
    if not context.is_dir():
        raise error("bad_path", f"the build context {context} is no directory")
    candidates = [dockerfile] if dockerfile else [context / "Containerfile", context / "Dockerfile"]
    for path in candidates:
        if path.is_file():
            if path.stat().st_size > _DOCKERFILE_LIMIT:
                raise error("bad_path", f"{path} is too large for a Dockerfile")
            return path, path.read_text("utf-8", "replace")
    raise error("bad_path", f"there is no {candidates[-1]}", hint="name the Dockerfile with -f")


class Builder:
    """Runs buildah with storage below `directory`."""

    def __init__(self, directory: Path, layout: Layout, settings: Settings) -> None:
        self._directory = directory
        self._layout = layout
        self._settings = settings

    async def build(
        self,
        context: Path,
        dockerfile: Path,
        args: Mapping[str, str],
        bases: Sequence[Base],
        target: Path,
        report: Report,
    ) -> None:
        """Build a Dockerfile into the OCI layout directory `target`.

        Raises Missing (tool_missing), ImageError (build_failed, with the last lines of the build's
        output).
        """
        program = process.require("buildah", "buildah")
        await in_thread(self._prepare)
        common = [
            program, "--root", str(self._directory / "storage"),
            "--runroot", str(self._directory / "run"), "--storage-driver", "vfs",
        ]  # fmt: skip
        for base in bases:
            report(Progress("build", base.text, message="preparing the base image"))
            await self._import(common, base)
        report(Progress("build", str(context), message="running the Dockerfile"))
        identity = target.parent / "image-id"
        built = await self._run(
            [
                *common, "build", "--isolation", "chroot", "--format", "oci",
                "--pull=false", "--layers", "--iidfile", str(identity), "--file", str(dockerfile),
                *self._policy(), *[f"--build-arg={key}={value}" for key, value in args.items()],
                str(context),
            ],
            _BUILD_TIMEOUT,
        )  # fmt: skip
        lines = (built.stdout + built.stderr).decode(errors="replace").strip().splitlines()
        report(Progress("build", str(context), message="\n".join(lines[-20:])))
        image = identity.read_text("utf-8").strip()
        await self._run(
            [*common, "push", *self._policy(), image, f"oci:{target.name}:built"],
            _STEP_TIMEOUT,
            target.parent,
        )

    def clear(self) -> int:
        """Remove buildah's storage and cache; return the bytes freed. Not while a build runs."""
        freed = sum(
            path.lstat().st_blocks * 512 for path in self._directory.rglob("*") if path.is_file()
        )
        shutil.rmtree(self._directory, ignore_errors=True)
        return freed

    async def _import(self, common: Sequence[str], base: Base) -> None:
        # By a relative path: buildah names what it pulls after the path that it is told, and
        # refuses capital letters and colons in it.
        root = self._layout.root
        source = f"oci:{root.name}:{base.stored}"
        pulled = await self._run(
            [*common, "pull", "--quiet", *self._policy(), source], _STEP_TIMEOUT, root.parent
        )
        identity = pulled.stdout.decode().strip().splitlines()[-1]
        name = f"localhost/{base.text}:latest" if base.reference.builtin else str(base.reference)
        await self._run([*common, "tag", identity, name], _STEP_TIMEOUT)

    async def _run(
        self, argv: Sequence[str], timeout: float, cwd: Path | None = None
    ) -> process.Finished:
        env = {
            "CONTAINERS_REGISTRIES_CONF": str(self._directory / "registries.conf"),
            "BUILDAH_FORMAT": "oci",
        }
        return await process.run(argv, timeout=timeout, env=env, cwd=cwd, code="build_failed")

    def _policy(self) -> list[str]:
        return ["--signature-policy", str(self._directory / "policy.json")]

    def _prepare(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        write_atomic(self._directory / "policy.json", json.dumps(_POLICY).encode())
        plain = "".join(
            f'[[registry]]\nlocation = "{name}"\ninsecure = true\n'
            for name in self._settings.plain_http_registries
        )
        # Local names first: an image of the store must not be fetched from elsewhere.
        text = f'unqualified-search-registries = ["{self._settings.default_registry}"]\n{plain}'
        write_atomic(self._directory / "registries.conf", text.encode())
