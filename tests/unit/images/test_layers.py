"""Layers merged by the OCI rules, and what hostile ones can do: nothing."""

import io
import tarfile
import time
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.images.layers import Layer, merge, write_tar
from tests.unit.images.making import compress, entry, layer, sha256

LIMIT = 1 << 30


@pytest.fixture
def merged(tmp_path: Path):
    """Merge layers and return the result as {name: (TarInfo, content)}, read by the standard
    library.
    """

    def merged_(*bodies: bytes, how: str = ""):
        layers = []
        for number, body in enumerate(bodies):
            path = tmp_path / f"layer-{number}"
            path.write_bytes(compress(body, how))
            layers.append(Layer(path, sha256(body), LIMIT))
        out = io.BytesIO()
        write_tar(merge(layers, lambda n: None), layers, out, lambda n: None)
        out.seek(0)
        found = {}
        with tarfile.open(fileobj=out, errors="surrogateescape") as archive:
            for info in archive:
                content = archive.extractfile(info) if info.isreg() else None
                assert info.name not in found
                found[info.name] = (info, content.read() if content else None)
        return found

    return merged_


def names(found) -> set[str]:
    return set(found) - {"."}


@pytest.mark.parametrize("how", ["", "gzip", "zstd"])
def test_a_later_layer_replaces_adds_and_keeps(merged, how: str) -> None:
    found = merged(
        layer(entry("a", data=b"1"), entry("d", "dir"), entry("d/b", data=b"2")),
        layer(entry("a", data=b"new"), entry("d/c", data=b"3")),
        how=how,
    )
    assert {name: item[1] for name, item in found.items() if item[1] is not None} == {
        "a": b"new", "d/b": b"2", "d/c": b"3",
    }  # fmt: skip


def test_attributes_survive(merged) -> None:
    xattrs = {
        "user.bin": b"\x00\xff\n=\x80",
        "security.capability": b"\x01\x00\x00\x02" + bytes(16),
    }
    found = merged(
        layer(
            entry(".", "dir", mode=0o711, uid=7),
            entry("su", data=b"x", mode=0o4755, uid=5, gid=6, mtime=1234567890, xattrs=xattrs),
            entry("big", data=b"", uid=4294967294, gid=3000000000),
            entry("null", "char", mode=0o666, devmajor=1, devminor=3),
            entry("sda", "block", mode=0o660, devmajor=8, devminor=300),
            entry("pipe", "fifo"),
            entry("before", data=b"", mtime=-5.75),
            entry("half", data=b"", mtime=3.9),
            entry("sticky", "dir", mode=0o1777),
        )
    )
    su = found["su"][0]
    assert (su.mode, su.uid, su.gid, su.mtime) == (0o4755, 5, 6, 1234567890)
    got = {
        key.removeprefix("SCHILY.xattr."): value.encode("utf-8", "surrogateescape")
        for key, value in su.pax_headers.items()
    }
    assert got == xattrs
    assert (found["big"][0].uid, found["big"][0].gid) == (4294967294, 3000000000)
    null, sda = found["null"][0], found["sda"][0]
    assert null.ischr()
    assert (null.devmajor, null.devminor, null.mode) == (1, 3, 0o666)
    assert sda.isblk()
    assert (sda.devmajor, sda.devminor) == (8, 300)
    assert found["pipe"][0].isfifo()
    assert found["before"][0].mtime == 0
    assert found["half"][0].mtime == 3
    assert found["sticky"][0].mode == 0o1777
    assert (found["."][0].mode, found["."][0].uid) == (0o711, 7)


def test_xattrs_that_no_file_system_image_holds_are_dropped(merged) -> None:
    xattrs = {"trusted.overlay.opaque": b"y", "system.posix_acl_access": b"\x02", "trusted.x": b"1"}
    found = merged(layer(entry("a", data=b"", xattrs=xattrs)))
    assert set(found["a"][0].pax_headers) == {"SCHILY.xattr.trusted.x"}


def test_whiteouts_hide_lower_layers(merged) -> None:
    found = merged(
        layer(
            entry("gone", data=b"1"),
            entry("tree", "dir"),
            entry("tree/in", data=b"1"),
            entry("tree/sub", "dir"),
            entry("tree/sub/deep", data=b"1"),
            entry("stay", data=b"1"),
        ),
        layer(
            entry(".wh.gone", data=b""),
            entry(".wh.tree", data=b""),
            entry(".wh.never-was", data=b""),
        ),
    )
    assert names(found) == {"stay"}


