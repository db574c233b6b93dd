"""Snapshots that are encrypted at rest: nothing is in the clear, and the key opens them."""

import asyncio
import contextlib
import gc
import io
import json
import os
import random
import tarfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from hutch.errors import error
from hutch.images.base import no_report
from hutch.models import SandboxInfo, SandboxState, SnapshotInfo, SnapshotKind, to_json
from hutch.process import which
from hutch.service import sealing, vault
from hutch.service.host import HostService
from hutch.service.manifest import MANIFEST, Manifest
from hutch.service.sandbox import Sandbox
from hutch.service.sealing import HEAD, Key, Work
from hutch.service.values import SandboxFilter
from hutch.service.vault import SEALED
from hutch.tasks import Stopped
from tests.unit.service.dying import dying
from tests.unit.service.world import World, expect, spec

pytestmark = pytest.mark.skipif(which("qemu-img") is None, reason="qemu-img is not installed")

KEY = Key(b"a key of mine")
OTHER = Key(b"a key of others")
SECRET = "marked-secret"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap = sealing.seal.__kwdefaults__ | {"work": Work(log_n=1, r=1, p=1)}
    monkeypatch.setattr(sealing.seal, "__kwdefaults__", cheap)


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


async def run(service: HostService, **fields: Any) -> SandboxInfo:
    info = await service.sandboxes.create(spec(idle=True, **fields), no_report)
    return await service.sandboxes.start(info.id)


def remains(world: World) -> list[str]:
    return sorted(path.name for path in (world.settings.home / "snapshots").glob("*"))


def directory(world: World, snapshot: SnapshotInfo) -> Path:
    return world.settings.home / "snapshots" / snapshot.id


def logs(world: World, info: SandboxInfo) -> dict[str, bytes]:
    found = (world.settings.home / "sandboxes" / info.id / "logs").glob("*.log")
    return {path.name: path.read_bytes() for path in found}


def hidden() -> list[str]:
    """Return what this process has open that no path leads to, and is no garbage."""
    gc.collect()
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(link))
    ours = ("/memfd:hutch-", "/snapshots/")
    return [name for name in found if name.endswith("(deleted)") and any(o in name for o in ours)]


async def names(service: HostService) -> list[str]:
    return [info.name for info in await service.sandboxes.list(SandboxFilter(all=True))]


async def test_it_is_restored_with_its_key_alone(world: World, service: HostService) -> None:
    source = await run(service, name="web", env={"TOKEN": SECRET}, labels={"team": "x"})
    place = world.settings.home / "sandboxes" / source.id / "logs"
    place.mkdir(parents=True, exist_ok=True)
    (place / "program.0.log").write_bytes(SECRET.encode())
    taken = await service.snapshots.create("web", name="then", key=KEY)
    assert hidden() == []
    assert (taken.encrypted, taken.kind, taken.memory_bytes > 0) == (True, SnapshotKind.FULL, True)
    assert sorted(path.name for path in directory(world, taken).iterdir()) == [SEALED, MANIFEST]
    for path in directory(world, taken).iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        assert SECRET.encode() not in path.read_bytes()
    assert not world.agent(source).frozen
    machines = len(world.engine.running())
    for wrong in (None, OTHER):
        await expect("wrong_key", service.snapshots.restore("then", "again", key=wrong))
        await expect("wrong_key", service.snapshots.restore("then", disk_only=True, key=wrong))
    assert len(world.engine.running()) == machines
    assert await names(service) == ["web"]
    assert hidden() == []
    restored = await service.snapshots.restore("then", "again", key=KEY)
    assert (restored.state, restored.env["TOKEN"]) == (SandboxState.RUNNING, SECRET)
    assert (restored.origin, restored.labels) == (taken.id, {"team": "x"})
    assert logs(world, restored)["program.0.log"] == SECRET.encode()
    assert not world.agent(restored).frozen
    # Its disk is its own, and the memory is let go of.
    assert world.engine.running()[-1].spec.drives[1].layers == ()
    _, frozen = world.engine.cloned[-1]
    assert world.engine.frozen_memory(frozen) == 0
    cold = await service.snapshots.restore("then", "cold", disk_only=True, key=KEY)
    assert (cold.state, cold.env["TOKEN"]) == (SandboxState.RUNNING, SECRET)
    await service.sandboxes.stop("again")
    assert (await service.sandboxes.start("again")).state is SandboxState.RUNNING


