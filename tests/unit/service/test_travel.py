"""Snapshots that go from one host to another: complete there, or not there at all."""

import asyncio
import contextlib
import dataclasses
import io
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from hutch.engine.base import Frozen
from hutch.errors import error
from hutch.images.base import no_report
from hutch.models import SandboxInfo, SandboxState, SnapshotKind
from hutch.process import which
from hutch.service import diskimage, travel
from hutch.service.host import HostService
from hutch.service.manifest import MANIFEST, check_files, read_manifest
from hutch.service.portable import Reader, member_of, write
from hutch.service.recipe import file_identity
from hutch.service.sealing import Key
from hutch.tasks import Stopped
from tests.unit.service.world import IMAGE_ID, World, expect, spec

pytestmark = pytest.mark.skipif(which("qemu-img") is None, reason="qemu-img is not installed")

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


@pytest.fixture
async def elsewhere(world: World, short_tmp: Path) -> AsyncIterator[World]:
    own = short_tmp / "elsewhere"
    settings = dataclasses.replace(world.settings, home=own / "home", runtime_dir=own / "run")
    async with World(settings) as other:
        yield other


async def run(service: HostService, **fields: Any) -> SandboxInfo:
    info = await service.sandboxes.create(spec(idle=True, **fields), no_report)
    return await service.sandboxes.start(info.id)


async def exported(service: HostService, ref: str) -> bytes:
    return b"".join([piece async for piece in service.snapshots.export(ref)])


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 5000):
        yield data[at : at + 5000]


def edited(data: bytes, tmp_path: Path, edit: Edit) -> bytes:
    """Return a file with another manifest, digested and sealed anew."""
    reader = Reader(io.BytesIO(data))
    parts = []
    for number, member in enumerate(reader.members):
        path = tmp_path / f"edited-{number}"
        path.unlink(missing_ok=True)
        reader.extract(member, path, lambda: None)
        parts.append((member, path))
    manifest = json.loads(json.dumps(reader.manifest))
    edit(manifest)
    members = manifest.pop("members")
    changed = [
        (dataclasses.replace(member, **entry), path)
        for (member, path), entry in zip(parts, members, strict=True)
    ]
    return b"".join(write(manifest, changed))


def remains(world: World) -> list[str]:
    found = [*(world.settings.home / "snapshots").glob("*"), *world.layers()]
    return [path.name for path in found]


async def test_a_disk_is_restored_elsewhere(
    world: World, service: HostService, elsewhere: World
) -> None:
    await run(service, name="web", labels={"a": "b"})
    taken = await service.snapshots.create("web", name="base", disk_only=True)
    data = await exported(service, "base")
    assert len(remains(world)) == 3  # the snapshot, and the disk's two layers
    async with elsewhere.service() as there:
        came = await there.snapshots.load(pieces(data))
        assert (came.name, came.kind, came.labels) == ("base", SnapshotKind.DISK, {"a": "b"})
        assert came.id != taken.id
        assert (came.sandbox_id, came.sandbox_name) == ("", "web")
        assert came.image_id == IMAGE_ID  # its root is the same there
        again = await there.snapshots.load(pieces(data))
        assert again.name == "base-1"
        await expect("name_taken", there.snapshots.load(pieces(data), "base"))
        await expect("bad_name", there.snapshots.load(pieces(data), "a b"))
        assert [info.name for info in await there.snapshots.list()] == ["base", "base-1"]
    async with elsewhere.service() as there:
        info = await there.snapshots.restore("base", "here")
        assert (info.state, info.origin) == (SandboxState.RUNNING, came.id)
        await there.sandboxes.remove("here", force=True)
        await there.snapshots.remove("base")
        await there.snapshots.remove("base-1")
    assert remains(elsewhere) == []


