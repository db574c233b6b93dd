"""Pools in memory, for the API's tests and the command line's."""

from collections.abc import Sequence
from typing import Any

from hutch.errors import error
from hutch.models import ErrorInfo, PoolInfo, Progress, Removed, SandboxSpec


class FakePools:
    """Pools that are full at once."""

    def __init__(self) -> None:
        self.all: list[PoolInfo] = []
        self._made = 0

    async def list(self) -> Sequence[PoolInfo]:
        return self.all

    async def warm(self, spec: SandboxSpec, size: int, report: Any, *, wait: bool) -> PoolInfo:
        if size < 1:
            raise error("bad_size", "no such size")
        report(Progress("warm", spec.image, message=f"{size} of {size} ready"))
        self._made += 1
        info = PoolInfo(
            id=f"po_{self._made}",
            image=spec.image,
            image_id="sha256:1",
            cpus=spec.cpus or 1,
            memory=spec.memory or 512 << 20,
            size=size,
            ready=size if wait else 0,
            filling=0 if wait else 1,
            claimed=0,
            memory_bytes=40 << 20,
            error=None if wait else ErrorInfo("no_capacity", "told to", None),
        )
        self.all.append(info)
        return info

    async def drain(self, image: str | None = None) -> Removed:
        found = [info for info in self.all if image in (None, info.image)]
        if image is not None and not found:
            raise error("pool_not_found", f"no pool of {image}")
        self.all = [info for info in self.all if info not in found]
        return Removed([info.id for info in found])