@pytest.mark.parametrize("first", [True, False])
def test_a_whiteout_spares_its_own_layer_in_any_order(merged, first: bool) -> None:
    mark = [entry(".wh.d", data=b"")]
    new = [entry("d", "dir", mode=0o700), entry("d/new", data=b"2")]
    found = merged(
        layer(
            entry("d", "dir"),
            entry("d/old", data=b"1"),
            entry("d/s", "dir"),
            entry("d/s/x", data=b""),
        ),
        layer(*(mark + new if first else new + mark)),
    )
    assert names(found) == {"d", "d/new"}
    assert found["d"][0].mode == 0o700


@pytest.mark.parametrize("first", [True, False])
def test_an_opaque_directory_hides_what_is_below(merged, first: bool) -> None:
    mark = [entry("d/.wh..wh..opq", data=b"")]
    new = [entry("d/new", data=b"2"), entry("d/s/new", data=b"2")]
    found = merged(
        layer(
            entry("d", "dir", mode=0o750),
            entry("d/old", data=b"1"),
            entry("d/s", "dir"),
            entry("d/s/old", data=b"1"),
            entry("e", data=b"1"),
        ),
        layer(*(mark + new if first else new + mark)),
    )
    assert names(found) == {"d", "d/new", "d/s", "d/s/new", "e"}
    assert found["d"][0].mode == 0o750


def test_a_name_comes_back_after_its_whiteout(merged) -> None:
    found = merged(
        layer(entry("a", data=b"1")), layer(entry(".wh.a", data=b"")), layer(entry("a", data=b"3"))
    )
    assert found["a"][1] == b"3"


def test_files_and_directories_replace_each_other(merged) -> None:
    found = merged(
        layer(
            entry("f", data=b"1"), entry("d", "dir"), entry("d/x", data=b"1"), entry("g", data=b"1")
        ),
        layer(
            entry("f", "dir"),
            entry("f/y", data=b"2"),
            entry("d", data=b"2"),
            entry("g/z", data=b"2"),
        ),
    )
    assert names(found) == {"f", "f/y", "d", "g", "g/z"}
    assert found["f"][0].isdir()
    assert found["g"][0].isdir()
    assert found["d"][1] == b"2"


def test_hard_links_share_content_across_layers(merged) -> None:
    found = merged(
        layer(entry("a", data=b"shared"), entry("b", "link", linkname="a")),
        layer(entry("c", "link", linkname="/b"), entry(".wh.a", data=b""), entry("b", data=b"own")),
        layer(entry("d", "link", linkname="./c")),
    )
    assert names(found) == {"b", "c", "d"}
    assert found["b"][1] == b"own"
    linked = [found[name][0] for name in ("c", "d")]
    assert sorted(info.type for info in linked) == [tarfile.REGTYPE, tarfile.LNKTYPE]
    target = next(info for info in linked if info.isreg())
    other = next(info for info in linked if info.islnk())
    assert other.linkname == target.name
    assert found[target.name][1] == b"shared"


def test_hard_links_to_symlinks_and_devices(merged) -> None:
    found = merged(
        layer(
            entry("s", "symlink", linkname="a"),
            entry("t", "link", linkname="s"),
            entry("n", "char", devmajor=1, devminor=3),
            entry("m", "link", linkname="n"),
        )
    )
    assert sorted(i[0].type for i in (found["s"], found["t"])) == [tarfile.LNKTYPE, tarfile.SYMTYPE]
    assert sorted(i[0].type for i in (found["n"], found["m"])) == [tarfile.LNKTYPE, tarfile.CHRTYPE]


def test_paths_go_through_symlinks_inside_the_image(merged) -> None:
    found = merged(
        layer(
            entry("usr/lib", "dir"),
            entry("lib", "symlink", linkname="usr/lib"),
            entry("abs", "symlink", linkname="/usr/lib"),
            entry("up", "symlink", linkname="../../../usr/lib"),
        ),
        layer(entry("lib/a", data=b"1"), entry("abs/b", data=b"2"), entry("up/c", data=b"3")),
    )
    assert {"usr/lib/a", "usr/lib/b", "usr/lib/c"} < names(found)
    assert all(found[link][0].issym() for link in ("lib", "abs", "up"))