async def test_memory_and_logs_come_along(
    world: World, service: HostService, elsewhere: World
) -> None:
    source = await run(service, name="web")
    taken = await service.snapshots.create("web", name="one")
    logs = world.settings.home / "snapshots" / taken.id / travel.LOGS
    (logs / "more.log").write_bytes(b"said before")
    data = await exported(service, "one")
    assert not world.agent(source).frozen
    async with elsewhere.service() as there:
        came = await there.snapshots.load(pieces(data))
        directory = elsewhere.settings.home / "snapshots" / came.id
        manifest = read_manifest(directory, "one")
        check_files(manifest, Frozen(directory, manifest.info.memory))
        assert (directory / travel.LOGS / "more.log").read_bytes() == b"said before"
        assert manifest.needs is not None
        root = elsewhere.images.rootfs_path(came.image_id)
        base = await elsewhere.base_disk(elsewhere.settings.home, came.disk)
        local = {"root": file_identity(root.path), "base": file_identity(base)}
        assert manifest.needs.files == local
        assert {path.stat().st_mode & 0o077 for path in directory.glob("*")} == {0}
        assert sorted(path.name for path in directory.iterdir()) == sorted(
            [MANIFEST, travel.LOGS, *manifest.digests]
        )
        info = await there.snapshots.restore("one", "here")
        assert (info.state, info.origin) == (SandboxState.RUNNING, came.id)
        assert elsewhere.agent(info).identity["hostname"] == "here"


async def test_a_memory_of_another_engine_is_not_taken_up(
    service: HostService, elsewhere: World, tmp_path: Path
) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="one")
    data = await exported(service, "one")
    other = edited(data, tmp_path, change("snapshot", "snapshot", "engine_version", to="0.1"))
    async with elsewhere.service() as there:
        await there.snapshots.load(pieces(other))
        failure = await expect("snapshot_incompatible", there.snapshots.restore("one", "here"))
        assert failure.details["different"] == ["the engine's version"]
        info = await there.snapshots.restore("one", "here", disk_only=True)
        assert info.state is SandboxState.RUNNING


async def test_a_memory_that_changed_is_not_exported(world: World, service: HostService) -> None:
    await run(service, name="web")
    taken = await service.snapshots.create("web", name="one")
    directory = world.settings.home / "snapshots" / taken.id
    with open(Frozen(directory, taken.memory).state, "ab") as file:
        file.write(b"more")
    await expect("snapshot_damaged", exported(service, "one"))
    assert [path.name for path in directory.parent.iterdir()] == [taken.id]


async def test_a_root_of_other_content_never_passes_for_the_image(
    service: HostService, elsewhere: World
) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="one", disk_only=True)
    elsewhere.images.path.write_bytes(b"something else")
    async with elsewhere.service() as there:
        came = await there.snapshots.load(pieces(await exported(service, "one")))
        assert came.image_id != IMAGE_ID
        root = elsewhere.images.rootfs_path(came.image_id)
        assert root.path.read_bytes() == b"root"
        assert there._registry.used_images() == [came.image_id]


async def test_a_snapshot_is_not_removed_while_it_is_exported(service: HostService) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="one", disk_only=True)
    async with contextlib.aclosing(service.snapshots.export("one")) as stream:
        await anext(stream)
        failure = await expect("in_use", service.snapshots.remove("one"))
        assert "exported" in failure.message
        assert (await service.snapshots.collect(0)).removed == []
    await service.snapshots.remove("one")
    await expect("snapshot_not_found", exported(service, "one"))


async def test_what_is_damaged_leaves_nothing(service: HostService, elsewhere: World) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="one", disk_only=True)
    data = await exported(service, "one")

    async def cut() -> AsyncIterator[bytes]:
        yield data[:100]
        raise error("cancelled", "the client went away")

    async with elsewhere.service() as there:
        for bad in (b"", b"no snapshot at all", data[:-1], data + b"x"):
            await expect("snapshot_damaged", there.snapshots.load(pieces(bad)))
        await expect("cancelled", there.snapshots.load(cut()))
        assert await there.snapshots.list() == []
        assert remains(elsewhere) == []


