"""The stores as the API offers them: what is in use is known, what happens is told."""

from collections.abc import Sequence
from typing import Any

from hutch.content import KernelInfo
from hutch.images.base import no_report
from hutch.models import Removed
from tests.unit.service.world import IMAGE_ID, World, spec

KERNEL = KernelInfo("tiny", "6.1", "host", 1, [], active=True)


async def test_what_sandboxes_use_is_kept(world: World) -> None:
    asked: list[Any] = []

    async def remove(name: str, *, used: Sequence[str] = (), force: bool = False) -> Removed:
        asked.append((name, list(used), force))
        return Removed([name], 5)

    async def prune(*, used: Sequence[str] = (), everything: bool = False) -> Removed:
        asked.append(("prune", list(used), everything))
        return Removed([], 0)

    world.images.remove, world.images.prune = remove, prune

    async def remove_kernel(name: str, *, used: Sequence[str] = ()) -> Removed:
        asked.append((name, list(used)))
        return Removed([name])

    world.kernels.remove = remove_kernel
    async with world.service() as service:
        info = await service.sandboxes.create(spec(kernel="tiny"), no_report)
        assert (await service.images.remove("x", force=True)).bytes == 5
        await service.images.prune(everything=True)
        await service.kernels.remove("other")
        await service.sandboxes.remove(info.id)
        await service.images.remove("x")
    assert asked == [
        ("x", [IMAGE_ID], True),
        ("prune", [IMAGE_ID], True),
        ("other", ["tiny"]),
        ("x", [], False),
    ]


async def test_what_happens_is_told(world: World) -> None:
    async def use(name: str) -> KernelInfo:
        return KERNEL

    world.kernels.use = use
    async with world.service() as service:
        await service.kernels.use("tiny")
        (event,) = [event async for event in service.system.events()]
    assert (event.kind, event.subject) == ("kernel.used", "tiny")
