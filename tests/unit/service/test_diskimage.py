"""Whole disks out of layers and into them, with the real tool."""

import os
import subprocess
from pathlib import Path

import pytest

from hutch.engine.qcow2 import create_overlay
from hutch.errors import HutchError
from hutch.process import which
from hutch.service import diskimage
from hutch.service.diskimage import (
    check_room,
    fill_layer,
    hidden_file,
    path_of,
    write_hidden,
    write_image,
)

SIZE = 8 << 20

pytestmark = pytest.mark.skipif(which("qemu-img") is None, reason="qemu-img is not installed")


def base_of(tmp_path: Path, fill: bytes) -> Path:
    path = tmp_path / f"base-{fill.hex()}"
    path.write_bytes(fill * SIZE)
    return path


def layer(path: Path, behind: Path, form: str, command: str) -> Path:
    create_overlay(path, SIZE, behind, form)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, path], check=True, capture_output=True)
    return path


def test_there_is_room_for_copies_or_none_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "layer"
    path.write_bytes(bytes(SIZE))
    size = path.stat().st_blocks * 512
    usage = diskimage.shutil.disk_usage(tmp_path)
    free = usage._replace(free=5 * size)
    monkeypatch.setattr(diskimage.shutil, "disk_usage", lambda _: free)
    check_room([path, path], tmp_path, copies=2, reserve=size)
    with pytest.raises(HutchError) as caught:
        check_room([path, path], tmp_path, copies=2, reserve=size + 1)
    assert caught.value.code == "disk_full"


async def test_a_disk_is_the_same_over_another_base(tmp_path: Path) -> None:
    base = base_of(tmp_path, b"\x11")
    template = layer(tmp_path / "template", base, "raw", "write -P 0x22 0 1M")
    lower = layer(tmp_path / "lower", template, "qcow2", "write -P 0x33 512k 1M")
    upper = layer(tmp_path / "upper", lower, "qcow2", "write -z 4M 1M")
    whole = tmp_path / "whole"
    await write_image([upper, lower], template, base, whole)
    expected = b"\x22" * (512 << 10) + b"\x33" * (1 << 20) + b"\x11" * (SIZE - (3 << 19))
    expected = expected[: 4 << 20] + bytes(1 << 20) + expected[5 << 20 :]
    assert whole.read_bytes() == expected
    other = base_of(tmp_path, b"\x44")
    create_overlay(tmp_path / "new", SIZE, other)
    await fill_layer(whole, tmp_path / "new")
    again = tmp_path / "again"
    await write_image([tmp_path / "new"], None, other, again)
    assert again.read_bytes() == expected


async def test_a_disk_without_a_name_is_the_same(tmp_path: Path) -> None:
    base, room = base_of(tmp_path, b"\x11"), tmp_path / "room"
    room.mkdir()
    template = layer(tmp_path / "template", base, "raw", "write -P 0x22 0 1M")
    lower = layer(tmp_path / "lower", template, "qcow2", "write -P 0x33 512k 1M")
    upper = layer(tmp_path / "upper", lower, "qcow2", "write -z 4M 1M")
    whole = tmp_path / "whole"
    await write_image([upper, lower], template, base, whole)
    disk = await write_hidden([upper, lower], template, base, room)
    try:
        assert path_of(disk).read_bytes() == whole.read_bytes()
        other = base_of(tmp_path, b"\x44")
        create_overlay(tmp_path / "new", SIZE, other)
        await fill_layer(disk, tmp_path / "new")
    finally:
        os.close(disk)
    again = tmp_path / "again"
    await write_image([tmp_path / "new"], None, other, again)
    assert again.read_bytes() == whole.read_bytes()
    bad = tmp_path / "bad"
    bad.write_bytes(b"no layer" * 100)
    with pytest.raises(HutchError, match="no layer"):
        await write_hidden([bad], None, base, room)
    assert list(room.iterdir()) == []


def test_a_hidden_file_is_ours_alone(tmp_path: Path) -> None:
    fd = hidden_file(tmp_path)
    try:
        os.write(fd, b"content")
        assert (path_of(fd).read_bytes(), os.fstat(fd).st_nlink) == (b"content", 0)
        assert (os.fstat(fd).st_mode & 0o777, os.get_inheritable(fd)) == (0o600, False)
    finally:
        os.close(fd)
    assert list(tmp_path.iterdir()) == []


async def test_a_layer_that_asks_for_more_is_not_opened(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"no layer" * 100)
    with pytest.raises(HutchError, match="no layer"):
        await write_image([bad], None, base_of(tmp_path, b"\x11"), tmp_path / "whole")
