"""The kernel store: filling it, choosing, and initramfs files that follow their agent."""

import asyncio
import os
import re
import shutil
import threading
from collections.abc import Awaitable
from pathlib import Path

import pytest

from hutch.errors import HutchError, error
from hutch.images import deb, kernel
from hutch.images.base import no_report
from hutch.images.kernel import KernelStore
from hutch.tasks import in_thread
from tests.unit.images.kernels import VERSION, module, module_tree, package, vmlinux, vmlinuz
from tests.unit.images.making import settings_with

MODULES = {
    "virtio/virtio_pci.ko": module("virtio"),
    "virtio/virtio.ko": module(),
    "fs/overlay.ko": module(),
    "fs/squashfs.ko": module(),
    "fs/erofs.ko": module("libcrc32c"),
    "lib/libcrc32c.ko": module(),
    "net/tcp_diag.ko": module("inet_diag"),
    "net/inet_diag.ko": module(),
    "net/never.ko": module(),
}


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "agent"
    path.write_bytes(b"the agent")
    monkeypatch.setattr(kernel, "agent_binary", lambda: path)
    return path


@pytest.fixture
def store(home: Path, agent: Path) -> KernelStore:
    return KernelStore(home, settings_with())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinuz"
    path.write_bytes(vmlinuz(vmlinux()))
    return path


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    return module_tree(tmp_path / "modules", MODULES)


def left_over(home: Path) -> list[str]:
    return [p.name for p in (home / "kernels").glob(".new-*")]


async def test_a_kernel_is_imported_and_booted_from(
    store: KernelStore, image: Path, modules: Path
) -> None:
    info = await store.load(image, modules=modules)
    assert (info.name, info.version, info.active) == (VERSION, VERSION, True)
    assert info.source == str(image)
    assert info.modules[:2] == ["virtio", "virtio_pci"]
    assert "never" not in info.modules
    found = await store.ensure(None, no_report)
    assert found.vmlinux.read_bytes() == vmlinux()
    archive = found.initramfs.read_bytes()
    assert len(archive) % 4096 == 16
    assert b"the agent" in archive
    assert (
        b"/lib/m/virtio.ko\n/lib/m/virtio_pci.ko\n/lib/m/overlay.ko\n/lib/m/squashfs.ko\n"
        in archive
    )


async def test_the_initramfs_follows_the_agent(
    store: KernelStore, image: Path, modules: Path, agent: Path
) -> None:
    await store.load(image, modules=modules)
    first = await store.ensure(None, no_report)
    assert await store.ensure(None, no_report) == first
    agent.write_bytes(b"a newer agent")
    second = await store.ensure(None, no_report)
    assert second.initramfs != first.initramfs
    assert b"a newer agent" in second.initramfs.read_bytes()


async def test_erofs_is_loaded_where_such_images_are(
    store: KernelStore, home: Path, image: Path, modules: Path
) -> None:
    await store.load(image, modules=modules)
    (home / "images/rootfs").mkdir(parents=True)
    (home / "images/rootfs/x-1.erofs").write_bytes(b"")
    archive = (await store.ensure(None, no_report)).initramfs.read_bytes()
    assert b"/lib/m/libcrc32c.ko\n/lib/m/erofs.ko\n" in archive


async def test_a_restart_sweeps_what_was_half_done(
    store: KernelStore, home: Path, image: Path
) -> None:
    (home / "kernels/.new-x/kernel").mkdir(parents=True)
    await store.load(image)
    await store.ensure(None, no_report)
    assert left_over(home) == []