async def test_it_outlives_its_source_and_the_daemon(world: World) -> None:
    async with world.service() as service:
        await run(service, name="web")
        await service.snapshots.create("web", name="then", key=KEY)
        await service.sandboxes.remove("web", force=True)
        assert world.layers() == []
    async with world.service() as service:
        (found,) = await service.snapshots.list()
        assert (found.encrypted, found.disk_bytes > 0) == (True, True)
        assert (await service.snapshots.restore("then", "web", key=KEY)).name == "web"
        await service.snapshots.remove("then")
        await service.sandboxes.remove("web", force=True)
    assert (world.leftovers(), remains(world), world.layers()) == ([], [], [])


async def test_a_disk_alone_of_one_that_runs_and_of_one_that_does_not(
    world: World, service: HostService
) -> None:
    await run(service, name="web")
    warm = await service.snapshots.create("web", name="warm", disk_only=True, key=KEY)
    await service.sandboxes.stop("web")
    cold = await service.snapshots.create("web", name="cold", disk_only=True, key=KEY)
    for taken in (warm, cold):
        assert (taken.kind, taken.encrypted) == (SnapshotKind.DISK, True)
        info = await service.snapshots.restore(taken.name, key=KEY)
        assert info.state is SandboxState.RUNNING
    await expect("wrong_key", service.snapshots.restore("warm"))


@pytest.mark.parametrize("disk_only", [False, True])
async def test_damage_is_found_before_a_vm_is_started(
    world: World, service: HostService, disk_only: bool
) -> None:
    await run(service, name="web")
    taken = await service.snapshots.create("web", name="then", key=KEY)
    path = directory(world, taken) / SEALED
    whole = path.read_bytes()
    chance = random.Random(1)
    places = [0, 14, HEAD - 1, HEAD, len(whole) - 1]
    places += [chance.randrange(len(whole)) for _ in range(20)]
    bad = [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in places]
    bad += [b"", whole[:HEAD], whole[:-1], whole[: len(whole) // 2], whole + b"\0", whole * 2]
    cloned, booted = len(world.engine.cloned), len(world.engine.booted)
    for content in bad:
        path.write_bytes(content)
        work = service.snapshots.restore("then", disk_only=disk_only, key=KEY)
        await expect("snapshot_damaged", work)
    path.unlink()
    await expect(
        "snapshot_damaged", service.snapshots.restore("then", disk_only=disk_only, key=KEY)
    )
    assert hidden() == []
    assert (len(world.engine.cloned), len(world.engine.booted)) == (cloned, booted)
    assert await names(service) == ["web"]
    path.write_bytes(whole)
    await service.snapshots.restore("then", "again", disk_only=disk_only, key=KEY)


async def test_one_does_not_pass_for_another(world: World, service: HostService) -> None:
    await run(service, name="web")
    full = await service.snapshots.create("web", name="full", key=KEY)
    disk = await service.snapshots.create("web", name="disk", disk_only=True, key=KEY)
    (directory(world, full) / SEALED).write_bytes((directory(world, disk) / SEALED).read_bytes())
    await expect("snapshot_damaged", service.snapshots.restore("full", key=KEY))
    manifest = directory(world, full) / MANIFEST
    body = json.loads(manifest.read_bytes())
    body["format"] = 7
    manifest.write_text(json.dumps(body))
    await expect("snapshot_incompatible", service.snapshots.restore("full", key=KEY))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("info", "idle_timeout", "x"),
        ("info", "stop_signal", "SIGNONE"),
        ("info", "cpus", 2),
        ("snapshot", "kind", "disk"),
        ("snapshot", "memory_bytes", 1),
        (None, "generation", 77),
        (None, "info", None),
    ],
)
@pytest.mark.parametrize("disk_only", [False, True])
async def test_what_was_encrypted_is_believed_no_more_than_other_files(
    world: World,
    service: HostService,
    monkeypatch: pytest.MonkeyPatch,
    part: str | None,
    key: str,
    value: Any,
    disk_only: bool,
) -> None:
    def hostile(manifest: Manifest) -> Any:
        body = json.loads(json.dumps(to_json(manifest)))
        (body if part is None else body[part])[key] = value
        return body

    await run(service, name="web")
    with monkeypatch.context() as patch:
        patch.setattr(vault, "to_json", hostile)
        await service.snapshots.create("web", name="then", key=KEY)
    work = service.snapshots.restore("then", disk_only=disk_only, key=KEY)
    await expect("snapshot_damaged", work)
    assert (await names(service), hidden()) == (["web"], [])


