"""One layer that says what many said, made with the real tool; what it must refuse."""

import subprocess
from pathlib import Path

import pytest

from hutch.engine.qcow2 import create_overlay
from hutch.errors import HutchError
from hutch.process import which
from hutch.service import flatten
from hutch.service.flatten import json_name, node_of

SIZE = 8 << 20

pytestmark = pytest.mark.skipif(which("qemu-img") is None, reason="qemu-img is not installed")


def chained(files: list[Path], base: Path) -> str:
    node = node_of(base, "raw")
    for path in reversed(files):
        node = node_of(path, "qcow2", node)
    return json_name(node)


def write(files: list[Path], base: Path, *commands: str) -> None:
    argv = ["qemu-io", *(word for command in commands for word in ("-c", command))]
    subprocess.run([*argv, chained(files, base)], check=True, capture_output=True)


def contents(files: list[Path], base: Path, target: Path) -> bytes:
    subprocess.run(
        ["qemu-img", "convert", "-O", "raw", chained(files, base), target],
        check=True,
        capture_output=True,
    )
    return target.read_bytes()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    path.write_bytes(b"\x11" * SIZE)
    return path


def chain(tmp_path: Path, base: Path, count: int) -> list[Path]:
    """Make a chain in which each layer has changed something, and zeroed something."""
    files: list[Path] = []
    for number in range(count):
        path = tmp_path / f"layer{number}"
        behind = files[0] if files else base
        create_overlay(path, SIZE, behind, "qcow2" if files else "raw")
        files.insert(0, path)
        at = number * 192
        write(files, base, f"write -P {number + 32} {at}k 100k", f"write -z {at + 128}k 64k")
    return files


@pytest.mark.parametrize("template", [False, True])
async def test_the_contents_stay(tmp_path: Path, base: Path, template: bool) -> None:
    files = chain(tmp_path, base, 6)
    before = contents(files, base, tmp_path / "before")
    target = tmp_path / "flat"
    last = files[-1] if template else None
    await flatten.flatten(files[:-1] if template else files, last, base, target)
    assert target.stat().st_mode & 0o777 == 0o600
    flat = [target, *([last] if last else [])]
    assert contents(flat, base, tmp_path / "after") == before
    assert contents(files, base, tmp_path / "again") == before


async def test_some_in_the_middle(tmp_path: Path, base: Path) -> None:
    files = chain(tmp_path, base, 7)
    before = contents(files, base, tmp_path / "before")
    target, last = tmp_path / "flat", files[-1]
    await flatten.flatten(files[1:4], last, base, target, files[4:-1])
    assert contents([files[0], target, *files[4:]], base, tmp_path / "after") == before
    assert contents(files, base, tmp_path / "again") == before


@pytest.mark.parametrize(
    ("offset", "data"),
    [(0, b"x"), (4, b"\0\0\0\2"), (32, b"\0\0\0\1"), (72, b"\0\0\0\0\0\0\0\4")],
)
async def test_a_header_that_asks_for_more_is_refused(
    tmp_path: Path, base: Path, offset: int, data: bytes
) -> None:
    files = chain(tmp_path, base, 2)
    with files[1].open("r+b") as file:
        file.seek(offset)
        file.write(data)
    with pytest.raises(HutchError, match="safely"):
        await flatten.flatten(files, None, base, tmp_path / "flat")
    assert not (tmp_path / "flat").exists()


async def test_what_a_header_says_of_others_is_not_followed(tmp_path: Path, base: Path) -> None:
    files = chain(tmp_path, base, 3)
    before = contents(files, base, tmp_path / "before")
    moved = [path.rename(tmp_path / f"moved{number}") for number, path in enumerate(files)]
    await flatten.flatten(moved, None, base, tmp_path / "flat")
    assert contents([tmp_path / "flat"], base, tmp_path / "after") == before


async def test_a_failure_leaves_nothing(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = chain(tmp_path, base, 2)
    monkeypatch.setattr(flatten.process, "minimal_env", lambda extra=None: {"PATH": "/nowhere"})
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HutchError) as caught:
        await flatten.flatten(files, None, base, tmp_path / "flat")
    assert caught.value.code == "tool_missing"
    assert not (tmp_path / "flat").exists()
