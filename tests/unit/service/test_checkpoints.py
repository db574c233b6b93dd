"""Checkpoints: numbered back from now, capped, gone with their sandbox and with what was undone."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.engine.base import Frozen
from hutch.errors import error
from hutch.images.base import no_report
from hutch.models import ExecSpec, SandboxInfo, SandboxState
from hutch.service import capture, layers, snapshots, thinning, undo
from hutch.service.checkpoints import left_behind, numbered
from hutch.service.host import HostService
from hutch.settings import Settings
from tests.unit.service.world import World, expect, output, spec
from tests.waiting import until


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, checkpoint_keep=3)


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


async def run(service: HostService, **fields: Any) -> SandboxInfo:
    info = await service.sandboxes.create(spec(idle=True, **fields), no_report)
    return await service.sandboxes.start(info.id)


async def listed(service: HostService, ref: str = "web") -> list[tuple[int | None, str]]:
    return [(each.number, each.snapshot.message) for each in await service.checkpoints.list(ref)]


async def take(service: HostService, *messages: str) -> list[str]:
    return [(await service.checkpoints.create("web", message=each)).id for each in messages]


async def test_they_are_numbered_and_capped(world: World, service: HostService) -> None:
    info = await run(service, name="web")
    first = await service.checkpoints.create("web", message="a")
    assert (first.checkpoint, first.name, first.sandbox_id) == (True, "web-cp-1", info.id)
    _, b, *_ = await take(service, "b", "c", "d")
    assert await listed(service) == [(1, "d"), (2, "c"), (3, "b")]
    await expect("snapshot_not_found", service.snapshots.get(first.id))
    (newest, *_) = await service.checkpoints.list("web")
    assert newest.snapshot.parent == b
    assert newest.snapshot.disk_bytes > 0
    # Other snapshots are counted apart, and collected apart.
    await service.snapshots.create("web", name="kept")
    assert [each.name for each in await service.snapshots.list("web")] == ["kept"]
    assert len(await service.snapshots.list("web", checkpoints=True)) == 4
    assert (await service.snapshots.collect(0)).bytes > 0
    assert len(await listed(service)) == 3
    restored = await service.snapshots.restore(b, "copy")
    assert restored.state is SandboxState.RUNNING
    assert await listed(service, "copy") == []


async def test_each_is_kept_over_the_one_before(farm: World) -> None:
    async with farm.service() as service:
        info = await run(service, name="web")
        assert info.template is not None
        places, over = service._parts.places, farm.engine.kept_over
        template = places.template(info.template)
        over.clear()  # what templates are kept over
        a, b = await take(service, "a", "b")
        assert [[each.directory for each in others] for others in over] == [
            [template],
            [places.snapshot(a), template],
        ]
        await service.snapshots.create("web", name="whole")
        assert over.pop() == []
        await service.snapshots.create("web", name="disk", disk_only=True)
        await take(service, "c")
        assert [each.directory for each in over[-1]] == [template]
        # What it was put back to is what it is like.
        await service.checkpoints.undo("web", to=a)
        await take(service, "d")
        assert [each.directory for each in over[-1]] == [places.snapshot(a), template]
        assert b not in service.snapshots.shelf


async def test_one_of_a_sandbox_without_a_template(world: World, service: HostService) -> None:
    await run(service, name="web")
    await take(service, "a")
    assert world.engine.kept_over == [[]]


async def test_an_exec_takes_one_before(service: HostService) -> None:
    await run(service, name="web")
    session = await service.execs.start("web", ExecSpec(["echo", "hi"], checkpoint=True))
    assert (await output(session))[0] == b"hi\n"
    await session.close(detach=False)
    await service.execs.spawn("web", ExecSpec(["true"], detached=True, checkpoint=True))
    commands = [each.snapshot.command for each in await service.checkpoints.list("web")]
    assert commands == [["true"], ["echo", "hi"]]


async def test_without_its_checkpoint_a_program_does_not_start(
    world: World, service: HostService
) -> None:
    await run(service, name="web")
    world.engine.fail_keep = error("disk_full", "told to")
    await expect("disk_full", service.execs.start("web", ExecSpec(["true"], checkpoint=True)))
    assert await service.execs.list("web") == []
    assert await listed(service) == []


async def test_what_was_undone_stays_until_the_next_one(service: HostService) -> None:
    await run(service, name="web")
    a, b, c = await take(service, "a", "b", "c")
    await service.checkpoints.undo("web", 2)
    assert await listed(service) == [(None, "c"), (1, "b"), (2, "a")]
    await service.checkpoints.undo("web", to=c)
    assert await listed(service) == [(1, "c"), (2, "b"), (3, "a")]
    await service.checkpoints.undo("web", to="web-cp-1")
    assert await listed(service) == [(None, "c"), (None, "b"), (1, "a")]
    await take(service, "d")
    assert await listed(service) == [(1, "d"), (2, "a")]
    await expect("checkpoint_not_found", service.checkpoints.undo("web", to=b))
    await expect("checkpoint_not_found", service.checkpoints.undo("web", 3))
    await expect("checkpoint_not_found", service.checkpoints.undo("web", 0))
    assert (await service.sandboxes.get("web")).undone_to == a


async def test_those_undone_stay_when_the_next_one_fails(
    world: World, service: HostService
) -> None:
    await run(service, name="web")
    await take(service, "a", "b")
    await service.checkpoints.undo("web", 2)
    world.engine.fail_capture = error("engine_failed", "told to")
    await expect("engine_failed", service.checkpoints.create("web"))
    assert await listed(service) == [(None, "b"), (1, "a")]


async def test_they_go_with_their_sandbox(world: World) -> None:
    async with world.service() as service:
        await run(service, name="web")
        (kept,) = await take(service, "a")
        await service.snapshots.create("web", name="other")
        await service.sandboxes.remove("web", force=True)
        names = [each.name for each in await service.snapshots.list(checkpoints=True)]
        assert names == ["other"]
        await expect("sandbox_not_found", service.checkpoints.create("web"))
        await expect("snapshot_not_found", service.snapshots.get(kept))


async def test_one_that_is_complete_after_its_sandbox_was_removed(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(service, name="web")
    await take(service, "a")
    really = service._parts.engine.keep

    async def late(frozen: Frozen, over: Sequence[Frozen], *, lasting: bool) -> None:
        await service.sandboxes.remove("web", force=True)
        await really(frozen, over, lasting=lasting)

    monkeypatch.setattr(service._parts.engine, "keep", late)
    await expect("sandbox_not_found", service.checkpoints.create("web"))
    assert await service.snapshots.list(checkpoints=True) == []
    assert not list((world.settings.home / "snapshots").iterdir())
    assert world.leftovers() == []


async def test_one_that_is_in_use_goes_with_its_last_user(
    world: World, service: HostService
) -> None:
    await run(service, name="web")
    one, other = await take(service, "a", "b")
    async with service.snapshots.opened(one):
        async with service.snapshots.opened(one), service.snapshots.opened(other):
            await service.sandboxes.remove("web", force=True)
        await until(lambda: set(service.snapshots.shelf) == {one})
    await until(lambda: not service.snapshots.shelf)
    await until(lambda: world.leftovers() == [])


async def test_those_of_sandboxes_that_are_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon ended between the removal of the sandbox and theirs."""
    async with world.service() as service:
        await run(service, name="web")
        await take(service, "a")

        async def fail(ref: str) -> None:
            raise error("internal", f"told to keep {ref}")

        monkeypatch.setattr(service.snapshots, "remove", fail)
        await service.sandboxes.remove("web", force=True)
        assert len(await service.snapshots.list(checkpoints=True)) == 1
    async with world.service() as service:
        assert await service.snapshots.list(checkpoints=True) == []
    assert world.leftovers() == []


