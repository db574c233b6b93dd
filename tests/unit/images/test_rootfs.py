"""Root file systems, read back by a program of another author than their builder's."""

import asyncio
import os
import stat
import subprocess
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.images import rootfs
from hutch.images.base import no_report
from hutch.images.layers import Layer
from tests.unit.images.making import Reports, entry, layer, sha256

ID = "sha256:" + "ab" * 32
CAPABILITY = b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12)

WHOLE = (
    layer(
        entry(".", "dir", mode=0o755),
        entry("dev", "dir"),
        entry("dev/null", "char", mode=0o666, devmajor=1, devminor=3),
        entry("dev/sda1", "block", mode=0o660, gid=6, devmajor=8, devminor=1),
        entry("pipe", "fifo", mode=0o600),
        entry("etc", "dir", mode=0o755),
        entry("etc/shadow", data=b"root:*:", mode=0o640, gid=42),
        entry("etc/doomed", data=b"x"),
        entry("bin", "dir"),
        entry("bin/su", data=b"su", mode=0o4755, mtime=1700000000),
        entry("bin/ping", data=b"ping", mode=0o755, xattrs={"security.capability": CAPABILITY}),
        entry("bin/shared", data=b"hard" * 5000),
        entry("home", "dir"),
        entry("home/me", "dir", mode=0o700, uid=1000, gid=1000),
        entry("home/huge", data=b"", uid=4000000000, gid=4000000000),
        entry("tmp", "dir", mode=0o1777),
        entry("opq", "dir"),
        entry("opq/old", data=b"x"),
        entry("sh", "symlink", linkname="/bin/su"),
    ),
    layer(
        entry("etc/.wh.doomed", data=b""),
        entry("opq/.wh..wh..opq", data=b""),
        entry("opq/new", data=b"n"),
        entry("bin/again", "link", linkname="bin/shared"),
        entry("bin/data", data=b"", xattrs={"user.blob": bytes(range(256))}),
    ),
)


def as_layers(directory: Path, bodies: tuple[bytes, ...]) -> list[Layer]:
    found = []
    for number, body in enumerate(bodies):
        path = directory / f"layer{number}"
        path.write_bytes(body)
        found.append(Layer(path, sha256(body), 1 << 30))
    return found


def listing(path: Path) -> dict[str, str]:
    """Return `kind mode uid gid …` by name."""
    shown = subprocess.run(["rdsquashfs", "-d", str(path)], check=True, capture_output=True)
    found = {}
    for line in shown.stdout.decode().splitlines():
        kind, name, *rest = line.split()
        found[name] = " ".join((kind, *rest))
    return found


def content(path: Path, name: str) -> bytes:
    return subprocess.run(
        ["rdsquashfs", "-c", name, str(path)], check=True, capture_output=True
    ).stdout


def check_whole(path: Path) -> None:
    found = listing(path)
    assert found["dev/null"] == "nod 0666 0 0 c 1 3"
    assert found["dev/sda1"] == "nod 0660 0 6 b 8 1"
    assert found["pipe"] == "pipe 0600 0 0"
    assert found["etc/shadow"] == "file 0640 0 42"
    assert found["bin/su"] == "file 04755 0 0"
    assert found["sh"] == "slink 0777 0 0 /bin/su"
    assert found["home/me"] == "dir 0700 1000 1000"
    assert found["home/huge"] == "file 0644 4000000000 4000000000"
    assert found["tmp"] == "dir 01777 0 0"
    assert "opq/new" in found
    assert not {"etc/doomed", "opq/old", "opq/.wh..wh..opq", "etc/.wh.doomed"} & set(found)
    assert content(path, "bin/again") == content(path, "bin/shared") == b"hard" * 5000


async def test_everything_of_an_image_survives(tmp_path: Path, reports: Reports) -> None:
    built = await rootfs.build(tmp_path, ID, as_layers(tmp_path, WHOLE), reports)
    assert built == rootfs.find(tmp_path, ID)
    assert built.size == built.path.stat().st_size
    check_whole(built.path)
    assert reports[-1].message == "done"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
