"""Base disks."""

import asyncio
import fcntl
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.images.disk import MIN_SIZE, base_disk

MIB = 1 << 20


async def test_an_empty_sound_ext4_that_takes_little_space(tmp_path: Path) -> None:
    path = await base_disk(tmp_path, 10 << 30)
    found = path.stat()
    assert found.st_size == 10 << 30
    assert found.st_blocks * 512 < 24 * MIB
    checked = subprocess.run(
        ["/usr/sbin/e2fsck", "-fn", str(path)], check=False, capture_output=True
    )
    assert checked.returncode == 0, checked.stdout
    shown = subprocess.run(
        ["/usr/sbin/dumpe2fs", str(path)], check=True, capture_output=True, text=True
    ).stdout
    features = next(line for line in shown.splitlines() if line.startswith("Filesystem features"))
    for feature in ("has_journal", "extent", "64bit", "resize_inode"):
        assert feature in features
    assert "metadata_csum" not in features
    # No group is left for the guest's kernel to zero.
    groups = [line for line in shown.splitlines() if re.match(r"Group \d+:", line)]
    assert groups
    assert shown.count("ITABLE_ZEROED") == len(groups)


async def test_it_is_made_once_per_size(tmp_path: Path) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(base_disk(tmp_path, 128 * MIB)) for _ in range(3)]
    assert len({task.result() for task in tasks}) == 1
    first = tasks[0].result()
    made = first.stat().st_ino
    assert (await base_disk(tmp_path, 128 * MIB)).stat().st_ino == made
    assert await base_disk(tmp_path, 128 * MIB + 100) == first
    assert await base_disk(tmp_path, 129 * MIB) != first
    assert not list((tmp_path / "disks").glob(".new-*"))


async def test_the_first_of_two_made_at_once_stays(tmp_path: Path) -> None:
    # Whoever got a disk may have based others on it.
    async def make() -> tuple[int, int]:
        found = (await base_disk(tmp_path, MIN_SIZE)).stat()
        return found.st_ino, found.st_mtime_ns

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(make()) for _ in range(3)]
    assert {task.result() for task in tasks} == {await make()}


async def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    directory = tmp_path / "disks"
    directory.mkdir()
    (directory / ".new-dead").touch()
    with open(directory / ".new-alive", "w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        await base_disk(tmp_path, 64 * MIB)
        assert [path.name for path in directory.glob(".new-*")] == [".new-alive"]


@pytest.mark.parametrize("size", [0, -5, 4096, MIN_SIZE - 1, 1 << 50])
async def test_sizes_that_cannot_be(tmp_path: Path, size: int) -> None:
    with pytest.raises(HutchError) as caught:
        await base_disk(tmp_path, size)
    assert caught.value.code == "bad_size"
    assert not (tmp_path / "disks").exists()


async def test_a_missing_tool_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.process.which", lambda program: None)
    with pytest.raises(HutchError) as caught:
        await base_disk(tmp_path, 128 * MIB)
    assert "e2fsprogs" in (caught.value.hint or "")


async def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.process.which", lambda program: shutil.which("false"))
    with pytest.raises(HutchError):
        await base_disk(tmp_path, 128 * MIB)
    assert list((tmp_path / "disks").iterdir()) == []