async def test_a_clock_that_steps_back(
    service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is that in which they were made, whatever the time was said to be."""
    await run(service, name="web")
    days = iter(range(28, 0, -1))
    for module in (snapshots, undo):
        monkeypatch.setattr(
            module, "timestamp", lambda at=None: f"2026-01-{next(days):02}T00:00:00.000Z"
        )
    await take(service, "a", "b", "c")
    await service.checkpoints.undo("web", 2)
    assert await listed(service) == [(None, "c"), (1, "b"), (2, "a")]
    await take(service, "d")
    assert await listed(service) == [(1, "d"), (2, "b"), (3, "a")]
    assert (await service.sandboxes.get("web")).undone_at is not None


async def test_what_is_made_of_one_that_was_undone(service: HostService) -> None:
    await run(service, name="web")
    (a, _) = await take(service, "a", "b")
    await service.checkpoints.undo("web", 2)
    for name in ("fork", "restored"):
        if name == "fork":
            (copy,) = (await service.forks.fork("web", [name])).children
        else:
            copy = await service.snapshots.restore(a, name)
        assert (copy.undone_to, copy.undone_at, copy.undone) == (None, None, [])


def test_which_are_left_behind() -> None:
    known = ["a", "b", "c", "d"]
    assert left_behind([], known, "b") == ["c", "d"]
    assert left_behind(["c", "gone"], known, "d") == ["c"]
    assert left_behind(["c", "d"], known, "c") == ["d"]
    assert left_behind(["b", "c"], known, "a") == ["b", "c", "d"]


async def test_numbers_are_those_of_the_line_that_it_is_in(service: HostService) -> None:
    info = await run(service, name="web")
    a, b = await take(service, "a", "b")
    known = [each.snapshot for each in await service.checkpoints.list("web")][::-1]
    assert [each.number for each in numbered(replace(info, undone=[b]), known)] == [None, 1]
    assert [each.number for each in numbered(replace(info, undone=[a]), known)] == [1, None]
    assert [each.number for each in numbered(info, known)] == [1, 2]


class Joining:
    """What joins layers, which waits: `began` is how often it was asked, `go_on` lets it end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began = 0
        self.go_on = asyncio.Event()
        monkeypatch.setattr(layers, "CROWDED", 4)
        monkeypatch.setattr(layers, "RETIRED_SECONDS", -1.0)
        monkeypatch.setattr(layers, "flatten", self._flatten)

    async def _flatten(
        self, files: list[Path], template: object, base: Path, to: Path, behind: list[Path]
    ) -> None:
        self.began += 1
        await self.go_on.wait()
        to.write_bytes(b"joined")


def depth(service: HostService) -> int:
    layer = service._registry.find("web").row.layer
    assert layer is not None
    return len(service._lives.booter.layers.chain(layer))


async def test_nobody_waits_while_layers_are_joined(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    joining = Joining(monkeypatch)
    await run(service, name="web")
    await take(service, *"abcde")
    await until(lambda: joining.began == 1)
    await service.sandboxes.pause("web")
    await service.sandboxes.resume("web")
    await take(service, "f")
    assert (depth(service), joining.began) == (7, 1)
    joining.go_on.set()
    await until(lambda: depth(service) == 6)
    await until(lambda: not service._thinning.at_work)
    await service.sandboxes.remove("web", force=True)
    assert world.leftovers() == []


async def test_one_more_waits_when_there_is_no_room(
    service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    joining = Joining(monkeypatch)
    for module in (thinning, capture):
        monkeypatch.setattr(module, "LAYERS_MAX", 6)
    await run(service, name="web")
    await take(service, *"abcde")
    await until(lambda: joining.began == 1)
    taking = asyncio.ensure_future(take(service, "f"))
    await asyncio.sleep(0)
    assert not taking.done()
    joining.go_on.set()
    assert len(await taking) == 1
    assert depth(service) == 6


@pytest.mark.parametrize("how", ["removed", "closed"])
async def test_what_is_joined_for_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    joining = Joining(monkeypatch)
    async with world.service() as service:
        await run(service, name="web")
        await take(service, *"abcde")
        await until(lambda: joining.began == 1)
        if how == "removed":
            await service.sandboxes.remove("web", force=True)
            joining.go_on.set()
            await until(lambda: not service._thinning.at_work)
            assert world.leftovers() == []
    async with world.service() as service:
        if how == "closed":
            assert depth(service) == 6
            await service.sandboxes.remove("web", force=True)
        assert world.leftovers() == []