def change(*path: str | int, to: Any) -> Edit:
    def edit(manifest: dict[str, Any]) -> None:
        at: Any = manifest
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = to

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        change("snapshot", to=[]),
        change("snapshot", "info", to={}),
        change("snapshot", "info", "workdir", to=5),
        change("snapshot", "info", "env", to={"A": []}),
        change("snapshot", "info", "env", to=["A"]),
        change("snapshot", "info", "disk", to=1 << 60),
        change("snapshot", "info", "memory", to=-1),
        change("snapshot", "info", "cpus", to=True),
        change("snapshot", "info", "image_id", to="../../etc"),
        change("snapshot", "snapshot", "name", to="../up"),
        change("snapshot", "snapshot", "kind", to="full"),
        change("snapshot", "generation", to=None),
        change("fstype", to="ext4"),
        change("members", 0, "name", to="../../escape"),
        change("members", 0, "name", to="logs/../x.log"),
        change("members", 1, "name", to="memory"),
    ],
)
async def test_a_hostile_manifest_is_refused(
    edit: Edit, service: HostService, elsewhere: World, tmp_path: Path
) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="one", disk_only=True)
    bad = edited(await exported(service, "one"), tmp_path, edit)
    async with elsewhere.service() as there:
        await expect("snapshot_damaged", there.snapshots.load(pieces(bad)))
        assert remains(elsewhere) == []


async def test_another_format_is_refused(
    service: HostService, elsewhere: World, tmp_path: Path
) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="one", disk_only=True)
    data = await exported(service, "one")
    other = edited(data, tmp_path, change("snapshot", "format", to=99))
    async with elsewhere.service() as there:
        await expect("snapshot_incompatible", there.snapshots.load(pieces(other)))


async def test_a_full_disk_stops_it(
    service: HostService, elsewhere: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="one", disk_only=True)
    data = await exported(service, "one")
    async with elsewhere.service() as there:
        usage = travel.shutil.disk_usage("/")
        monkeypatch.setattr(travel.shutil, "disk_usage", lambda _: usage._replace(free=0))
        await expect("disk_full", there.snapshots.load(pieces(data)))
        assert remains(elsewhere) == []


async def test_a_disk_is_not_copied_into_the_reserve(
    service: HostService, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="one", disk_only=True)
    usage = diskimage.shutil.disk_usage("/")
    reserve = world.settings.disk_reserve
    monkeypatch.setattr(diskimage.shutil, "disk_usage", lambda _: usage._replace(free=reserve))
    before = remains(world)
    await expect("disk_full", exported(service, "one"))
    await expect("disk_full", service.snapshots.create("web", disk_only=True, key=Key(b"a key of")))
    assert (len(before), [info.name for info in await service.snapshots.list()]) == (3, ["one"])


async def test_an_encrypted_file_needs_its_key(
    service: HostService, elsewhere: World, world: World
) -> None:
    info = await run(service, name="web", env={"TOKEN": "marked secret"})
    await service.snapshots.create(info.id, name="then")
    key = Key(b"a key of mine")
    stream = service.snapshots.export("then", key)
    data = b"".join([piece async for piece in stream])
    async with elsewhere.service() as other:
        for wrong in (None, Key(b"another key")):
            await expect("wrong_key", other.snapshots.load(pieces(data), key=wrong))
        changed = data[:-1] + bytes([data[-1] ^ 1])
        for bad in (changed, data[:-30], data + b"more"):
            await expect("snapshot_damaged", other.snapshots.load(pieces(bad), key=key))
        assert remains(elsewhere) == []
        came = await other.snapshots.load(pieces(data), key=key)
        assert (came.name, came.kind, came.encrypted) == ("then", SnapshotKind.FULL, False)
        restored = await other.snapshots.restore("then", "here")
        assert restored.env["TOKEN"] == "marked secret"
    assert b"secret" not in data
    # One in the clear is not what is expected, unless the key may be there for others.
    plain, optional = await exported(service, "then"), Key(b"a key of mine", optional=True)
    await expect("bad_request", service.snapshots.load(pieces(plain), "again", key))
    await service.snapshots.load(pieces(plain), "again", optional)
    await expect("bad_request", service.snapshots.restore("then", "more", key=key))
    await service.snapshots.restore("then", "more", key=optional)


