"""The initramfs, read back by cpio's own rules."""

import subprocess
from pathlib import Path

import pytest

from hutch.images.initramfs import build, key
from hutch.images.modules import Module

MODULES = [Module("a", b"A" * 33), Module("b", b"B" * 4096), Module("extra", b"E")]


def entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    found = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = numbers[1], numbers[6], numbers[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        at = at + 110 + name_size + (-(110 + name_size) % 4)
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[at : at + size])
        at += size + (-size % 4)


def test_what_is_in_it() -> None:
    found = entries(build(b"agent", MODULES, 2))
    assert found["init"] == (0o100755, b"agent")
    assert found["lib/m/b.ko"] == (0o100644, b"B" * 4096)
    assert found["modules.list"][1] == b"/lib/m/a.ko\n/lib/m/b.ko\n"
    assert found["modules.extra"][1] == b"/lib/m/extra.ko\n"
    assert found["dev/console"][0] == 0o20600
    names = list(found)
    assert names.index("lib") < names.index("lib/m") < names.index("lib/m/a.ko")


@pytest.mark.parametrize("size", [0, 1, 5, 4079, 4096, 123_457])
def test_it_ends_just_above_a_page(size: int) -> None:
    archive = build(bytes(size), MODULES, 1)
    assert len(archive) % 4096 == 16
    entries(archive)


def test_the_key_tells_agents_modules_and_order_apart() -> None:
    keys = {
        key(b"agent", MODULES, 2),
        key(b"agent2", MODULES, 2),
        key(b"agent", MODULES, 1),
        key(b"agent", MODULES[:2], 2),
        key(b"agent", MODULES[::-1], 2),
    }
    assert len(keys) == 5
    assert key(b"agent", MODULES, 2) == key(b"agent", list(MODULES), 2)


def test_cpio_reads_it(tmp_path: Path) -> None:
    listed = subprocess.run(
        ["cpio", "--quiet", "-t"],
        input=build(b"agent", MODULES, 2),
        capture_output=True,
        check=True,
    )
    assert b"lib/m/extra.ko" in listed.stdout.splitlines()
