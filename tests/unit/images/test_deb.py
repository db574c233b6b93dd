"""Debian packages: asked of a stand-in for apt, and unpacked."""

import os
import re
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.images.deb import download_kernel, unpack
from tests.unit.images.kernels import package

ALL = re.compile(r".*")


@pytest.mark.parametrize("how", ["xz", "zstd", "gzip", ""])
def test_every_compression(tmp_path: Path, how: str) -> None:
    path = package(tmp_path / "p.deb", {"./boot/a": b"x" * 100_000, "./usr/b": b"y"}, how)
    assert unpack(path, tmp_path / "out", re.compile(r"boot/.*")) == ["boot/a"]
    assert (tmp_path / "out/boot/a").read_bytes() == b"x" * 100_000
    assert not (tmp_path / "out/usr").exists()


def test_names_cannot_leave_the_directory(tmp_path: Path) -> None:
    path = package(tmp_path / "p.deb", {"../evil": b"", "./a/../../evil": b"", "ok": b""})
    assert unpack(path, tmp_path / "out", ALL) == ["ok"]
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("how", ["xz", "zstd", "gzip", ""])
def test_truncated_packages_are_refused(tmp_path: Path, share: float, how: str) -> None:
    path = package(tmp_path / "p.deb", {"a": os.urandom(50_000), "b": b"y"}, how)
    body = path.read_bytes()
    path.write_bytes(body[: int(len(body) * share)])
    with pytest.raises(HutchError) as caught:
        unpack(path, tmp_path / "out", ALL)
    assert caught.value.code == "bad_image"


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for apt: `apt-cache show` prints a file of that name, `apt-get download` makes
    packages.
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    shown = tmp_path / "shown"
    shown.mkdir()
    (programs / "apt-cache").write_text(
        f'#!/bin/sh\nfor last; do :; done\ncat "{shown}/$last" || exit 100\n'
    )
    (programs / "apt-get").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/log\n'
        'case "$*" in *update*) touch ' + str(tmp_path / "updated") + ";; esac\n"
        'case "$*" in *download*) ;; *) exit 0;; esac\n'
        f'for n; do if test -e "{shown}/$n"; then touch "$n.deb"; fi; done\n'
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return shown


async def test_the_kernel_parts_of_a_meta_package_are_fetched(apt: Path, tmp_path: Path) -> None:
    (apt / "linux-image-cloud").write_text(
        "Package: x\nDepends: linux-image-6.9-cloud (= 6.9), linux-headers-6.9, libc6\n"
    )
    (apt / "linux-image-6.9-cloud").write_text(
        "Package: y\nDepends: kmod, linux-base (>= 4), linux-binary-6.9 | other, linux-modules-6.9,"
        " linux-modules-extra-6.9\n"
    )
    for name in ("linux-binary-6.9", "linux-modules-6.9"):
        (apt / name).write_text(f"Package: {name}\n")
    work = tmp_path / "work"
    work.mkdir()
    got = await download_kernel("linux-image-cloud", work)
    assert [path.name for path in got] == [
        "linux-binary-6.9.deb",
        "linux-image-6.9-cloud.deb",
        "linux-image-cloud.deb",
        "linux-modules-6.9.deb",
    ]
    assert not (tmp_path / "updated").exists()


async def test_lists_of_our_own_are_fetched_when_the_hosts_lack_it(
    apt: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(HutchError, match="knows no package"):
        await download_kernel("linux-image-none", work)
    assert (tmp_path / "updated").exists()
    assert "Dir::State::lists=" in (tmp_path / "log").read_text()