def test_a_write_through_a_link_out_stays_inside(merged, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    found = merged(
        layer(
            entry("out", "symlink", linkname=str(outside)),
            entry("out/evil", data=b"!"),
            entry("etc", "symlink", linkname="/../../../../etc"),
        )
    )
    assert found[str(outside).lstrip("/") + "/evil"][1] == b"!"
    assert list(outside.iterdir()) == []


def test_absolute_and_dotted_names_are_normalised(merged) -> None:
    found = merged(
        layer(entry("/a", data=b"1"), entry("./b//c/../d", data=b"2"), entry("/../e", data=b""))
    )
    assert names(found) == {"a", "b", "b/d", "e"}


def test_strange_names_survive(merged) -> None:
    strange = ["new\nline", "caf\u00e9", "b\udcff\udc80d", "-rf", "a=b", "back\\slash", "x" * 255]
    found = merged(layer(*(entry(name, data=b"1") for name in strange)))
    assert names(found) == set(strange)


def test_the_last_of_duplicates_counts(merged) -> None:
    found = merged(layer(entry("a", data=b"1"), entry("a", data=b"22"), entry("a", data=b"333")))
    assert found["a"][1] == b"333"


def test_old_archives_mark_directories_by_a_slash(merged) -> None:
    info, _ = entry("old/")
    found = merged(layer((info, b""), entry("old/f", data=b"1")))
    assert found["old"][0].isdir()


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        ([entry("../evil", data=b"")], "out of the image"),
        ([entry("a/../../evil", data=b"")], "out of the image"),
        ([entry("a", "link", linkname="../../etc/passwd")], "out of the image"),
        ([entry("a", "link", linkname="/etc/passwd")], "no file of the image"),
        ([entry("d", "dir"), entry("a", "link", linkname="d")], "no file of the image"),
        ([entry(".wh...", data=b"")], "whiteout"),
        ([entry(".wh..", data=b"")], "whiteout"),
        ([entry(".wh.", data=b"")], "whiteout"),
        ([entry("y" * 256, data=b"")], "longer than 255"),
        ([entry("z" * 256 + "/f", data=b"")], "longer than 255"),
        ([entry(".", data=b"")], "root directory"),
        (
            [
                entry("a", "symlink", linkname="b"),
                entry("b", "symlink", linkname="a"),
                entry("a/f", data=b""),
            ],
            "loop",
        ),
    ],
)
def test_hostile_entries_are_refused(merged, bad, part: str) -> None:
    with pytest.raises(HutchError, match=part) as caught:
        merged(layer(*bad))
    assert caught.value.code == "bad_image"


def test_endless_depth_is_refused(merged) -> None:
    step = "/".join("d" * 1 for _ in range(900))
    hops = [entry("s0", "symlink", linkname=step)]
    hops += [entry(f"s{n}/{step}", "dir") for n in range(1)]
    hops += [entry("s1", "symlink", linkname=f"{step}/{step}"), entry(f"s1/{step}", "dir")]
    with pytest.raises(HutchError, match="deep"):
        merged(layer(*hops))


def test_a_wrong_diff_id_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    path.write_bytes(layer(entry("a", data=b"1")))
    with pytest.raises(HutchError) as caught:
        merge([Layer(path, "sha256:" + "0" * 64, LIMIT)], lambda n: None)
    assert caught.value.code == "digest_mismatch"


@pytest.mark.parametrize("how", ["", "gzip", "zstd"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_layer_is_refused(tmp_path: Path, how: str, share: float) -> None:
    body = layer(*(entry(f"f{n}", data=bytes(range(256)) * 40) for n in range(50)))
    packed = compress(body, how)
    path = tmp_path / "layer"
    path.write_bytes(packed[: int(len(packed) * share)])
    with pytest.raises(HutchError) as caught:
        merge([Layer(path, sha256(body), LIMIT)], lambda n: None)
    assert caught.value.code in ("bad_image", "digest_mismatch")


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_a_bomb_is_refused(tmp_path: Path, how: str) -> None:
    body = layer(entry("zeros", data=bytes(64 << 20)))
    path = tmp_path / "layer"
    path.write_bytes(compress(body, how))
    with pytest.raises(HutchError, match="bomb") as caught:
        merge([Layer(path, sha256(body), 16 << 20)], lambda n: None)
    assert caught.value.code == "bad_image"


def test_many_entries_take_seconds(merged) -> None:
    body = layer(*(entry(f"d{n % 100}/s{n % 1000}/f{n}", data=b"") for n in range(30_000)))
    start = time.process_time()
    found = merged(body, layer(*(entry(f".wh.d{n}", data=b"") for n in range(50))))
    assert len(names(found)) == 15_000 + 500 + 50
    assert time.process_time() - start < 20  # a step of each for each of the others takes minutes
