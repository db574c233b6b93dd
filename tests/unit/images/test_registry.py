"""Pulling: from a registry that works, from ones that do not, and from hostile ones."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.images import download, registry, transport
from hutch.images.base import no_report
from hutch.images.store import ImageStore
from hutch.models import PullPolicy
from tests.unit.images.conftest import MakeStore, left_over
from tests.unit.images.fake_registry import Answer, FakeRegistry, Request, serving
from tests.unit.images.making import MadeImage, Reports, entry, layer, sha256, simple_image


@pytest.fixture
async def server() -> AsyncIterator[FakeRegistry]:
    async with serving() as found:
        yield found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ranges and short waits."""
    monkeypatch.setattr(download, "RANGE", 64 << 10)
    monkeypatch.setattr(registry.Registry.__init__, "__kwdefaults__", {"backoff": 0.001})


@pytest.fixture
def pulling(server: FakeRegistry, make_store: MakeStore) -> ImageStore:
    return make_store(plain_http_registries=(server.name,), pull_parallel=4)


def big_image(size: int = 1 << 20) -> MadeImage:
    return MadeImage([layer(entry("noise", data=os.urandom(size)))], how="")


async def failing(store: ImageStore, server: FakeRegistry, code: str) -> HutchError:
    with pytest.raises(HutchError) as caught:
        await store.pull(f"{server.name}/test/app:1", no_report)
    assert caught.value.code == code
    assert await store.list() == []
    assert left_over(store._root.parent) == []
    return caught.value


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("how", ["gzip", "zstd", ""])
async def test_an_image_is_pulled(
    server: FakeRegistry, pulling: ImageStore, reports: Reports, index: bool, how: str
) -> None:
    made = simple_image(how=how)
    server.add(made, index=index)
    info = await pulling.pull(f"{server.name}/test/app:1", reports)
    assert info.id == made.id
    assert info.references == [f"{server.name}/test/app:1"]
    assert info.rootfs_size
    done = {p.id for p in reports if p.stage == "pull" and p.done == p.total}
    assert set(info.layers) <= done
    before = len(server.requests)
    await pulling.ensure(f"{server.name}/test/app:1", PullPolicy.MISSING, no_report)
    assert len(server.requests) == before
    await pulling.ensure(f"{server.name}/test/app:1", PullPolicy.ALWAYS, no_report)
    assert not any("/blobs/" in r.path for r in server.requests[before:])


async def test_by_digest_of_manifest_and_of_index(
    server: FakeRegistry, pulling: ImageStore
) -> None:
    made = simple_image()
    server.add(made, index=True)
    whole = sha256(server.manifests["1"][1])
    server.manifests[whole] = server.manifests["1"]
    for digest in (made.id, whole):
        image = await pulling.ensure(
            f"{server.name}/test/app@{digest}", PullPolicy.MISSING, no_report
        )
        assert image.id == made.id


async def test_a_large_blob_comes_in_parallel_ranges(
    server: FakeRegistry, pulling: ImageStore
) -> None:
    made = big_image()
    server.add(made)
    running, most = 0, 0
    gate = asyncio.Event()

    def count(request: Request) -> Answer | None:
        nonlocal running, most
        if request.range is None or request.range[0] == 0:
            return None
        running += 1
        most = max(most, running)
        if running >= 4:
            gate.set()
        answer = server.honest(request)
        answer.gate = gate
        return answer

    server.faults.append(count)
    assert (await pulling.pull(f"{server.name}/test/app:1", no_report)).id == made.id
    assert most >= 4
    ranges = sorted(r.range for r in server.blob_requests() if r.range)
    assert len(ranges) == len(set(ranges))


async def test_two_pulls_of_one_layer_fetch_it_once(
    server: FakeRegistry, pulling: ImageStore
) -> None:
    made = simple_image()
    server.add(made, "1")
    server.add(made, "2")
    async with asyncio.TaskGroup() as group:
        for tag in ("1", "2", "1", "2"):
            group.create_task(
                pulling.ensure(f"{server.name}/test/app:{tag}", PullPolicy.MISSING, no_report)
            )
    paths = [r.path for r in server.blob_requests()]
    assert len(paths) == len(set(paths)) == 2


