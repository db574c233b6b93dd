"""Dockerfiles: which base images they name, and real builds where buildah is installed."""

import os
import subprocess
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.images.base import no_report
from hutch.images.build import base_names, read_dockerfile
from hutch.images.store import ImageStore
from hutch.models import PullPolicy
from tests.unit.images.making import simple_image


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("FROM busybox\nRUN true\n", ["busybox"]),
        ("# FROM no\nfrom --platform=linux/amd64 a:1 as One\nFROM one\nFROM b\n", ["a:1", "b"]),
        ("FROM scratch\nCOPY x /\n", []),
        ("ARG BASE=debian\nARG V\nFROM ${BASE}:$V\n", ["debian:12"]),
        ("ARG X\nFROM ${X:-fallback}\n", ["fallback"]),
        ("FROM a\nFROM a\n", ["a"]),
        ("", []),
    ],
)
def test_base_images(text: str, names: list[str]) -> None:
    assert base_names(text, {"V": "12"}) == names


def test_the_dockerfile_is_found(tmp_path: Path) -> None:
    with pytest.raises(HutchError) as caught:
        read_dockerfile(tmp_path / "missing", None)
    assert caught.value.code == "bad_path"
    with pytest.raises(HutchError) as caught:
        read_dockerfile(tmp_path, None)
    assert caught.value.code == "bad_path"
    (tmp_path / "Dockerfile").write_text("FROM a")
    assert read_dockerfile(tmp_path, None) == (tmp_path / "Dockerfile", "FROM a")
    (tmp_path / "other").write_text("FROM b")
    assert read_dockerfile(tmp_path, tmp_path / "other")[1] == "FROM b"


async def test_without_buildah_it_says_so(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    monkeypatch.setattr("hutch.process.which", lambda program: None)
    with pytest.raises(HutchError) as caught:
        await store.build(tmp_path, no_report, tag="localhost/x")
    assert caught.value.code == "tool_missing"
    assert "buildah" in (caught.value.hint or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="buildah needs root for chroot")
async def test_a_dockerfile_is_built_from_our_images(store: ImageStore, tmp_path: Path) -> None:
    await store.load(simple_image().write_layout(tmp_path / "in", "localhost/base:1"), no_report)
    context = tmp_path / "context"
    context.mkdir()
    (context / "file").write_text("copied")
    (context / "Dockerfile").write_text(
        "ARG FROM=busybox\n"
        "FROM $FROM AS first\n"
        "ARG WORD\n"
        "RUN echo $WORD > /made && chmod 4755 /bin/busybox && rm /etc/shells\n"
        "FROM localhost/base:1\n"
        "COPY --from=first /made /made\n"
        "COPY file /file\n"
        'ENV KEY=value\nUSER 1000\nCMD ["run"]\n'
    )
    info = await store.build(context, no_report, tag="localhost/app:2", args={"WORD": "said"})
    assert info.references == ["localhost/app:2"]
    assert info.config.env["KEY"] == "value"
    assert (info.config.user, info.config.command) == ("1000", ["run"])
    image = await store.ensure("localhost/app:2", PullPolicy.NEVER, no_report)
    for name, text in (("made", b"said\n"), ("file", b"copied"), ("etc/hello", b"hello")):
        shown = subprocess.run(
            ["rdsquashfs", "-c", name, str(image.rootfs.path)], check=True, capture_output=True
        )
        assert shown.stdout == text


@pytest.mark.skipif(os.geteuid() != 0, reason="buildah needs root for chroot")
async def test_a_failing_build_says_why(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo the reason >&2; exit 3\n")
    with pytest.raises(HutchError, match="the reason") as caught:
        await store.build(tmp_path, no_report, tag="localhost/app:2")
    assert caught.value.code == "build_failed"
    assert [i.references for i in await store.list()] == [["busybox"]]