def sparse_log() -> tarfile.TarInfo:
    entry = tarfile.TarInfo("program.0.log")
    entry.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,4",
        "GNU.sparse.size": str(1 << 20),
    }
    return entry


def linked_log() -> tarfile.TarInfo:
    entry = tarfile.TarInfo("program.0.log")
    entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return entry


@pytest.mark.parametrize("entry", [sparse_log(), linked_log(), tarfile.TarInfo("../up.log")])
def test_a_log_is_a_plain_file(entry: tarfile.TarInfo, tmp_path: Path) -> None:
    with (tmp_path / "logs.tar").open("w+b") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            entry.size = 4 if entry.type == tarfile.REGTYPE else 0
            archive.addfile(entry, io.BytesIO(b"text"))
            last = tarfile.TarInfo("last.log")
            last.size = 4
            archive.addfile(last, io.BytesIO(b"last"))
        file.flush()
        (target := tmp_path / "target").mkdir()
        vault._unpack(file.fileno(), target, lambda: None)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"last.log": b"last"}


async def test_logs_that_are_none_are_damage(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scrawl(_: Path, target: int) -> None:
        os.write(target, b"no archive" * 100)

    await run(service, name="web")
    with monkeypatch.context() as patch:
        patch.setattr(vault, "_pack", scrawl)
        await service.snapshots.create("web", name="then", key=KEY)
    await expect("snapshot_damaged", service.snapshots.restore("then", key=KEY))
    assert (await names(service), hidden()) == (["web"], [])


async def test_what_is_cancelled_is_not_read_to_its_end(
    service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, ends = asyncio.Event(), list[type[Exception]]()
    loop = asyncio.get_running_loop()

    def endless(file: BinaryIO, *, authentic: bool) -> None:
        loop.call_soon_threadsafe(began.set)
        try:
            for _ in range(5000):
                file.seek(0)
                file.read(1)
                time.sleep(0.002)
        except Exception as cause:
            ends.append(type(cause))
            raise

    await run(service, name="web")
    await service.snapshots.create("web", name="then", key=KEY)
    monkeypatch.setattr(vault, "unseal", lambda file, *_: file)
    monkeypatch.setattr(vault, "Reader", endless)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(service.snapshots.restore("then", "new", key=KEY))
        await began.wait()
        task.cancel()
    assert (task.cancelled(), ends) == (True, [Stopped])
    assert (await names(service), hidden()) == (["web"], [])


async def test_a_full_disk_is_said_to_be_full(
    service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> int:
        raise OSError(28, "No space left on device")

    await run(service, name="web")
    await service.snapshots.create("web", name="then", key=KEY)
    monkeypatch.setattr(vault, "hidden_file", full)
    await expect("disk_full", service.snapshots.restore("then", "new", key=KEY))


async def test_one_that_cannot_be_watched_over_is_undone(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="then", key=KEY)

    def broken(_: Sandbox) -> None:
        raise error("internal", "told to")

    with monkeypatch.context() as patch:
        patch.setattr(Sandbox, "supervise", broken)
        work = service.snapshots.restore("then", "new", key=KEY)
        await expect("internal", asyncio.wait_for(work, 60))
    assert (await names(service), len(world.engine.running())) == (["web"], 1)


@pytest.mark.parametrize("disk_only", [False, True])
async def test_the_root_it_was_made_over_is_the_only_one(
    world: World, service: HostService, disk_only: bool
) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="then", key=KEY)
    whole = world.images.path.read_bytes()
    world.images.path.write_bytes(b"boot")
    work = service.snapshots.restore("then", "new", disk_only=disk_only, key=KEY)
    await expect("snapshot_damaged", work)
    world.images.path.unlink()
    work = service.snapshots.restore("then", "new", disk_only=disk_only, key=KEY)
    await expect("image_not_found", work)
    assert await names(service) == ["web"]
    world.images.path.write_bytes(whole)
    await service.snapshots.restore("then", "new", disk_only=True, key=KEY)


async def test_files_are_read_beside_the_loop(
    service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    member_of, threads = vault.member_of, set[threading.Thread]()

    def watched(name: str, fd: int) -> Any:
        threads.add(threading.current_thread())
        return member_of(name, fd)

    monkeypatch.setattr(vault, "member_of", watched)
    await run(service, name="web")
    await service.snapshots.create("web", name="then", key=KEY)
    assert threads
    assert threading.current_thread() not in threads


async def test_nothing_is_left_of_one_that_fails(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = await run(service, name="web")
    world.engine.fail_capture = error("engine_failed", "told to")
    await expect("engine_failed", service.snapshots.create("web", key=KEY))
    assert hidden() == []
    world.engine.fail_capture = None

    def broken(*_: object, **__: object) -> Iterator[bytes]:
        yield b"begun"
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hutch.service.vault.seal", broken)
        await expect("disk_full", service.snapshots.create("web", key=KEY))
    assert remains(world) == []
    assert not world.agent(info).frozen
    taken = await service.snapshots.create("web", name="then", key=KEY)
    world.engine.fail_clone = error("engine_failed", "told to", details={"template": True})
    await expect("snapshot_damaged", service.snapshots.restore("then", key=KEY))
    assert hidden() == []
    world.engine.fail_clone = None
    assert await names(service) == ["web"]
    assert (await service.snapshots.restore("then", key=KEY)).origin == taken.id


async def test_nothing_goes_back_to_one_without_its_key(service: HostService) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="then", key=KEY)

    async def open_it() -> None:
        async with service.snapshots.opened("then"):
            pass

    assert "restore it" in str((await expect("wrong_key", open_it())).hint)


async def test_several_are_restored_at_once(world: World, service: HostService) -> None:
    await run(service, name="web")
    await service.snapshots.create("web", name="then", key=KEY)
    async with asyncio.TaskGroup() as group:
        for name in ("one", "two", "three"):
            group.create_task(service.snapshots.restore("then", name, key=KEY))
    assert sorted(await names(service)) == ["one", "three", "two", "web"]
    assert all(world.engine.frozen_memory(frozen) == 0 for _, frozen in world.engine.cloned)


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.01, 0.03, 0.06, 0.1])
async def test_nothing_is_left_of_what_is_cancelled_at_any_moment(
    world: World, service: HostService, delay: float
) -> None:
    info = await run(service, name="web")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(service.snapshots.create("web", name="one", key=KEY), delay)
    assert not world.agent(info).frozen
    made = [each.id for each in await service.snapshots.list()]
    assert (remains(world), hidden()) == (made, [])
    taken = await service.snapshots.create("web", name="two", key=KEY)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(service.snapshots.restore("two", "new", key=KEY), delay)
    assert hidden() == []
    if "new" in await names(service):
        assert (await service.sandboxes.get("new")).state is SandboxState.RUNNING
        await service.sandboxes.remove("new", force=True)
    for each in await service.snapshots.list():
        await service.snapshots.remove(each.id)
    await service.sandboxes.remove("web", force=True)
    assert (remains(world), world.leftovers(), world.layers()) == ([], [], [])
    assert all(world.engine.frozen_memory(frozen) == 0 for frozen in world.engine.captured)
    assert taken.encrypted


@pytest.mark.parametrize("at", range(8))
async def test_a_daemon_that_dies_at_any_step(world: World, at: int) -> None:
    service = world.service()
    await service.__aenter__()
    await run(service, name="web")
    create = service.snapshots.create
    async with dying(service, at, lambda: create("web", name="one", key=KEY)) as finished:
        async with world.service() as after:
            found = [each.name for each in await after.snapshots.list()]
            assert found == (["one"] if finished else found)
            assert remains(world) == [each.id for each in await after.snapshots.list()]
            for name in found:
                restored = await after.snapshots.restore(name, "new", key=KEY)
                assert restored.state is SandboxState.RUNNING
                await after.sandboxes.remove("new", force=True)
                await after.snapshots.remove(name)
            await after.sandboxes.remove("web", force=True)
        assert (world.leftovers(), world.layers()) == ([], [])
