"""The store as the service uses it."""

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.images import builtin
from hutch.images.base import no_report
from hutch.images.store import ImageStore
from hutch.models import PullPolicy
from tests.unit.images.conftest import MakeStore, left_over
from tests.unit.images.making import MadeImage, Reports, entry, layer, simple_image

NAME = "example.org/made:1"


async def test_busybox_is_made_once(
    store: ImageStore, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    make_layer = builtin.make_layer

    async def counted(name: str, target: Path) -> float:
        calls.append(name)
        return await make_layer(name, target)

    monkeypatch.setattr(builtin, "make_layer", counted)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(store.ensure("busybox", PullPolicy.MISSING, reports))
            for _ in range(5)
        ]
    images = {task.result().id for task in tasks}
    assert len(images) == 1
    assert calls == ["busybox"]
    image = tasks[0].result()
    assert image.config.command == ["sh"]
    assert image.rootfs.path.is_file()
    assert store.rootfs_path(image.id) == image.rootfs
    assert (await store.inspect("busybox")).references == ["busybox"]


async def test_busybox_stays_the_same_while_the_hosts_does(store: ImageStore) -> None:
    first = await store.ensure("busybox", PullPolicy.ALWAYS, no_report)
    assert (await store.ensure("busybox", PullPolicy.ALWAYS, no_report)).id == first.id


async def test_an_image_is_found_by_reference_id_and_prefix(
    store: ImageStore, tmp_path: Path
) -> None:
    made = simple_image()
    [info] = await store.load(made.write_layout(tmp_path / "in"), no_report)
    assert info.id == made.id
    assert info.references == [NAME]
    for text in (NAME, made.id, made.id[7:], made.id[:19], made.id[7:13]):
        assert (await store.inspect(text)).id == made.id
        assert (await store.ensure(text, PullPolicy.NEVER, no_report)).id == made.id
    with pytest.raises(HutchError) as caught:
        await store.ensure("sha256:" + "1" * 64, PullPolicy.ALWAYS, no_report)
    assert caught.value.code == "image_not_found"
    for text in ("example.org/made:2", "sha256:" + "1" * 64, "ffffff0123"):
        with pytest.raises(HutchError) as caught:
            await store.inspect(text)
        assert caught.value.code == "image_not_found"
    with pytest.raises(HutchError) as caught:
        await store.inspect("not A reference")
    assert caught.value.code == "bad_reference"


async def test_never_pulling_says_so(store: ImageStore) -> None:
    with pytest.raises(HutchError) as caught:
        await store.ensure("example.org/none:1", PullPolicy.NEVER, no_report)
    assert caught.value.code == "image_not_found"


async def test_removing_drops_the_content_with_the_last_name(
    store: ImageStore, home: Path, tmp_path: Path
) -> None:
    path = simple_image().write_layout(tmp_path / "in")
    await store.load(path, no_report)
    await store.load(path, no_report, tag="example.org/other:2")
    assert [i.references for i in await store.list()] == [[NAME, "example.org/other:2"]]
    removed = await store.remove(NAME)
    assert (removed.removed, removed.bytes) == ([NAME], 0)
    removed = await store.remove("example.org/other:2")
    assert removed.bytes > 0
    assert await store.list() == []
    assert left_over(home) == []


async def test_removing_by_id_drops_all_names(
    store: ImageStore, home: Path, tmp_path: Path
) -> None:
    made = simple_image()
    path = made.write_layout(tmp_path / "in")
    await store.load(path, no_report)
    await store.load(path, no_report, tag="example.org/other:2")
    removed = await store.remove(made.id)
    assert removed.removed == [NAME, "example.org/other:2"]
    assert left_over(home) == []


async def test_a_used_image_stays(store: ImageStore, tmp_path: Path) -> None:
    made = simple_image()
    await store.load(made.write_layout(tmp_path / "in"), no_report)
    with pytest.raises(HutchError) as caught:
        await store.remove(NAME, used=[made.id])
    assert caught.value.code == "in_use"
    await store.remove(NAME, used=[made.id], force=True)
    assert store.rootfs_path(made.id) is not None
    [nameless] = await store.list()
    assert nameless.references == []
    assert (await store.prune(used=[made.id])).bytes == 0
    assert (await store.prune()).bytes > 0
    assert store.rootfs_path(made.id) is None