async def test_a_kernel_sees_the_same(tmp_path: Path) -> None:
    built = await rootfs.build(tmp_path, ID, as_layers(tmp_path, WHOLE), no_report)
    out = tmp_path / "mounted"
    out.mkdir()
    mounted = subprocess.run(
        ["mount", "-o", "loop,ro", str(built.path), str(out)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode != 0:
        pytest.skip("this kernel mounts no squashfs")
    try:
        assert os.getxattr(out / "bin/ping", "security.capability") == CAPABILITY
        assert os.getxattr(out / "bin/data", "user.blob") == bytes(range(256))
        again, shared = os.stat(out / "bin/again"), os.stat(out / "bin/shared")
        assert (again.st_ino, again.st_nlink, again.st_size) == (shared.st_ino, 2, 20000)
        assert (out / "bin/again").read_bytes() == b"hard" * 5000
        su = os.stat(out / "bin/su")
        assert (stat.S_IMODE(su.st_mode), su.st_mtime) == (0o4755, 1700000000)
        null = os.stat(out / "dev/null")
        assert stat.S_ISCHR(null.st_mode)
        assert null.st_rdev == os.makedev(1, 3)
        assert os.stat(out / "home/huge").st_uid == 4000000000
    finally:
        subprocess.run(["umount", str(out)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become nobody")
async def test_it_is_the_same_when_built_by_nobody(short_tmp: Path) -> None:
    as_root = await rootfs.build(short_tmp, ID, as_layers(short_tmp, WHOLE), no_report)
    ours = listing(as_root.path)
    work = short_tmp / "nobody"
    work.mkdir()
    os.chmod(short_tmp, 0o755)
    as_layers(work, WHOLE)
    for path in (work, *work.iterdir()):
        os.chown(path, 65534, 65534)
    pid = os.fork()
    if pid == 0:  # a child of our own, since it must become another user for good
        code = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            asyncio.run(rootfs.build(work, ID, as_layers(work, WHOLE), no_report))
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    theirs = rootfs.find(work, ID)
    assert theirs is not None
    assert listing(theirs.path) == ours
    check_whole(theirs.path)


async def test_a_broken_layer_leaves_nothing(tmp_path: Path) -> None:
    layers = as_layers(tmp_path, (layer(entry("a", "link", linkname="missing")),))
    target = tmp_path / "rootfs"
    target.mkdir()
    with pytest.raises(HutchError) as caught:
        await rootfs.build(target, ID, layers, no_report)
    assert caught.value.code == "bad_image"
    assert list(target.iterdir()) == []


async def test_a_layer_that_changes_under_the_build_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = layer(*(entry(f"f{n}", data=os.urandom(100_000)) for n in range(50)))
    layers = as_layers(tmp_path, (body,))
    target = tmp_path / "rootfs"
    target.mkdir()
    merge = rootfs.merge

    def merge_and_cut(*args: object) -> object:
        tree = merge(*args)  # type: ignore[arg-type]
        layers[0].path.write_bytes(body[: len(body) // 2])
        return tree

    monkeypatch.setattr(rootfs, "merge", merge_and_cut)
    with pytest.raises(HutchError) as caught:
        await rootfs.build(target, ID, layers, no_report)
    assert caught.value.code == "bad_image"
    assert list(target.iterdir()) == []


async def test_a_failing_builder_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> rootfs.Builder:
        return rootfs.Builder("squashfs", ("/bin/false",))

    monkeypatch.setattr(rootfs, "choose_builder", broken)
    layers = as_layers(tmp_path, (layer(entry("f", data=bytes(5 << 20))),))
    target = tmp_path / "rootfs"
    target.mkdir()
    with pytest.raises(HutchError) as caught:
        await rootfs.build(target, ID, layers, no_report)
    assert caught.value.code == "bad_image"
    assert list(target.iterdir()) == []


async def test_cancelling_leaves_nothing(tmp_path: Path) -> None:
    body = layer(*(entry(f"f{n}", data=os.urandom(1 << 20)) for n in range(64)))
    layers = as_layers(tmp_path, (body,))
    target = tmp_path / "rootfs"
    target.mkdir()
    packing = asyncio.Event()

    def report(progress: object) -> None:
        if getattr(progress, "stage", "") == "rootfs":
            packing.set()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(rootfs.build(target, ID, layers, report))
        await packing.wait()
        task.cancel()
    assert task.cancelled()
    assert list(target.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
async def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "small"
    target.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(target)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode != 0:
        pytest.skip("cannot mount here")
    try:
        layers = as_layers(tmp_path, (layer(entry("f", data=os.urandom(8 << 20))),))
        with pytest.raises(HutchError) as caught:
            await rootfs.build(target, ID, layers, no_report)
        assert caught.value.code == "disk_full"
        assert list(target.iterdir()) == []
    finally:
        subprocess.run(["umount", str(target)], check=True)
