import json
import os
import subprocess
from pathlib import Path

import pytest

from hutch.engine.qcow2 import create_overlay, overlay_bytes
from hutch.errors import HutchError

GIB = 1 << 30


def qemu_img(*words: str | Path) -> bytes:
    command = ["qemu-img", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.fixture
def base(short_tmp: Path) -> Path:
    path = short_tmp / "base, with a comma.raw"
    path.write_bytes(b"base" + bytes(1 << 20))
    return path


@pytest.mark.parametrize("size", [512, 1 << 20, GIB, 10 * GIB, 512 * GIB + 512, 8 << 40])
def test_qemu_img_finds_no_fault(short_tmp: Path, base: Path, size: int) -> None:
    disk = short_tmp / "disk.qcow2"
    create_overlay(disk, size, base)
    assert disk.stat().st_mode & 0o777 == 0o600
    assert disk.stat().st_blocks * 512 <= 64 << 10
    check = json.loads(qemu_img("check", "--output=json", disk))
    assert check["check-errors"] == 0
    assert not check.get("leaks")
    info = json.loads(qemu_img("info", "--output=json", disk))
    assert info["virtual-size"] == size
    assert info["cluster-size"] == 64 << 10
    assert info["backing-filename-format"] == "raw"
    assert info["full-backing-filename"] == str(base)


def test_it_reads_as_its_base_and_takes_writes(short_tmp: Path, base: Path) -> None:
    disk, flat = short_tmp / "disk.qcow2", short_tmp / "flat.raw"
    create_overlay(disk, 64 << 20, base)
    io = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 48M 128k", str(disk)]
    subprocess.run(io, check=True, capture_output=True)
    assert json.loads(qemu_img("check", "--output=json", disk))["check-errors"] == 0
    qemu_img("convert", "-O", "raw", disk, flat)
    with flat.open("rb") as file:
        assert file.read(8) == b"base\0\0\0\0"
        file.seek(48 << 20)
        assert file.read((128 << 10) + 1) == b"\7" * (128 << 10) + b"\0"
    assert base.read_bytes()[:4] == b"base"


def test_an_overlay_of_an_overlay(short_tmp: Path, base: Path) -> None:
    lower, upper, flat = (short_tmp / name for name in ("lower", "upper", "flat.raw"))
    create_overlay(lower, 64 << 20, base)
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", str(lower)]
    subprocess.run(write, check=True, capture_output=True)
    create_overlay(upper, 64 << 20, lower, "qcow2")
    assert (
        json.loads(qemu_img("info", "--output=json", upper))["backing-filename-format"] == "qcow2"
    )
    assert json.loads(qemu_img("check", "--output=json", upper))["check-errors"] == 0
    qemu_img("convert", "-O", "raw", upper, flat)
    assert flat.read_bytes()[: 4 << 20] == (b"base".ljust(1 << 20, b"\0") + b"\7" * 65536).ljust(
        4 << 20, b"\0"
    )


def test_an_unknown_format_of_the_base(short_tmp: Path, base: Path) -> None:
    with pytest.raises(HutchError, match="vmdk"):
        create_overlay(short_tmp / "disk", 1 << 20, base, "vmdk")


def test_sizes_are_rounded_up_to_a_sector(short_tmp: Path, base: Path) -> None:
    create_overlay(short_tmp / "disk", 513, base)
    info = json.loads(qemu_img("info", "--output=json", short_tmp / "disk"))
    assert info["virtual-size"] == 1024


@pytest.mark.parametrize("size", [0, -512, 1 << 50])
def test_sizes_that_cannot_be(short_tmp: Path, base: Path, size: int) -> None:
    with pytest.raises(HutchError) as caught:
        create_overlay(short_tmp / "disk", size, base)
    assert caught.value.code == "bad_size"
    assert not (short_tmp / "disk").exists()


def test_a_path_too_long_for_the_header() -> None:
    with pytest.raises(ValueError, match="1023"):
        overlay_bytes(512, Path("/" + "x" * 1023))


def test_a_missing_base(short_tmp: Path) -> None:
    with pytest.raises(HutchError, match="gone"):
        create_overlay(short_tmp / "disk", 512, short_tmp / "gone")


def test_an_existing_disk_is_never_overwritten(short_tmp: Path, base: Path) -> None:
    (short_tmp / "disk").write_text("precious")
    with pytest.raises(HutchError, match="File exists"):
        create_overlay(short_tmp / "disk", 512, base)
    assert (short_tmp / "disk").read_text() == "precious"


def test_a_full_file_system(short_tmp: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(HutchError) as caught:
        create_overlay(short_tmp / "disk", 512, base)
    assert caught.value.code == "disk_full"
    assert not (short_tmp / "disk").exists()
