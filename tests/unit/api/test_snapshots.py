"""The routes of snapshots and forks, and what the SDK makes of them."""

from pathlib import Path

import pytest
from fastapi import Request

from hutch.api.snapshots import KEY_OPTIONAL, key_of
from hutch.errors import Conflict, InvalidInput, NotFound
from hutch.models import SandboxSpec, SnapshotKind
from hutch.sdk import AsyncClient, AsyncSandbox
from hutch.sdk.aio.transport import each
from hutch.sdk.http1 import key_header
from tests.unit.api.contract import ask, refused

BASE = "/v1/snapshots"


async def test_the_routes(api: str) -> None:
    await ask(api, "POST", "/v1/sandboxes", json={"image": "busybox", "name": "web"}, status=201)
    taken = await ask(api, "POST", BASE, json={"sandbox": "web", "name": "one"}, status=201)
    assert (await ask(api, "GET", BASE))[0] == taken
    assert await ask(api, "GET", BASE, {"sandbox": "other"}) == []
    assert (await ask(api, "GET", f"{BASE}/one"))["id"] == taken["id"]
    restored = await ask(api, "POST", f"{BASE}/one/restore", json={"name": "again"}, status=201)
    assert (restored["name"], restored["origin"]) == ("again", taken["id"])
    forked = await ask(
        api, "POST", "/v1/sandboxes/web/fork", json={"names": ["a", "bad"]}, status=201
    )
    assert [child["name"] for child in forked["children"]] == ["a"]
    assert forked["failed"][0]["error"]["code"] == "no_capacity"
    assert (await ask(api, "POST", f"{BASE}/gc", json={"keep": 1}))["removed"] == []
    assert (await ask(api, "DELETE", f"{BASE}/one"))["removed"] == [taken["id"]]
    assert (await refused(api, "GET", f"{BASE}/one")).code == "snapshot_not_found"
    assert (await refused(api, "POST", f"{BASE}/gc", json={})).code == "bad_request"


async def test_the_sdk(api: str) -> None:
    async with AsyncClient(socket=api) as client:
        await client.create(SandboxSpec("busybox", name="web", idle=True))
        box = await AsyncSandbox.connect("web", client=client)
        taken = await box.snapshot("one")
        disk = await client.snapshots.create("web", disk_only=True, freeze=False)
        assert (taken.kind, disk.kind) == (SnapshotKind.FULL, SnapshotKind.DISK)
        with pytest.raises(InvalidInput):
            await client.snapshots.create("web", freeze=False)
        assert await client.snapshots.list("web") == [taken, disk]
        assert await client.snapshots.get("one") == taken
        assert (await client.snapshots.restore("one", "again")).origin == taken.id
        children = await box.fork(["left"], count=2)
        assert [child.name for child in children] == ["left", "web-1"]
        forked = await client.fork("web", ["bad", "good"])
        assert [failure.name for failure in forked.failed] == ["bad"]
        assert (await client.snapshots.collect(1)).removed == [taken.id]
        await client.snapshots.remove(disk.id)
        with pytest.raises(NotFound):
            await client.snapshots.remove(disk.id)


async def test_a_snapshot_travels_as_a_file(api: str, tmp_path: Path) -> None:
    async with AsyncClient(socket=api) as client:
        await client.create(SandboxSpec("busybox", name="web", idle=True))
        await client.snapshots.create("web", name="one")
        size = await client.snapshots.export("one", tmp_path)
        file = tmp_path / "one.hutch"
        assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"hutch one", 0o600)
        assert size == 9
        came = await client.snapshots.load(file, name="two")
        assert came.name == "two"
        with pytest.raises(NotFound):
            await client.snapshots.export("gone", tmp_path / "gone")
        with pytest.raises(Conflict) as caught:
            await client.snapshots.load(each([b"no snapshot"]))
        assert caught.value.code == "snapshot_damaged"
    assert [path.name for path in tmp_path.iterdir()] == ["one.hutch"]


async def test_a_key_comes_in_a_header(api: str, tmp_path: Path) -> None:
    file = tmp_path / "one.hutch"
    async with AsyncClient(socket=api) as client:
        await client.create(SandboxSpec("busybox", name="web", idle=True))
        await client.snapshots.create("web", name="one")
        await client.snapshots.export("one", file, key="a key of mine")
        assert file.read_bytes() == b"sealed one"
        with pytest.raises(InvalidInput) as caught:
            await client.snapshots.load(file)
        assert (caught.value.code, caught.value.status) == ("wrong_key", 403)
        came = await client.snapshots.load(file, name="two", key=b"\xff a key of bytes")
        assert came.name == "two"
        with pytest.raises(InvalidInput, match="8 to 4096 bytes"):
            await client.snapshots.export("one", file, key="short")
    assert (await refused(api, "GET", f"{BASE}/one/export", {"encrypt": True})).code == "wrong_key"


async def test_a_key_that_nothing_is_done_with_is_refused(api: str) -> None:
    headers = key_header("a key of mine")
    async with AsyncClient(socket=api) as client:
        await client.create(SandboxSpec("busybox", name="web", idle=True))
        await client.snapshots.create("web", name="one")
        for method, path, json in (
            ("POST", BASE, {"sandbox": "web"}),
            ("GET", f"{BASE}/one/export", None),
        ):
            with pytest.raises(InvalidInput) as caught:
                await client.transport.request(method, path, json=json, headers=headers)
            assert caught.value.code == "bad_request"
        assert [info.name for info in await client.snapshots.list()] == ["one"]


@pytest.mark.parametrize("optional", [False, True])
def test_a_key_may_be_optional(optional: bool) -> None:
    given = key_header("a key of mine") | ({KEY_OPTIONAL: "1"} if optional else {})
    headers = [(name.encode(), value.encode()) for name, value in given.items()]
    key = key_of(Request({"type": "http", "headers": headers}))
    assert key is not None
    assert key.optional is optional


async def test_a_snapshot_encrypted_at_rest(api: str) -> None:
    key = "a key of mine"
    async with AsyncClient(socket=api) as client:
        await client.create(SandboxSpec("busybox", name="web", idle=True))
        taken = await client.snapshots.create("web", name="one", key=key)
        assert taken.encrypted
        assert not (await client.snapshots.create("web", name="two")).encrypted
        with pytest.raises(InvalidInput) as caught:
            await client.snapshots.restore("one")
        assert caught.value.code == "wrong_key"
        assert (await client.snapshots.restore("one", "again", key=key)).origin == taken.id
    body = {"sandbox": "web", "encrypt": True}
    assert (await refused(api, "POST", BASE, json=body)).code == "wrong_key"