async def test_cut_connections_are_taken_up_where_they_broke(
    server: FakeRegistry, pulling: ImageStore
) -> None:
    made = big_image()
    server.add(made)
    seen: set[str] = set()

    def cut(request: Request) -> Answer | None:
        key = request.path + request.headers.get("range", "")
        if "/blobs/" not in request.path or key in seen or len(seen) > 8:
            return None
        seen.add(key)
        answer = server.honest(request)
        answer.cut = len(answer.body) // 2
        return answer

    server.faults.append(cut)
    assert (await pulling.pull(f"{server.name}/test/app:1", no_report)).id == made.id
    blob = len(made.blobs[made.manifest["layers"][0]["digest"]])
    asked = sum(r.range[1] - r.range[0] + 1 for r in server.blob_requests() if r.range)
    assert asked < 2 * blob  # only what was missing was asked for again


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_passing_failures_are_tried_again(
    server: FakeRegistry, pulling: ImageStore, status: int
) -> None:
    server.add(simple_image())
    left = {"manifests": 3, "blobs": 3}

    def fail(request: Request) -> Answer | None:
        kind = request.path.split("/")[-2]
        left[kind] -= 1
        return Answer(status, headers={"Retry-After": "0"}) if left[kind] >= 0 else None

    server.faults.append(fail)
    assert (await pulling.pull(f"{server.name}/test/app:1", no_report)).references


async def test_lasting_failures_end(server: FakeRegistry, pulling: ImageStore) -> None:
    server.add(simple_image())
    server.faults.append(lambda request: Answer(503, headers={"Retry-After": "0"}))
    problem = await failing(pulling, server, "registry_failed")
    assert str(transport.ATTEMPTS) in problem.message
    assert len(server.requests) == transport.ATTEMPTS


async def test_a_registry_that_is_not_there(make_store: MakeStore) -> None:
    async with serving() as gone:
        name = gone.name
    store = make_store(plain_http_registries=(name,))
    with pytest.raises(HutchError) as caught:
        await store.pull(f"{name}/test/app:1", no_report)
    assert caught.value.code == "registry_failed"
    assert name in caught.value.message


async def test_an_unknown_image(server: FakeRegistry, pulling: ImageStore) -> None:
    problem = await failing(pulling, server, "image_not_found")
    assert "test/app:1" in problem.message


async def test_a_server_without_ranges_still_serves(
    server: FakeRegistry, pulling: ImageStore
) -> None:
    made = big_image(300_000)
    server.add(made)
    server.ranges = False
    assert (await pulling.pull(f"{server.name}/test/app:1", no_report)).id == made.id


async def test_wrong_ranges_are_refused(server: FakeRegistry, pulling: ImageStore) -> None:
    made = big_image()
    server.add(made)

    def shifted(request: Request) -> Answer | None:
        if request.range is None or request.range[0] == 0:
            return None
        answer = server.honest(request)
        answer.headers["Content-Range"] = "bytes 0-65535/1048576"
        return answer

    server.faults.append(shifted)
    problem = await failing(pulling, server, "registry_failed")
    assert "range" in problem.message


async def test_wrong_content_is_refused_and_not_kept(
    server: FakeRegistry, pulling: ImageStore, home: Path
) -> None:
    made = big_image()
    server.add(made)
    digest = made.manifest["layers"][0]["digest"]
    server.blobs[digest] = bytes(len(server.blobs[digest]))
    await failing(pulling, server, "digest_mismatch")
    assert not [p for p in (home / "images/partial").iterdir() if digest[7:] in p.name]
    assert len([r for r in server.blob_requests() if digest in r.path]) <= 2 * 17


async def test_a_blob_that_is_too_long_or_too_short(
    server: FakeRegistry, pulling: ImageStore
) -> None:
    made = simple_image()
    server.add(made)
    digest = made.manifest["layers"][0]["digest"]
    whole = server.blobs[digest]
    for body in (whole + b"more", whole[:-1]):
        server.faults[:] = [
            lambda request, body=body: Answer(200, body) if digest in request.path else None
        ]
        await failing(pulling, server, "registry_failed")


async def test_a_manifest_with_a_wrong_digest(server: FakeRegistry, pulling: ImageStore) -> None:
    made = simple_image()
    server.add(made, index=True)
    kind, body = server.manifests[made.id]
    server.manifests[made.id] = (kind, body + b" ")
    await failing(pulling, server, "digest_mismatch")


async def test_no_variant_for_this_machine(server: FakeRegistry, pulling: ImageStore) -> None:
    made = simple_image()
    index = made.index()
    index["manifests"] = index["manifests"][:1]
    server.manifests["1"] = (index["mediaType"], json.dumps(index).encode())
    problem = await failing(pulling, server, "no_platform")
    assert "linux/s390x" in problem.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[]",
        b'{"layers": 5}',
        b'{"schemaVersion": 1}',
        b'{"config": {}, "layers": []}',
    ],
)
async def test_nonsense_for_a_manifest(
    server: FakeRegistry, pulling: ImageStore, body: bytes
) -> None:
    server.manifests["1"] = ("application/vnd.oci.image.manifest.v1+json", body)
    await failing(pulling, server, "bad_image")


async def test_an_endless_manifest(server: FakeRegistry, pulling: ImageStore) -> None:
    server.manifests["1"] = ("application/vnd.oci.image.manifest.v1+json", b" " * (5 << 20))
    await failing(pulling, server, "bad_image")


