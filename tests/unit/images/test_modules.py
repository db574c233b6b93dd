"""Which modules a boot needs, and in which order."""

import gzip
import lzma
from pathlib import Path

import pytest
import zstandard

from hutch.errors import HutchError
from hutch.images.modules import ModuleTree, decompress, modinfo
from tests.unit.images.kernels import module, module_tree


def test_each_comes_after_what_it_needs(tmp_path: Path) -> None:
    tree = ModuleTree(
        module_tree(
            tmp_path,
            {
                "a/top.ko": module("middle-one,base", softdep="pre: soft post: later"),
                "b/middle_one.ko.xz": lzma.compress(module("base")),
                "c/base.ko.zst": zstandard.ZstdCompressor().compress(module()),
                "d/soft.ko.gz": gzip.compress(module()),
                "e/later.ko": module(),
                "e/unasked.ko": module(),
            },
        )
    )
    names = [m.name for m in tree.closure(["top", "base"])]
    assert names == ["base", "middle_one", "soft", "top"]
    assert all(m.body.startswith(b"\x7fELF") for m in tree.closure(["top"]))
    assert "unasked" in tree.names()


def test_builtin_and_missing_ones_are_left_out(tmp_path: Path) -> None:
    directory = module_tree(
        tmp_path, {"a.ko": module("b-c,gone")}, "kernel/drivers/b-c.ko\nkernel/net/d.ko.xz\n"
    )
    assert [m.name for m in ModuleTree(directory).closure(["a", "d", "nowhere"])] == ["a"]


def test_a_service_named_by_softdep_is_found(tmp_path: Path) -> None:
    directory = module_tree(
        tmp_path,
        {"libcrc32c.ko": module(softdep="pre: crc32c"), "crc32c_generic.ko": module()},
    )
    names = [m.name for m in ModuleTree(directory).closure(["libcrc32c"])]
    assert names == ["crc32c_generic", "libcrc32c"]


def test_a_circle_ends(tmp_path: Path) -> None:
    directory = module_tree(tmp_path, {"a.ko": module("b"), "b.ko": module("a")})
    assert {m.name for m in ModuleTree(directory).closure(["a"])} == {"a", "b"}


@pytest.mark.parametrize("name", ["m.ko.xz", "m.ko.zst", "m.ko.gz"])
def test_a_damaged_module_is_refused(name: str) -> None:
    with pytest.raises(HutchError) as caught:
        decompress(b"not compressed", name)
    assert caught.value.code == "bad_image"


@pytest.mark.parametrize("body", [b"", b"\x7fELF\x02", module()[:100], b"text" * 100])
def test_what_is_no_module_is_refused(body: bytes) -> None:
    with pytest.raises(HutchError):
        modinfo(body, "m")


def test_modinfo_is_read() -> None:
    assert modinfo(module("x,y", license="GPL"), "m") == {"depends": ["x,y"], "license": ["GPL"]}
