"""Extraction of hostile archives: nothing outside the destination is ever touched."""

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from hutch.cli.extract import Extractor
from hutch.cli.untar import TarReader
from hutch.errors import HutchError
from tests.unit.cli.test_untar import member


def extract(
    base: Path,
    *members: tarfile.TarInfo,
    data: bytes = b"new",
    name: str = "dst",
    archive: bool = False,
) -> list[str]:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for item in members:
            if item.isreg():
                item.size = len(data)
            tar.addfile(item, io.BytesIO(data))
    warnings: list[str] = []
    extractor = Extractor(str(base), name, archive=archive, warn=warnings.append)
    extractor.run(TarReader([out.getvalue()]))
    return warnings


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The destination, beside files that must not change."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/victim").write_text("old")
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def assert_untouched(base: Path) -> None:
    outside = base.parent / "outside"
    assert {p.name: p.read_text() for p in outside.iterdir()} == {"victim": "old"}
    assert sorted(p.name for p in base.parent.iterdir()) == ["in", "outside"]


@pytest.mark.parametrize(
    "name",
    ["../outside/victim", "/etc/hutch-victim", "t/../../outside/victim", "t//x", "..", "t/.."],
)
def test_paths_that_lead_outside(base: Path, name: str) -> None:
    with pytest.raises(HutchError) as caught:
        extract(base, member("t", tarfile.DIRTYPE), member(name))
    assert caught.value.code == "bad_image"
    assert_untouched(base)


def test_second_top(base: Path) -> None:
    with pytest.raises(HutchError, match="more than one top"):
        extract(base, member("t", tarfile.DIRTYPE), member("other"))


def test_symlinks_of_the_archive_are_not_written_through(base: Path) -> None:
    outside = str(base.parent / "outside")
    tree = [
        member("t", tarfile.DIRTYPE, mode=0o755),
        member("t/link", tarfile.SYMTYPE, linkname=outside),
        member("t/link/victim"),
    ]
    with pytest.raises(HutchError) as caught:
        extract(base, *tree)
    assert caught.value.code == "bad_path"
    assert_untouched(base)


def test_a_symlink_as_the_last_name_is_replaced(base: Path) -> None:
    victim = str(base.parent / "outside/victim")
    extract(
        base,
        member("t", tarfile.DIRTYPE, mode=0o755),
        member("t/f", tarfile.SYMTYPE, linkname=victim),
        member("t/f"),
    )
    assert not (base / "dst/f").is_symlink()
    assert (base / "dst/f").read_text() == "new"
    assert_untouched(base)


def test_symlinks_that_were_there_before(base: Path) -> None:
    (base / "dst").mkdir()
    (base / "dst/sub").symlink_to(base.parent / "outside")
    with pytest.raises(HutchError, match="not followed"):
        extract(base, member("t", tarfile.DIRTYPE), member("t/sub/victim"))
    with pytest.raises(HutchError, match="not followed"):
        extract(base, member("t", tarfile.DIRTYPE), member("t/sub", tarfile.DIRTYPE))
    assert_untouched(base)


@pytest.mark.parametrize("target", ["../outside/victim", "/etc/passwd", "t/link/victim"])
def test_hard_links_that_lead_outside(base: Path, target: str) -> None:
    outside = str(base.parent / "outside")
    with pytest.raises(HutchError):
        extract(
            base,
            member("t", tarfile.DIRTYPE, mode=0o755),
            member("t/link", tarfile.SYMTYPE, linkname=outside),
            member("t/hard", tarfile.LNKTYPE, linkname=target),
        )
    assert_untouched(base)


def test_writing_over_a_hard_link_does_not_change_its_twin(base: Path) -> None:
    (base / "dst").mkdir()
    (base / "dst/mine").write_text("old")
    extract(
        base,
        member("t", tarfile.DIRTYPE),
        member("t/twin", tarfile.LNKTYPE, linkname="t/mine"),
        member("t/twin"),
    )
    assert (base / "dst/mine").read_text() == "old"
    assert (base / "dst/twin").read_text() == "new"


def test_setuid_and_devices_need_archive(base: Path) -> None:
    warnings = extract(
        base,
        member("t", tarfile.DIRTYPE, mode=0o2777),
        member("t/su", mode=0o6755),
        member("t/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("t/\x1bfifo", tarfile.FIFOTYPE),
    )
    assert stat.S_IMODE((base / "dst/su").stat().st_mode) == 0o755
    assert stat.S_IMODE((base / "dst").stat().st_mode) == 0o777
    assert sorted(p.name for p in (base / "dst").iterdir()) == ["su"]
    assert len(warnings) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="owners and nodes are root's")
def test_archive_keeps_owners_setuid_and_nodes(base: Path) -> None:
    extract(
        base,
        member("t", tarfile.DIRTYPE, mode=0o755, uid=1, gid=2),
        member("t/su", mode=0o4755, uid=3, gid=4),
        member("t/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
        archive=True,
    )
    found = (base / "dst/su").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o4755, 3, 4)
    assert (base / "dst").stat().st_uid == 1
    assert (base / "dst/null").stat().st_rdev == os.makedev(1, 3)


def test_an_honest_tree(base: Path) -> None:
    extract(
        base,
        member("t", tarfile.DIRTYPE, mode=0o755, mtime=1000),
        member("t/locked", tarfile.DIRTYPE, mode=0o500, mtime=2000),
        member("t/locked/f", mode=0o640, mtime=3000),
        member("t/hard", tarfile.LNKTYPE, linkname="t/locked/f"),
        member("t/soft", tarfile.SYMTYPE, linkname="locked/f"),
    )
    inner = base / "dst/locked/f"
    assert inner.read_text() == "new"
    assert stat.S_IMODE(inner.stat().st_mode) == 0o640
    assert inner.stat().st_mtime == 3000
    assert (base / "dst/locked").stat().st_mtime == 2000
    assert stat.S_IMODE((base / "dst/locked").stat().st_mode) == 0o500
    assert (base / "dst/hard").samefile(inner)
    assert os.readlink(base / "dst/soft") == "locked/f"


def test_contents_go_into_the_directory_itself(base: Path) -> None:
    base.chmod(0o700)
    extract(base, member("t", tarfile.DIRTYPE, mode=0o777), member("t/f"), name=".")
    assert [p.name for p in base.iterdir()] == ["f"]
    assert stat.S_IMODE(base.stat().st_mode) == 0o700


def test_a_broken_transfer_leaves_the_old_file(base: Path) -> None:
    (base / "dst").write_text("old")
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        big = member("t", size=5000)
        tar.addfile(big, io.BytesIO(bytes(5000)))
    with pytest.raises(HutchError, match="ends in the middle"):
        Extractor(str(base), "dst").run(TarReader([whole.getvalue()[:2000]]))
    assert (base / "dst").read_text() == "old"
    assert [p.name for p in base.iterdir()] == ["dst"]


def test_a_directory_in_the_way_of_a_file(base: Path) -> None:
    (base / "dst/f").mkdir(parents=True)
    with pytest.raises(HutchError) as caught:
        extract(base, member("t", tarfile.DIRTYPE), member("t/f"))
    assert caught.value.code == "bad_path"
    assert [p.name for p in (base / "dst").iterdir()] == ["f"]


def test_names_in_errors_are_escaped(base: Path) -> None:
    (base / "dst").mkdir()
    (base / "dst/\x1b[2J").symlink_to("/")
    with pytest.raises(HutchError) as caught:
        extract(base, member("t", tarfile.DIRTYPE), member("t/\x1b[2J/f"))
    assert "\x1b" not in caught.value.message