async def test_a_wrong_diff_id(server: FakeRegistry, pulling: ImageStore) -> None:
    server.add(simple_image(diff_ids=["sha256:" + "7" * 64]))
    await failing(pulling, server, "digest_mismatch")


async def test_redirects_get_no_credentials(
    server: FakeRegistry, pulling: ImageStore, tmp_path: Path
) -> None:
    (tmp_path / "docker").mkdir()
    auths = {server.name: {"username": "me", "password": "secret"}}
    (tmp_path / "docker/config.json").write_text(json.dumps({"auths": auths}))
    made = big_image()
    server.add(made)

    def guarded(request: Request) -> Answer | None:
        if "authorization" not in request.headers:
            return Answer(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        if "/blobs/" in request.path:
            return Answer(307, headers={"Location": f"http://{storage.name}{request.path}?signed"})
        return None

    async with serving() as storage:
        storage.blobs = {f"{digest}?signed": body for digest, body in made.blobs.items()}
        server.faults.append(guarded)
        assert (await pulling.pull(f"{server.name}/test/app:1", no_report)).id == made.id
        assert storage.requests
        assert not any("authorization" in r.headers for r in storage.requests)


async def test_redirects_without_end(server: FakeRegistry, pulling: ImageStore) -> None:
    server.faults.append(lambda request: Answer(307, headers={"Location": request.path}))
    await failing(pulling, server, "registry_failed")


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://example.org/x", ""])
async def test_redirects_to_elsewhere(
    server: FakeRegistry, pulling: ImageStore, location: str
) -> None:
    server.faults.append(lambda request: Answer(307, headers={"Location": location}))
    await failing(pulling, server, "registry_failed")


async def test_a_mirror_is_asked_first_and_may_fail(make_store: MakeStore) -> None:
    made = big_image()
    async with serving() as mirror, serving() as origin:
        origin.add(made)
        mirror.add(made)
        store = make_store(
            plain_http_registries=(mirror.name, origin.name),
            registry_mirrors=(f"{origin.name}={mirror.name}",),
        )
        await store.pull(f"{origin.name}/test/app:1", no_report)
        assert origin.requests == []
        await store.remove(made.id)
        mirror.faults.append(lambda r: Answer(404) if (r.range or (0, 0))[0] > 0 else None)
        assert (await store.pull(f"{origin.name}/test/app:1", no_report)).id == made.id
        assert origin.blob_requests()
        assert not any("/manifests/" in r.path for r in origin.requests)


async def test_a_killed_pull_goes_on(
    server: FakeRegistry, pulling: ImageStore, make_store: MakeStore
) -> None:
    made = big_image()
    server.add(made)
    digest = made.manifest["layers"][0]["digest"]
    never = asyncio.Event()
    half = asyncio.Event()

    def stall(request: Request) -> Answer | None:
        if request.range is None or request.range[0] < 512 << 10:
            return None
        half.set()
        answer = server.honest(request)
        answer.gate = never
        return answer

    server.faults.append(stall)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(pulling.pull(f"{server.name}/test/app:1", no_report))
        await half.wait()
        task.cancel()
    server.faults.clear()
    server.requests.clear()
    again = make_store(plain_http_registries=(server.name,))
    assert await again.list() == []
    reports = Reports()
    assert (await again.pull(f"{server.name}/test/app:1", reports)).id == made.id
    asked = sum(r.range[1] - r.range[0] + 1 for r in server.blob_requests() if r.range)
    assert 0 < asked <= len(made.blobs[digest]) - (256 << 10)


async def test_a_record_that_lies_is_found_out(
    server: FakeRegistry, pulling: ImageStore, home: Path
) -> None:
    made = big_image()
    server.add(made)
    digest = made.manifest["layers"][0]["digest"]
    size = len(made.blobs[digest])
    partial = home / "images/partial"
    partial.mkdir(parents=True)
    stem = digest.replace(":", "-")
    (partial / f"{stem}.part").write_bytes(bytes(size))
    (partial / f"{stem}.json").write_text(json.dumps({"done": [[0, size // 2]]}))
    assert (await pulling.pull(f"{server.name}/test/app:1", no_report)).id == made.id


async def test_prune_drops_unfinished_downloads(pulling: ImageStore, home: Path) -> None:
    await pulling.list()
    part = home / "images/partial/sha256-00.part"
    part.write_bytes(b"x" * 5000)
    assert (await pulling.prune()).bytes >= 5000
    assert not part.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
async def test_a_full_disk_is_said(server: FakeRegistry, pulling: ImageStore, home: Path) -> None:
    made = big_image(8 << 20)
    server.add(made)
    home.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(home)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode != 0:
        pytest.skip("cannot mount here")
    try:
        await failing(pulling, server, "disk_full")
    finally:
        subprocess.run(["umount", str(home)], check=True)