async def test_shared_layers_survive_the_other_image(store: ImageStore, tmp_path: Path) -> None:
    base = layer(entry("base", data=b"b" * 1000))
    one = MadeImage([base])
    two = MadeImage([base, layer(entry("more", data=b"m"))])
    await store.load(one.write_layout(tmp_path / "1", "example.org/a:1"), no_report)
    await store.load(two.write_layout(tmp_path / "2", "example.org/b:1"), no_report)
    await store.remove("example.org/b:1")
    shutil.rmtree(store._rootfs)  # so that ensuring it needs the shared layer
    store._rootfs.mkdir()
    assert (await store.ensure("example.org/a:1", PullPolicy.NEVER, no_report)).id == one.id


async def test_prune_of_everything_spares_what_is_used(store: ImageStore, tmp_path: Path) -> None:
    used, unused = simple_image(b"used"), simple_image(b"unused")
    await store.load(used.write_layout(tmp_path / "1", "example.org/a:1"), no_report)
    await store.load(unused.write_layout(tmp_path / "2", "example.org/b:1"), no_report)
    assert (await store.prune()).removed == []
    removed = await store.prune(used=[used.id], everything=True)
    assert removed.removed == ["example.org/b:1"]
    assert [i.id for i in await store.list()] == [used.id]


async def test_prune_drops_root_file_systems_without_an_image(
    store: ImageStore, home: Path
) -> None:
    await store.list()
    used, stray = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    for image_id in (used, stray):
        (home / "images/rootfs" / f"{image_id[7:]}-1.squashfs").write_bytes(b"x" * 5000)
    assert (await store.prune(used=[used])).bytes >= 5000
    assert store.rootfs_path(used) is not None
    assert store.rootfs_path(stray) is None


async def test_one_damaged_image_does_not_hide_the_others(
    store: ImageStore, home: Path, tmp_path: Path
) -> None:
    good, bad = simple_image(b"good"), simple_image(b"bad")
    await store.load(good.write_layout(tmp_path / "1", "example.org/a:1"), no_report)
    await store.load(bad.write_layout(tmp_path / "2", "example.org/b:1"), no_report)
    (home / "images/oci/blobs" / bad.id.replace(":", "/")).unlink()
    assert [i.id for i in await store.list()] == [good.id]
    await store.prune()
    assert (await store.remove("example.org/b:1")).removed == ["example.org/b:1"]


async def test_a_moved_tag_leaves_the_old_image_nameless(store: ImageStore, tmp_path: Path) -> None:
    old, new = simple_image(b"old"), simple_image(b"new")
    await store.load(old.write_layout(tmp_path / "1"), no_report)
    await store.load(new.write_layout(tmp_path / "2"), no_report)
    assert [(i.id, i.references) for i in await store.list()] == [(new.id, [NAME]), (old.id, [])]
    assert (await store.prune()).removed == [old.id]


async def test_config_is_honoured_and_recorded(store: ImageStore, tmp_path: Path) -> None:
    made = simple_image(
        run={
            "Entrypoint": ["/bin/app"], "Cmd": ["-v"], "Env": ["A=1=2", "B="], "WorkingDir": "/srv",
            "User": "1000:10", "StopSignal": "SIGINT", "Volumes": {"/data": {}},
            "ExposedPorts": {"80/tcp": {}}, "Labels": {"k": "v"},
        }
    )  # fmt: skip
    [info] = await store.load(made.write_layout(tmp_path / "in"), no_report)
    run = info.config
    assert (run.entrypoint, run.command, run.env) == (["/bin/app"], ["-v"], {"A": "1=2", "B": ""})
    assert (run.workdir, run.user, run.stop_signal) == ("/srv", "1000:10", "SIGINT")
    assert (run.volumes, run.exposed_ports, run.labels) == (["/data"], ["80/tcp"], {"k": "v"})


