"""Built-in images."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.images import builtin
from hutch.images.reference import BUILTIN


def test_each_name_has_its_recipe() -> None:
    assert set(builtin.RECIPES) == set(BUILTIN)


def test_busybox_has_links_and_the_files_of_a_system() -> None:
    body = builtin.busybox_layer(
        b"program", ["bin/ls", "/usr/bin/awk", "bin/busybox", "linuxrc", "../x"]
    )
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        found = {info.name: info for info in archive}
        program = archive.extractfile("bin/busybox")
        assert program is not None
        assert program.read() == b"program"
    assert found["bin/busybox"].isreg()
    assert found["bin/busybox"].mode == 0o755
    for link in ("bin/ls", "usr/bin/awk", "bin/sh"):
        assert found[link].linkname == "/bin/busybox"
    assert "linuxrc" not in found
    assert not any(".." in name for name in found)
    assert found["tmp"].mode == 0o1777
    assert {"etc/passwd", "etc/group", "root", "proc", "sys", "dev"} < set(found)
    assert {info.uid for info in found.values()} == {0}


async def test_busybox_comes_from_the_host(tmp_path: Path) -> None:
    await builtin.make_layer("busybox", tmp_path / "layer")
    with tarfile.open(tmp_path / "layer") as archive:
        assert len(archive.getnames()) > 100


@pytest.mark.parametrize(
    ("name", "package"), [("busybox", "busybox-static"), ("debian", "mmdebstrap")]
)
async def test_a_missing_tool_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setattr("hutch.process.which", lambda program: None)
    with pytest.raises(HutchError) as caught:
        await builtin.make_layer(name, tmp_path / "layer")
    assert caught.value.code == "tool_missing"
    assert package in (caught.value.hint or "")
    assert not (tmp_path / "layer").exists()


async def test_a_dynamic_busybox_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "busybox"
    program.write_text("#!/bin/sh\n# wants /lib64/ld-linux-x86-64.so.2\necho bin/ls\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(HutchError) as caught:
        await builtin.make_layer("busybox", tmp_path / "layer")
    assert caught.value.code == "tool_missing"


async def test_debian_is_made_from_the_hosts_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "mmdebstrap"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$0.log"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(
        builtin, "host_sources", lambda suite: [f"deb http://m.example/ {suite} main"]
    )
    await builtin.make_layer("debian", tmp_path / "layer")
    asked = (tmp_path / "mmdebstrap.log").read_text().splitlines()
    assert "--variant=minbase" in asked
    assert "--include=ca-certificates" in asked
    assert asked[-2] == str(tmp_path / "layer")
    assert asked[-1].startswith("deb http://m.example/ ")
