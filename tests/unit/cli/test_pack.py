"""Packing a tree of this host: read back by another program's reader."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from hutch.cli.pack import Packer
from hutch.errors import HutchError


def packed(path: Path, name: str | None = "top", **options: object) -> tarfile.TarFile:
    data = b"".join(Packer(str(path), name, **options).pieces())  # type: ignore[arg-type]
    return tarfile.open(fileobj=io.BytesIO(data))


def test_a_tree(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/f").write_bytes(b"x" * 1500)
    (tree / "sub/f").chmod(0o4750)
    os.link(tree / "sub/f", tree / "twin")
    (tree / "link").symlink_to("sub/f")
    os.mkfifo(tree / "pipe")
    (tree / os.fsdecode(b"n\xff")).write_bytes(b"")
    (tree / ("é" * 80)).write_bytes(b"")
    with packed(tree) as tar:
        found = {item.name: item for item in tar}
        assert set(found) == {
            "top", "top/sub", "top/sub/f", "top/twin", "top/link", "top/pipe", "top/n\udcff",
            "top/" + "é" * 80,
        }  # fmt: skip
        assert found["top/sub/f"].mode == 0o4750
        assert found["top/twin"].islnk()
        assert found["top/twin"].linkname == "top/sub/f"
        assert found["top/link"].linkname == "sub/f"
        assert found["top/pipe"].isfifo()
        file = tar.extractfile("top/sub/f")
        assert file is not None
        assert file.read() == b"x" * 1500


def test_contents_only(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with packed(tmp_path, None) as tar:
        assert tar.getnames() == ["a"]


def test_follow_and_a_circle(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("data")
    (tmp_path / "l").symlink_to("f")
    with packed(tmp_path, follow=True) as tar:
        assert tar.getmember("top/l").isreg()
    (tmp_path / "round").symlink_to(".")
    with pytest.raises(HutchError, match="circle"):
        packed(tmp_path, follow=True)


def test_a_file_that_shrinks(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(3 << 20))
    pieces = Packer(str(tmp_path / "f"), "f").pieces()
    next(pieces)  # the header, which names the size
    next(pieces)
    os.truncate(tmp_path / "f", 10)
    with pytest.raises(HutchError, match="shorter"):
        list(pieces)


def test_counts_the_bytes_of_files(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(1000))
    seen: list[int] = []
    packed(tmp_path, count=seen.append).close()
    assert sum(seen) == 1000


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HutchError) as caught:
        packed(tmp_path / "nothing")
    assert caught.value.code == "bad_path"
