"""`cp`, `upload` and `download` as processes; a directory plays the guest."""

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Cli
from tests.unit.cli.local_host import pattern
from tests.unit.cli.test_untar import archive, member


@pytest.fixture
def guest(hutch: Cli) -> Iterator[Path]:
    """The guest's /t, empty."""
    path = hutch.guest / "t"
    path.mkdir()
    yield path
    os.system(f"rm -rf {path}")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A small tree of this host."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "f").write_text("f")
    (tree / "sub/g").write_text("g")
    return tree


def names(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


WAYS = [
    # the source (of tree/, or a file f), what is at the target before, the target, what is then
    ("f", {}, "new", ["new"]),
    ("f", {"d": None}, "d", ["d", "d/f"]),
    ("f", {"d": None}, "d/", ["d", "d/f"]),
    ("f", {"old": "old"}, "old", ["old"]),
    ("", {}, "new", ["new", "new/f", "new/sub", "new/sub/g"]),
    ("/.", {}, "new", ["new", "new/f", "new/sub", "new/sub/g"]),
    ("", {"d": None}, "d", ["d", "d/tree", "d/tree/f", "d/tree/sub", "d/tree/sub/g"]),
    ("/.", {"d": None}, "d", ["d", "d/f", "d/sub", "d/sub/g"]),
]
REFUSED = [
    ("nothing", {}, "new", b"(path_not_found)"),
    ("f", {}, "new/", b"(path_not_found)"),
    ("f", {}, "no/parent", b"no"),
    ("", {"old": "old"}, "old", b"(bad_path)"),
    ("f/", {}, "new", b"(bad_path)"),
]


def prepare(base: Path, before: dict[str, str | None]) -> None:
    for name, text in before.items():
        if text is None:
            (base / name).mkdir()
        else:
            (base / name).write_text(text)


def source_path(tree: str, source: str) -> str:
    return f"{tree}{source}" if source in ("", "/.") else f"{tree}/{source}"


@pytest.mark.parametrize(("source", "before", "target", "after"), WAYS)
def test_into_the_guest(
    hutch: Cli, guest: Path, here: Path, source: str, before: dict[str, str | None], target: str,
    after: list[str],
) -> None:  # fmt: skip
    prepare(guest, before)
    hutch("cp", source_path(str(here), source), f"box:/t/{target}")
    assert names(guest) == after


@pytest.mark.parametrize(("source", "before", "target", "after"), WAYS)
def test_out_of_the_guest(
    hutch: Cli, guest: Path, here: Path, tmp_path: Path, source: str,
    before: dict[str, str | None], target: str, after: list[str],
) -> None:  # fmt: skip
    here.rename(guest / "tree")
    out = tmp_path / "out"
    out.mkdir()
    prepare(out, before)
    hutch("cp", "box:" + source_path("/t/tree", source), f"{out}/{target}")
    assert names(out) == after


@pytest.mark.parametrize(("source", "before", "target", "said"), REFUSED)
def test_refused_into_the_guest(
    hutch: Cli, guest: Path, here: Path, source: str, before: dict[str, str | None], target: str,
    said: bytes,
) -> None:  # fmt: skip
    prepare(guest, before)
    done = hutch("cp", source_path(str(here), source), f"box:/t/{target}", code=125)
    assert said in done.stderr
    assert names(guest) == sorted(before)


@pytest.mark.parametrize(("source", "before", "target", "said"), REFUSED)
def test_refused_out_of_the_guest(
    hutch: Cli, guest: Path, here: Path, tmp_path: Path, source: str,
    before: dict[str, str | None], target: str, said: bytes,
) -> None:  # fmt: skip
    here.rename(guest / "tree")
    out = tmp_path / "out"
    out.mkdir()
    prepare(out, before)
    done = hutch("cp", "box:" + source_path("/t/tree", source), f"{out}/{target}", code=125)
    assert said in done.stderr
    assert names(out) == sorted(before)


def test_bytes_modes_and_times_survive_both_ways(hutch: Cli, guest: Path, tmp_path: Path) -> None:
    data = pattern(9_000_001)
    (tmp_path / "big").write_bytes(data)
    (tmp_path / "big").chmod(0o640)
    os.utime(tmp_path / "big", (1000, 1000))
    body = json.loads(hutch("cp", "--json", str(tmp_path / "big"), "box:/t").stdout)
    assert body["bytes"] == len(data)
    hutch("cp", "box:/t/big", str(tmp_path / "back"))
    assert (
        hashlib.sha256((tmp_path / "back").read_bytes()).digest() == hashlib.sha256(data).digest()
    )
    found = (tmp_path / "back").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime) == (0o640, 1000)


def test_symlinks_are_copied_or_followed(hutch: Cli, guest: Path, tmp_path: Path) -> None:
    (guest / "f").write_text("f")
    (guest / "l").symlink_to("f")
    hutch("cp", "box:/t/l", str(tmp_path / "link"))
    assert os.readlink(tmp_path / "link") == "f"
    hutch("cp", "-L", "box:/t/l", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "f"
    (guest / "dir").mkdir()
    (guest / "to-dir").symlink_to("dir")
    (tmp_path / "x").write_text("x")
    hutch("cp", str(tmp_path / "x"), "box:/t/to-dir")  # a link at the target is followed
    assert (guest / "dir/x").read_text() == "x"


def test_a_tar_stream_both_ways(hutch: Cli, guest: Path, here: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(here, "tree")
    hutch("cp", "-", "box:/t", stdin=out.getvalue())
    assert (guest / "tree/sub/g").read_text() == "g"
    got = hutch("cp", "box:/t/tree", "-").stdout
    with tarfile.open(fileobj=io.BytesIO(got)) as tar:
        assert "tree/sub/g" in tar.getnames()
    assert b"must be a directory" in hutch("cp", "-", "box:/t/new", stdin=b"", code=125).stderr


def test_between_sandboxes(own_hutch: Cli, here: Path) -> None:
    own_hutch("run", "-d", "--idle", "--name", "other", "busybox")
    own_hutch("cp", str(here), "box:/tree")
    own_hutch("cp", "box:/tree", "other:/copy")
    assert names(own_hutch.guest / "copy") == names(here)


def test_upload_and_download(hutch: Cli, guest: Path, here: Path, tmp_path: Path) -> None:
    hutch("upload", "-d", "/t/made/here", "box", str(here / "f"), str(here / "sub"))
    assert names(guest / "made/here") == ["f", "sub", "sub/g"]
    hutch("download", "-d", str(tmp_path / "o/p"), "box", "/t/made/here/f", "/t/made/here/sub")
    assert names(tmp_path / "o/p") == ["f", "sub", "sub/g"]


def test_a_hostile_guest(hutch: Cli, guest: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("old")
    evil = archive(member("x", tarfile.DIRTYPE), member("x/../../victim"), data=b"new")
    (guest / "a.hostile").write_bytes(evil)
    (tmp_path / "out").mkdir()
    done = hutch("cp", "box:/t/a.hostile", str(tmp_path / "out/"), code=125)
    assert b"(bad_image)" in done.stderr
    assert (tmp_path / "victim").read_text() == "old"


def test_neither_side_is_a_sandbox(hutch: Cli) -> None:
    assert b"neither side" in hutch("cp", "/a", "./b", code=125).stderr
    assert b"(sandbox_not_found)" in hutch("cp", "/etc/hostname", "nosuch:/", code=125).stderr