async def test_a_kernel_that_is_being_removed_is_not_lent(
    store: KernelStore, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.load(image, name="one")
    await store.ensure("one", no_report)
    begun, go_on, remove = threading.Event(), threading.Event(), shutil.rmtree

    def slowly(path: Path) -> None:
        begun.set()
        go_on.wait(60)
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", slowly)
    async with asyncio.TaskGroup() as group:
        removal = group.create_task(store.remove("one"))
        await in_thread(begun.wait, 60)
        lent = group.create_task(_code(store.ensure("one", no_report)))
        await in_thread(lambda: None)  # by then it has looked, and waits
        go_on.set()
    assert removal.result().removed == ["one"]
    assert lent.result() == "kernel_not_found"


async def _code(work: Awaitable[object]) -> str:
    with pytest.raises(HutchError) as caught:
        await work
    return caught.value.code


async def test_a_lost_initramfs_is_made_again(store: KernelStore, image: Path) -> None:
    await store.load(image)
    first = await store.ensure(None, no_report)
    first.initramfs.unlink()
    assert (await store.ensure(None, no_report)).initramfs.exists()


async def test_names_and_choice(store: KernelStore, home: Path, image: Path) -> None:
    await store.load(image, name="one")
    await store.load(image, name="two")
    assert [(i.name, i.active) for i in await store.list()] == [("one", True), ("two", False)]
    assert (await store.use("two")).active
    assert (await store.ensure(None, no_report)).name == "two"
    assert (await store.ensure("one", no_report)).name == "one"
    assert (
        await KernelStore(home, settings_with(kernel="one")).ensure(None, no_report)
    ).name == "one"
    with pytest.raises(HutchError) as caught:
        await store.remove("two", used=["two"])
    assert caught.value.code == "in_use"
    removed = await store.remove("two")
    assert removed.bytes > 0
    assert (await store.ensure(None, no_report)).name == "one"
    for name in ("two", "../one", "", "."):
        with pytest.raises(HutchError) as caught:
            await store.use(name)
        assert caught.value.code == "kernel_not_found"


async def test_importing_again_replaces(
    store: KernelStore, home: Path, image: Path, modules: Path
) -> None:
    await store.load(image, name="k")
    assert (await store.load(image, name="k", modules=modules)).modules
    assert len(await store.list()) == 1
    assert left_over(home) == []


async def test_bad_imports_leave_nothing(
    store: KernelStore, home: Path, image: Path, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("no kernel")
    for path, options, code in (
        (tmp_path / "text", {}, "bad_image"),
        (tmp_path / "missing", {}, "kernel_not_found"),
        (image, {"modules": tmp_path / "missing"}, "kernel_not_found"),
        (image, {"name": "../x"}, "bad_request"),
    ):
        with pytest.raises(HutchError) as caught:
            await store.load(path, **options)
        assert caught.value.code == code
    assert await store.list() == []
    assert left_over(home) == []


@pytest.mark.parametrize("usr", ["", "usr/"])
async def test_the_first_kernel_comes_from_the_distribution(
    store: KernelStore, home: Path, monkeypatch: pytest.MonkeyPatch, usr: str
) -> None:
    calls = []

    async def download(name: str, directory: Path) -> list[Path]:
        calls.append(name)
        root = f"./{usr}lib/modules/{VERSION}"
        return [
            package(
                directory / "binary.deb",
                {f"./boot/vmlinuz-{VERSION}": vmlinuz(vmlinux(), "lz4"), "./usr/share/doc/x": b""},
            ),
            package(
                directory / "modules.deb",
                {f"{root}/kernel/{name}": body for name, body in MODULES.items()}
                | {f"{root}/modules.builtin": b"kernel/fs/squashfs.ko\n"},
            ),
        ]

    monkeypatch.setattr(deb, "download_kernel", download)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(store.ensure(None, no_report)) for _ in range(3)]
    assert {task.result().name for task in tasks} == {VERSION}
    assert calls == ["linux-image-cloud-amd64"]
    [info] = await store.list()
    assert info.source == "linux-image-cloud-amd64"
    assert "squashfs" not in info.modules
    assert "overlay" in info.modules
    assert left_over(home) == []


@pytest.fixture
def no_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    async def download(name: str, directory: Path) -> list[Path]:
        raise error("registry_failed", f"apt knows no package {name}")

    monkeypatch.setattr(deb, "download_kernel", download)


@pytest.mark.usefixtures("no_apt")
async def test_without_any_kernel_three_ways_are_named(
    store: KernelStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "_HOSTS", (str(home / "none-{release}"), str(home / "none")))
    with pytest.raises(HutchError) as caught:
        await store.ensure(None, no_report)
    assert caught.value.code == "kernel_missing"
    for way in ("kernel pull", "kernel import", "apt-get install"):
        assert way in (caught.value.hint or "")
    assert left_over(home) == []


@pytest.mark.usefixtures("no_apt")
async def test_the_hosts_own_kernel_is_taken_next(
    store: KernelStore, image: Path, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = os.uname().release
    os.rename(image, image.with_name(f"vmlinuz-{release}"))
    monkeypatch.setattr(kernel, "_HOSTS", (str(image) + "-{release}", str(modules)))
    assert (await store.ensure(None, no_report)).name == VERSION
    [info] = await store.list()
    assert info.source == "host"
    assert info.modules


@pytest.mark.usefixtures("no_apt")
async def test_a_package_that_is_not_there(store: KernelStore) -> None:
    with pytest.raises(HutchError, match="no-such") as caught:
        await store.pull(no_report, package="no-such")
    assert caught.value.code == "kernel_missing"


async def test_without_an_agent_it_says_so(
    home: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Path:
        raise error("agent_missing", "none")

    monkeypatch.setattr(kernel, "agent_binary", missing)
    store = KernelStore(home, settings_with())
    await store.load(image)
    with pytest.raises(HutchError) as caught:
        await store.ensure(None, no_report)
    assert caught.value.code == "agent_missing"


def test_the_wanted_files_of_a_package() -> None:
    wanted = kernel._WANTED
    assert wanted.fullmatch("boot/vmlinuz-6.1")
    assert wanted.fullmatch("usr/lib/modules/6.1/kernel/fs/x.ko.xz")
    assert wanted.fullmatch("lib/modules/6.1/modules.builtin")
    assert not re.fullmatch(wanted, "lib/modules/6.1/build/x.ko")
