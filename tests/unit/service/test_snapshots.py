"""Snapshots: made of living sandboxes, restored any number of times, undone when anything fails."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.errors import HutchError, error
from hutch.guest.session import GuestSession
from hutch.images.base import no_report
from hutch.models import SandboxInfo, SandboxState, SnapshotInfo, SnapshotKind
from hutch.service.host import HostService
from hutch.service.manifest import MANIFEST, Needs, read_manifest, write_manifest
from tests.unit.service.dying import dying
from tests.unit.service.world import World, expect, spec
from tests.waiting import until

RUNNING, PAUSED = SandboxState.RUNNING, SandboxState.PAUSED


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


async def run(service: HostService, **fields: Any) -> SandboxInfo:
    info = await service.sandboxes.create(spec(idle=True, **fields), no_report)
    return await service.sandboxes.start(info.id)


def directories(world: World) -> list[str]:
    return sorted(path.name for path in (world.settings.home / "snapshots").glob("*"))


async def test_a_snapshot_and_what_is_restored_from_it(world: World, service: HostService) -> None:
    source = await run(service, name="web", env={"A": "1"}, labels={"team": "x"}, timeout=60.0)
    taken = await service.snapshots.create("web")
    assert (taken.name, taken.kind, taken.sandbox_id) == ("web-1", SnapshotKind.FULL, source.id)
    assert taken.labels == {"team": "x"}
    assert directories(world) == [taken.id]
    assert not world.agent(source).frozen
    assert len(world.layers()) == 2
    again = await service.snapshots.restore("web-1", "again")
    third = await service.snapshots.restore(taken.id[:7], "third")
    for info in (again, third):
        assert (info.state, info.origin, info.env["A"]) == (RUNNING, taken.id, "1")
        assert (info.labels, info.timeout, info.hostname) == ({"team": "x"}, 60.0, info.name)
        assert info.timeout_at is not None
        identity = world.agent(info).identity
        assert identity["hostname"] == info.name
        assert identity["generation"] == world.agent(source).identity["generation"] + 1
        assert not world.agent(info).frozen
    assert world.agent(again).identity["entropy"] != world.agent(third).identity["entropy"]
    assert world.agent(again).identity["machine_id"] != world.agent(third).identity["machine_id"]
    disks = {process.spec.drives[1].path for process in world.engine.running()}
    assert len(disks) == 3
    # The memory is let go of as soon as nobody starts from it.
    assert world.engine.frozen_memory(world.engine.kept[0]) == 0


async def test_it_outlives_its_source_and_the_daemon(world: World) -> None:
    async with world.service() as service:
        source = await run(service, name="web")
        taken = await service.snapshots.create("web", name="before")
        await service.sandboxes.remove(source.id, force=True)
        assert len(world.layers()) == 1
    async with world.service() as service:
        (found,) = await service.snapshots.list()
        assert found == replace(taken, disk_bytes=found.disk_bytes, shared_bytes=found.shared_bytes)
        assert found.disk_bytes > taken.disk_bytes  # nobody shares its disk any more
        assert service._registry.used_images() == [source.image_id]
        info = await service.snapshots.restore("before", "web")
        assert info.state is RUNNING
        (behind,) = world.engine.running()[0].spec.drives[1].layers
        assert behind in world.layers()
        await service.snapshots.remove("before")
        assert len(world.layers()) == 2
        await service.sandboxes.remove("web", force=True)
    assert world.leftovers() == []
    assert directories(world) == []


async def test_a_restored_sandbox_stops_and_starts_with_its_disk(
    world: World, service: HostService
) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="before")
    info = await service.snapshots.restore("before", "again")
    top = world.engine.running()[-1].spec.drives[1].path
    await service.sandboxes.stop(info.id)
    await service.sandboxes.start(info.id)
    assert world.engine.booted[-1].drives[1].path == top
    assert len(world.engine.booted[-1].drives[1].layers) == 1


async def test_a_paused_source_stays_paused(world: World, service: HostService) -> None:
    info = await run(service, name="web")
    await service.sandboxes.pause("web")
    await service.snapshots.create("web", name="before")
    assert (await service.sandboxes.get("web")).state is PAUSED
    assert world.engine.running()[0].paused
    assert not world.agent(info).frozen
    assert (await service.snapshots.restore("before", "again")).state is RUNNING


async def test_the_disk_alone(world: World, service: HostService) -> None:
    info = await run(service, name="web")
    disk = await service.snapshots.create("web", name="disk", disk_only=True, freeze=False)
    assert disk.kind is SnapshotKind.DISK
    await service.sandboxes.stop("web")
    cold = await service.snapshots.create("web", disk_only=True)
    assert cold.parent == disk.id
    await expect("wrong_state", service.snapshots.create("web"))
    for ref in ("disk", cold.id):
        restored = await service.snapshots.restore(ref, None)
        assert (restored.state, restored.origin is not None) == (RUNNING, True)
        mounted = world.engine.booted[-1].drives[1]
        assert len(mounted.layers) == (1 if ref == "disk" else 2)
    assert (await service.sandboxes.start("web")).id == info.id
    full = await service.snapshots.create("web", name="full")
    assert (await service.snapshots.restore(full.id, None, disk_only=True)).state is RUNNING
    assert len(world.engine.cloned) == 0


async def test_what_cannot_be_asked_for(service: HostService) -> None:
    created = await service.sandboxes.create(spec(name="fresh"), no_report)
    await expect("wrong_state", service.snapshots.create(created.id))
    await expect("wrong_state", service.snapshots.create(created.id, disk_only=True))
    await run(service, name="web")
    await expect("bad_request", service.snapshots.create("web", freeze=False))
    await expect("bad_name", service.snapshots.create("web", name="sn_1"))
    await expect("sandbox_not_found", service.snapshots.create("nosuch"))
    await expect("snapshot_not_found", service.snapshots.restore("nosuch", "new"))
    await service.snapshots.create("web", name="one")
    await expect("name_taken", service.snapshots.create("web", name="one"))
    await expect("name_taken", service.snapshots.restore("one", "web"))
    await expect("bad_request", service.snapshots.collect(-1))


async def test_listing_and_collecting(world: World, service: HostService) -> None:
    for name in ("web", "db"):
        await run(service, name=name)
        for _ in range(3):
            await service.snapshots.create(name)
    names = [info.name for info in await service.snapshots.list()]
    assert names == ["web-1", "web-2", "web-3", "db-1", "db-2", "db-3"]
    infos = await service.snapshots.list("db")
    assert [info.name for info in infos] == names[3:]
    assert infos[2].parent == infos[1].id
    assert len((await service.snapshots.collect(1, "web")).removed) == 2
    assert len((await service.snapshots.collect(2)).removed) == 1
    assert [info.name for info in await service.snapshots.list()] == ["web-3", "db-2", "db-3"]
    assert len(directories(world)) == 3


OTHERS = Needs("q", "x", {})


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda d: (d / "memory").unlink(), "snapshot_damaged"),
        (lambda d: (d / "state").write_bytes(b"x"), "snapshot_damaged"),
        (lambda d: (d / MANIFEST).unlink(), "snapshot_damaged"),
        (lambda d: (d / MANIFEST).write_bytes(b"{"), "snapshot_damaged"),
        (lambda d: scribble(d / MANIFEST, b'"cpus": 1', b'"cpus": 3'), "snapshot_damaged"),
        (lambda d: scribble(d / MANIFEST, b'"digest": ', b'"dagest": '), "snapshot_damaged"),
        (lambda d: edit(d, format=99), "snapshot_incompatible"),
        (lambda d: edit(d, needs=OTHERS), "snapshot_incompatible"),
        (lambda d: edit(d, needs=None), "snapshot_damaged"),
        (lambda d: edit(d, snapshot=without_cpu(d)), "snapshot_damaged"),
        (lambda d: flip(d / "memory"), "snapshot_damaged"),
    ],
)
async def test_a_snapshot_that_is_not_what_it_was(
    world: World, service: HostService, damage: Any, code: str
) -> None:
    await run(service, name="web")
    taken = await service.snapshots.create("web")
    damage(world.settings.home / "snapshots" / taken.id)
    failure = await expect(code, service.snapshots.restore(taken.id, "new"))
    assert failure.hint
    assert world.engine.cloned == []
    await expect("sandbox_not_found", service.sandboxes.get("new"))
    await service.snapshots.remove(taken.id)


def edit(directory: Path, **fields: Any) -> None:
    write_manifest(directory, replace(read_manifest(directory, "it"), **fields))


def without_cpu(directory: Path) -> SnapshotInfo:
    return replace(read_manifest(directory, "it").snapshot, cpu=None)


def scribble(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"\1")


async def test_no_bit_of_a_manifest_can_change(world: World, service: HostService) -> None:
    await run(service, name="web", env={"A": "1"}, labels={"team": "x"})
    taken = await service.snapshots.create("web")
    directory = world.settings.home / "snapshots" / taken.id
    whole, path = read_manifest(directory, "it"), directory / MANIFEST
    content = path.read_bytes()
    noticed = 0
    for number in range(0, len(content), 3):
        flipped = bytes([content[number] ^ 1 << number % 8])
        path.write_bytes(content[:number] + flipped + content[number + 1 :])
        try:
            # What is no part of a value, but between two, may be another space.
            assert read_manifest(directory, "it") == whole
        except HutchError as failure:
            assert failure.code in ("snapshot_damaged", "snapshot_incompatible")  # noqa: PT017
            noticed += 1
    assert noticed > len(content) // 6


async def test_a_host_that_does_not_fit(world: World, service: HostService) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="before")
    world.engine.program = "fake 2"
    failure = await expect("snapshot_incompatible", service.snapshots.restore("before", "new"))
    assert failure.details["different"] == ["the engine's program"]
    world.engine.program = "fake 1"
    world.images.path.write_bytes(b"another root")
    failure = await expect("snapshot_incompatible", service.snapshots.restore("before", "new"))
    assert failure.details["different"] == ["the root file system"]
    assert world.engine.cloned == []


async def test_a_host_with_another_cpu(world: World, service: HostService) -> None:
    engine, cpu = world.engine, world.engine.cpu
    await run(service, name="web")
    taken = await service.snapshots.create("web", name="before")
    assert taken.cpu == cpu
    assert (await service.snapshots.create("web", disk_only=True)).cpu is None
    engine.cpu = replace(cpu, features=["fpu", "sse"])
    failure = await expect("snapshot_incompatible", service.snapshots.restore("before", "new"))
    assert failure.message.endswith("this host's CPU lacks sse2")
    assert "on a host whose CPU has them" in str(failure.hint)
    assert failure.details == {"different": [], "missing": ["sse2"]}
    engine.cpu = replace(cpu, vendor="Another", model="other")
    failure = await expect("snapshot_incompatible", service.snapshots.restore("before", "new"))
    assert len(failure.details["different"]) == 2
    assert "FakeVendor against Another" in failure.message
    assert engine.cloned == []
    # One that can do more will do, and a disk goes everywhere.
    engine.cpu = replace(cpu, features=["avx2", *cpu.features])
    assert (await service.snapshots.restore("before", "more")).state is RUNNING
    engine.cpu = replace(cpu, features=[])
    assert (await service.snapshots.restore("before", "disk", disk_only=True)).state is RUNNING


@pytest.mark.parametrize("knob", ["fail_capture", "fail_keep"])
async def test_an_engine_that_fails(world: World, service: HostService, knob: str) -> None:
    info = await run(service, name="web")
    setattr(world.engine, knob, error("disk_full", "told to"))
    await expect("disk_full", service.snapshots.create("web"))
    setattr(world.engine, knob, None)
    assert directories(world) == []
    assert list(await service.snapshots.list()) == []
    assert not world.agent(info).frozen
    assert not world.engine.running()[0].paused
    assert (await service.snapshots.create("web")).name == "web-1"
    await service.snapshots.remove("web-1")
    await service.sandboxes.remove("web", force=True)
    assert world.leftovers() == []


async def test_programs_that_cannot_be_frozen(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = await run(service, name="web")
    before = world.layers()

    async def fail(self: object, timeout: float = 0.1) -> None:
        raise error("guest_timeout", "told to")

    with monkeypatch.context() as patch:
        patch.setattr(GuestSession, "freeze", fail)
        failure = await expect("guest_timeout", service.snapshots.create("web"))
        assert "still" not in str(failure.hint)
        await service.snapshots.create("web", name="disk", disk_only=True, freeze=False)
    assert world.engine.captured[0] != world.engine.kept
    assert not world.agent(info).frozen
    assert len(world.layers()) == len(before) + 1  # of the one that was made


async def test_a_clone_that_does_not_renew_its_randomness(
    world: World, service: HostService
) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="before")
    layers = world.layers()
    world.deny_entropy = True
    await expect("boot_failed", service.snapshots.restore("before", "new"))
    assert len(world.engine.running()) == 1
    assert world.layers() == layers
    await expect("sandbox_not_found", service.sandboxes.get("new"))


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08])
async def test_a_snapshot_that_is_cancelled_at_any_moment(
    world: World, service: HostService, delay: float
) -> None:
    info = await run(service, name="web")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(service.snapshots.create("web"), delay)
    assert not world.agent(info).frozen
    assert not world.engine.running()[0].paused
    made = await service.snapshots.list()
    assert directories(world) == [each.id for each in made]
    await service.snapshots.create("web")
    for each in await service.snapshots.list():
        await service.snapshots.remove(each.id)
    await service.sandboxes.remove("web", force=True)
    assert world.leftovers() == []


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1])
async def test_a_restore_that_is_cancelled_at_any_moment(
    world: World, service: HostService, delay: float
) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="before")
    await service.sandboxes.remove("web", force=True)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(service.snapshots.restore("before", "new"), delay)
    with contextlib.suppress(HutchError):
        assert (await service.sandboxes.get("new")).state is RUNNING
        await service.sandboxes.remove("new", force=True)
    await service.snapshots.remove("before")
    assert world.leftovers() == []


@pytest.mark.parametrize("at", range(8))
async def test_a_daemon_that_dies_at_any_step(world: World, at: int) -> None:
    """After each write to the records nothing more happens: the next daemon finds the rest."""
    service = world.service()
    await service.__aenter__()
    info = await run(service, name="web")
    async with dying(service, at, lambda: service.snapshots.create("web", name="one")) as finished:
        async with world.service() as after:
            assert (await after.sandboxes.get("web")).state is RUNNING
            assert not world.engine.running()[0].paused
            await until(lambda: not world.agent(info).frozen)
            names = [each.name for each in await after.snapshots.list()]
            assert names == (["one"] if finished else names)
            assert directories(world) == [each.id for each in await after.snapshots.list()]
            taken = await after.snapshots.create("web", name="two")
            restored = await after.snapshots.restore(taken.id, "new")
            assert restored.state is RUNNING
            for name in ("web", "new"):
                await after.sandboxes.remove(name, force=True)
            for each in await after.snapshots.list():
                await after.snapshots.remove(each.id)
        assert world.leftovers() == []


async def test_one_that_goes_as_they_are_listed(
    service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(service, name="web")
    for name in ("one", "two"):
        await service.snapshots.create("web", name=name)
    really = service.snapshots.get

    async def late(ref: str) -> SnapshotInfo:
        if "one" in {row.info.name for row in service.snapshots.shelf.values()}:
            await service.snapshots.remove("one")
        return await really(ref)

    monkeypatch.setattr(service.snapshots, "get", late)
    assert [each.name for each in await service.snapshots.list()] == ["two"]