async def test_what_is_encrypted_at_rest_travels_as_it_is(
    service: HostService, elsewhere: World
) -> None:
    await run(service, name="web", env={"TOKEN": "marked secret"})
    key = Key(b"a key of mine")
    taken = await service.snapshots.create("web", name="then", key=key)
    data = await exported(service, "then")
    async with elsewhere.service() as other:
        came = await other.snapshots.load(pieces(data))
        assert (came.name, came.encrypted, came.kind) == ("then", True, taken.kind)
        await expect("wrong_key", other.snapshots.restore("then"))
        restored = await other.snapshots.restore("then", "here", key=key)
        assert (restored.env["TOKEN"], restored.origin) == ("marked secret", came.id)
        again = await exported(other, "then")
        assert (await other.snapshots.load(pieces(again), "twice")).encrypted
        await other.snapshots.restore("twice", key=key)
        twice = b"".join([piece async for piece in other.snapshots.export("then", key)])
        await expect("wrong_key", other.snapshots.load(pieces(twice), "thrice"))
        assert (await other.snapshots.load(pieces(twice), "thrice", key)).encrypted


async def test_a_file_is_not_read_to_its_end_for_nobody(
    service: HostService, elsewhere: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, ends = asyncio.Event(), list[type[Exception]]()
    loop = asyncio.get_running_loop()

    def endless(file: BinaryIO) -> None:
        loop.call_soon_threadsafe(began.set)
        try:
            for _ in range(5000):
                file.seek(0)
                file.read(1)
                time.sleep(0.002)
        except Exception as cause:
            ends.append(type(cause))
            raise

    monkeypatch.setattr(travel, "Reader", endless)
    async with elsewhere.service() as there:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(there.snapshots.load(pieces(b"any file")))
            await began.wait()
            task.cancel()
        assert (task.cancelled(), ends) == (True, [Stopped])
        assert remains(elsewhere) == []


async def test_who_carries_it_cannot_put_another_root_below_it(
    service: HostService, elsewhere: World, tmp_path: Path
) -> None:
    await run(service, name="web")
    key = Key(b"a key of mine")
    await service.snapshots.create("web", name="then", key=key)
    other = tmp_path / "other-root"
    other.write_bytes(b"another root")
    reader = Reader(io.BytesIO(await exported(service, "then")))
    members = []
    for member in reader.members:
        path = tmp_path / member.name
        reader.extract(member, path, lambda: None)
        path = other if member.name == travel.ROOT else path
        members.append((member_of(member.name, path), path))
    head = {name: part for name, part in reader.manifest.items() if name != "members"}
    data = b"".join(write(head, members))
    async with elsewhere.service() as there:
        await there.snapshots.load(pieces(data))
        for disk_only in (False, True):
            work = there.snapshots.restore("then", "here", disk_only=disk_only, key=key)
            assert "root" in (await expect("snapshot_damaged", work)).message
        assert len(elsewhere.engine.running()) == 0


async def test_a_file_cannot_pass_as_encrypted_or_in_the_clear(
    service: HostService, elsewhere: World, tmp_path: Path
) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="plain")
    await service.snapshots.create("web", name="sealed", key=Key(b"a key of mine"))
    async with elsewhere.service() as other:
        for name, value in (("plain", True), ("sealed", False)):

            def edit(manifest: dict[str, Any], value: bool = value) -> None:
                manifest["snapshot"]["snapshot"]["encrypted"] = value

            data = edited(await exported(service, name), tmp_path, edit)
            await expect("snapshot_damaged", other.snapshots.load(pieces(data)))
        assert remains(elsewhere) == []
