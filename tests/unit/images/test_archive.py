"""Imports: archives and directories of other tools, broken ones and hostile ones."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hutch.errors import HutchError
from hutch.images.base import no_report
from hutch.images.store import ImageStore
from hutch.models import PullPolicy
from tests.unit.images.conftest import left_over
from tests.unit.images.making import MadeImage, compress, entry, layer, simple_image


async def refused(store: ImageStore, path: Path, *codes: str, **options: Any) -> HutchError:
    with pytest.raises(HutchError) as caught:
        await store.load(path, no_report, **options)
    assert caught.value.code in codes
    assert await store.list() == []
    assert left_over(store._root.parent) == []
    return caught.value


@pytest.mark.parametrize("how", ["", "gzip", "zstd"])
async def test_docker_save(store: ImageStore, tmp_path: Path, how: str) -> None:
    body = layer(entry("a", data=b"1"))
    made = MadeImage([body, layer(entry("b", data=b"2")), body], how="")
    path = made.write_docker_archive(tmp_path / "saved.tar", ["made:1", "example.org/also:2"])
    path.write_bytes(compress(path.read_bytes(), how))
    [info] = await store.load(path, no_report)
    assert info.references == ["docker.io/library/made:1", "example.org/also:2"]
    assert len(info.layers) == 3
    assert (await store.ensure("made:1", PullPolicy.NEVER, no_report)).id == info.id


async def test_an_untagged_archive_goes_by_its_id_or_a_given_name(
    store: ImageStore, tmp_path: Path
) -> None:
    path = simple_image(how="").write_docker_archive(tmp_path / "saved.tar", [])
    [info] = await store.load(path, no_report)
    assert info.references == []
    assert (await store.inspect(info.id)).id == info.id
    [info] = await store.load(path, no_report, tag="localhost/mine")
    assert info.references == ["localhost/mine:latest"]
    assert len(await store.list()) == 1


async def test_an_oci_layout_directory_stays_as_it_is(store: ImageStore, tmp_path: Path) -> None:
    made = simple_image()
    path = made.write_layout(tmp_path / "in")
    before = sorted(p.relative_to(path) for p in path.rglob("*"))
    [info] = await store.load(path, no_report)
    assert info.id == made.id
    assert sorted(p.relative_to(path) for p in path.rglob("*")) == before


async def test_an_index_is_followed_to_this_machine(store: ImageStore, tmp_path: Path) -> None:
    made = simple_image()
    body = json.dumps(made.index()).encode()
    made.descriptor = made.add(body, made.index()["mediaType"])
    [info] = await store.load(made.write_layout(tmp_path / "in"), no_report)
    assert info.id in made.blobs
    assert info.references == ["example.org/made:1"]


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
async def test_what_skopeo_writes(store: ImageStore, tmp_path: Path, kind: str) -> None:
    layout = simple_image().write_layout(tmp_path / "in", "one")
    target = f"{kind}:{tmp_path / 'out.tar'}:example.org/there:1"
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", f"oci:{layout}:one", target],
        check=True, capture_output=True,
    )  # fmt: skip
    [info] = await store.load(tmp_path / "out.tar", no_report)
    assert info.references == ["example.org/there:1"]
    assert info.rootfs_size


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("how", ["", "gzip", "zstd"])
async def test_truncated_archives(
    store: ImageStore, tmp_path: Path, share: float, how: str
) -> None:
    made = MadeImage([layer(entry("noise", data=os.urandom(200_000)))], how="")
    path = made.write_docker_archive(tmp_path / "saved.tar")
    body = compress(path.read_bytes(), how)
    path.write_bytes(body[: int(len(body) * share)])
    await refused(store, path, "bad_image")


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.pop("manifest.json"),
        lambda files: files.pop("config.json"),
        lambda files: files.pop("0/layer.tar"),
        lambda files: files.update({"manifest.json": b"nonsense"}),
        lambda files: files.update({"manifest.json": b"[]"}),
        lambda files: files.update({"manifest.json": b'[{"Config": 5}]'}),
        lambda files: files.update({"manifest.json": b'[{"Config": "config.json", "Layers": []}]'}),
        lambda files: files.update({"manifest.json": b"[" * 100_000}),
        lambda files: files.update({"config.json": b"{}"}),
    ],
)
async def test_malformed_archives(store: ImageStore, tmp_path: Path, change) -> None:
    made = simple_image(how="")
    files = {
        "config.json": made.blobs[made.manifest["config"]["digest"]],
        "0/layer.tar": made.layers[0],
        "manifest.json": json.dumps(
            [{"Config": "config.json", "Layers": ["0/layer.tar"]}]
        ).encode(),
    }
    change(files)
    path = tmp_path / "saved.tar"
    path.write_bytes(layer(*(entry(name, data=data) for name, data in files.items())))
    await refused(store, path, "bad_image")


async def test_a_changed_layer(store: ImageStore, tmp_path: Path) -> None:
    made = simple_image(how="", diff_ids=["sha256:" + "5" * 64])
    await refused(store, made.write_docker_archive(tmp_path / "saved.tar"), "digest_mismatch")


async def test_a_changed_blob(store: ImageStore, tmp_path: Path) -> None:
    made = simple_image()
    path = made.write_layout(tmp_path / "in")
    blob = path / "blobs" / made.manifest["layers"][0]["digest"].replace(":", "/")
    body = blob.read_bytes()
    blob.write_bytes(body[:-1] + b"?")
    await refused(store, path, "digest_mismatch")
    blob.write_bytes(body + b"?")
    await refused(store, path, "bad_image")
    blob.unlink()
    await refused(store, path, "bad_image")


async def test_links_cannot_reach_files_of_the_host(store: ImageStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"top secret")
    made = simple_image(how="")
    config = made.blobs[made.manifest["config"]["digest"]]
    for kind in ("symlink", "link"):
        listed = [{"Config": "config.json", "Layers": ["0/layer.tar"]}]
        path = tmp_path / f"{kind}.tar"
        path.write_bytes(
            layer(
                entry("config.json", data=config),
                entry("0/layer.tar", kind, linkname=str(secret)),
                entry("manifest.json", data=json.dumps(listed).encode()),
            )
        )
        await refused(store, path, "bad_image")
    layout = made.write_layout(tmp_path / "in")
    blob = layout / "blobs" / made.manifest["layers"][0]["digest"].replace(":", "/")
    blob.unlink()
    blob.symlink_to(secret)
    await refused(store, layout, "bad_image")


async def test_names_cannot_leave_the_scratch_directory(
    store: ImageStore, home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "evil.tar"
    path.write_bytes(layer(entry("../../../../evil", data=b"!"), entry("/abs/evil", data=b"!")))
    await refused(store, path, "bad_image")
    assert not list(home.rglob("*evil*"))
    assert not (tmp_path / "evil").exists()


async def test_link_loops_end(store: ImageStore, tmp_path: Path) -> None:
    path = tmp_path / "loop.tar"
    path.write_bytes(
        layer(
            entry("x", data=b""),
            entry("manifest.json", "symlink", linkname="other"),
            entry("other", "symlink", linkname="manifest.json"),
        )
    )
    await refused(store, path, "bad_image")


async def test_what_is_no_archive(store: ImageStore, tmp_path: Path) -> None:
    await refused(store, tmp_path / "missing", "image_not_found")
    (tmp_path / "text").write_text("hello" * 1000)
    await refused(store, tmp_path / "text", "bad_image")
    (tmp_path / "empty").mkdir()
    await refused(store, tmp_path / "empty", "bad_image")


async def test_one_name_cannot_stand_for_two_images(store: ImageStore, tmp_path: Path) -> None:
    one, two = simple_image(b"1"), simple_image(b"2")
    path = one.write_layout(tmp_path / "in", "example.org/a:1")
    for digest, body in two.blobs.items():
        (path / "blobs" / digest.replace(":", "/")).write_bytes(body)
    index = json.loads((path / "index.json").read_text())
    index["manifests"].append(two.descriptor)
    (path / "index.json").write_text(json.dumps(index))
    await refused(store, path, "bad_request", tag="localhost/x")
    assert len(await store.load(path, no_report)) == 2
