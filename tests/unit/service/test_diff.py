"""Which moments are compared, how they are reached, and that nothing is left of that."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator

import pytest

from hutch.guest.base import Guest
from hutch.images.base import no_report
from hutch.models import ExecSpec
from hutch.reports import FileChange
from hutch.service import diff as module
from hutch.service.host import HostService
from hutch.service.trees import Tree
from tests.unit.service.world import World, expect, spec

CHANGED = FileChange("added", "/x", "file", 1, 0o644)


@pytest.fixture
async def service(world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HostService]:
    async def changed(before: Tree, after: Tree) -> tuple[list[FileChange], bool]:
        return [CHANGED], True

    monkeypatch.setattr(module, "changed_files", changed)
    async with world.service() as service:
        info = await service.sandboxes.create(spec(idle=True, name="web"), no_report)
        await service.sandboxes.start(info.id)
        yield service


async def test_the_last_checkpoint_and_now(world: World, service: HostService) -> None:
    await service.checkpoints.create("web")
    await service.execs.spawn("web", ExecSpec(["sleep", "1000"], detached=True))
    layers = world.layers()
    found = await service.diffs.diff("web")
    assert (found.before, found.after, found.files, found.complete) == (
        "web@1",
        "web",
        [CHANGED],
        True,
    )
    assert [(each.change, each.command) for each in found.processes] == [("added", "sleep 1000")]
    assert (len(world.engine.running()), world.layers()) == (1, layers)
    assert not world.agent(await service.sandboxes.get("web")).frozen


async def test_moments_of_the_past(world: World, service: HostService) -> None:
    one = await service.checkpoints.create("web")
    await service.checkpoints.create("web")
    await service.snapshots.create("web", name="kept")
    for before, after in (("web@2", "web@1"), (one.id, "kept"), ("kept", "web")):
        found = await service.diffs.diff(before, after)
        assert (found.before, found.after) == (before, after)
    assert len(world.engine.running()) == 1
    await service.sandboxes.pause("web")
    await service.diffs.diff("web")


async def test_what_cannot_be_compared(world: World, service: HostService) -> None:
    await expect("checkpoint_not_found", service.diffs.diff("web"))
    await expect("sandbox_not_found", service.diffs.diff("nosuch"))
    await expect("sandbox_not_found", service.diffs.diff("nosuch@1", "web"))
    await expect("snapshot_not_found", service.diffs.diff("nosuch", "web"))
    await service.snapshots.create("web", name="disk", disk_only=True)
    await expect("bad_request", service.diffs.diff("disk", "web"))
    await service.snapshots.create("web", name="kept")
    await service.sandboxes.stop("web")
    await expect("wrong_state", service.diffs.diff("kept", "web"))
    await service.sandboxes.remove("web", force=True)
    await expect("bad_request", service.diffs.diff("kept", "kept"))
    assert world.engine.running() == []


async def test_programs_that_began_and_those_that_are_gone(
    service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"ppid": 1, "uid": 0, "user": "root", "state": "S"}
    kernel = [{**row, "pid": 2, "ppid": 0}, {**row, "pid": 7, "ppid": 2, "command": b"kworker"}]
    one, two = {**row, "pid": 9, "command": b"one"}, {**row, "pid": 10, "command": b"two"}
    zombie = {**row, "pid": 11, "state": "Z", "command": b"[done]"}
    sides = [[*kernel, one], [two, zombie]]

    class Side:
        def __init__(self, table: list[dict[str, object]]) -> None:
            self.table = table
            self.files = None

        async def processes(self) -> list[dict[str, object]]:
            return self.table

    @contextlib.asynccontextmanager
    async def look(self: object, ref: str) -> AsyncIterator[Guest]:
        yield Side(sides[int(ref)])  # type: ignore[misc]

    monkeypatch.setattr(module.Diffs, "_look_into", look)
    found = await service.diffs.diff("0", "1")
    assert [(each.change, each.pid) for each in found.processes] == [("gone", 9), ("added", 10)]


@pytest.mark.parametrize("what", ["name", "beginning", "nothing"])
async def test_a_snapshot_that_only_says_that_it_is_of_a_sandbox(
    world: World, service: HostService, what: str
) -> None:
    """As one that was imported could: nothing of it is taken up as that sandbox."""
    info = await service.sandboxes.get("web")
    taken = await service.snapshots.create("web", name="kept")
    said = {"name": "web", "beginning": info.id[:8], "nothing": ""}[what]
    row = service.snapshots.shelf[taken.id]
    other = dataclasses.replace(row, info=dataclasses.replace(row.info, sandbox_id=said))
    service.snapshots.shelf[taken.id] = other
    count = len(world.engine.cloned)
    await expect("bad_request", service.diffs.diff("kept", "web"))
    assert len(world.engine.cloned) == count