async def test_a_hostile_layer_leaves_nothing(
    store: ImageStore, home: Path, tmp_path: Path
) -> None:
    made = MadeImage([layer(entry("../../evil", data=b""))])
    with pytest.raises(HutchError) as caught:
        await store.load(made.write_layout(tmp_path / "in"), no_report)
    assert caught.value.code == "bad_image"
    assert await store.list() == []
    assert left_over(home) == []


async def test_an_image_of_another_machine_is_refused(store: ImageStore, tmp_path: Path) -> None:
    made = simple_image(architecture="s390x")
    with pytest.raises(HutchError) as caught:
        await store.load(made.write_layout(tmp_path / "in"), no_report)
    assert caught.value.code == "no_platform"


async def test_a_restart_finds_all_and_sweeps_what_was_half_done(
    make_store: MakeStore, home: Path, tmp_path: Path
) -> None:
    await make_store().load(simple_image().write_layout(tmp_path / "in"), no_report)
    (home / "images/oci/tmp/half").mkdir()
    (home / "images/oci/tmp/half/blob").write_bytes(b"x")
    (home / "images/rootfs/.new-x.squashfs").write_bytes(b"x")
    again = make_store()
    assert len(await again.list()) == 1
    assert not list((home / "images/oci/tmp").iterdir())
    assert not list((home / "images/rootfs").glob(".new-*"))


async def test_an_own_name_cannot_be_a_builtin(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(HutchError) as caught:
        await store.load(tmp_path, no_report, tag="busybox")
    assert caught.value.code == "bad_reference"


async def test_another_tool_reads_and_writes_the_layout(
    store: ImageStore, home: Path, tmp_path: Path
) -> None:
    image = await store.ensure("busybox", PullPolicy.MISSING, no_report)
    oci = home / "images/oci"
    shown = subprocess.run(
        ["skopeo", "inspect", f"oci:{oci}:busybox"], check=True, capture_output=True
    )
    assert json.loads(shown.stdout)["Digest"] == image.id
    other = simple_image().write_layout(tmp_path / "in", "one")
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", f"oci:{other}:one", f"oci:{oci}:example.org/x:1"],
        check=True, capture_output=True,
    )  # fmt: skip
    assert (await store.ensure("example.org/x:1", PullPolicy.NEVER, no_report)).rootfs.size > 0
    assert {i.references[0] for i in await store.list()} == {"busybox", "example.org/x:1"}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
async def test_a_full_disk_is_said_and_leaves_nothing(
    make_store: MakeStore, home: Path, tmp_path: Path
) -> None:
    home.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(home)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode != 0:
        pytest.skip("cannot mount here")
    try:
        store = make_store()
        made = MadeImage([layer(entry("f", data=os.urandom(8 << 20)))])
        with pytest.raises(HutchError) as caught:
            await store.load(made.write_layout(tmp_path / "in"), no_report)
        assert caught.value.code == "disk_full"
        assert left_over(home) == []
    finally:
        subprocess.run(["umount", str(home)], check=True)


async def test_a_root_without_an_image_stays_while_it_is_used(
    store: ImageStore, make_store: MakeStore, tmp_path: Path
) -> None:
    real = await store.ensure("busybox", PullPolicy.MISSING, no_report)
    (tmp_path / "root").write_bytes(b"a root")
    adopted = store.adopt_rootfs(tmp_path / "root", "squashfs", "sha256:of-it")
    assert adopted != real.id
    found = store.rootfs_path(adopted)
    assert found is not None
    assert (found.path.read_bytes(), found.fstype) == (b"a root", "squashfs")
    (tmp_path / "root").write_bytes(b"a root")
    assert store.adopt_rootfs(tmp_path / "root", "squashfs", "sha256:of-it") == adopted
    with pytest.raises(ValueError, match="no kind"):
        store.adopt_rootfs(tmp_path / "root", "../x", "sha256:of-it")
    again = make_store()
    await again.prune(used=[adopted], everything=True)
    assert again.rootfs_path(adopted) == found
    await again.prune()
    assert again.rootfs_path(adopted) is None
