from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hutch.errors import GuestError, NotFound
from hutch.sdk import AsyncClient, AsyncSandbox
from hutch.sdk.aio.files import AsyncFiles


@pytest.fixture
async def files(api: str) -> AsyncIterator[AsyncFiles]:
    async with AsyncClient(socket=api) as client:
        yield (await AsyncSandbox.connect("box", client=client)).files


async def test_reads_and_writes(files: AsyncFiles) -> None:
    assert await files.write("/f", "é", mode=0o600) == 2
    assert (await files.stat("/f")).mode == 0o600
    assert await files.read("/f") == "é"
    assert await files.write("/f", [b"a", b"b"], append=True) == 4
    assert await files.read_bytes("/f", offset=1, length=2) == b"\xa9a"
    with pytest.raises(GuestError):
        await files.write("/f", b"", exclusive=True)


async def test_directories(files: AsyncFiles) -> None:
    await files.mkdir("/d")
    await files.write("/d/x", b"1")
    await files.symlink("x", "/d/l")
    await files.rename("/d/x", "/d/y")
    await files.chmod("/d/y", 0o700)
    await files.chown("/d/y", 7, 8)
    found = await files.list("/d")
    assert [(item.name, item.type, item.uid) for item in found] == [
        ("l", "symlink", 0),
        ("y", "file", 7),
    ]
    assert await files.exists("/d/y")
    assert not await files.exists("/d/x")
    await files.remove("/d", recursive=True)
    with pytest.raises(NotFound):
        await files.list("/d")


async def test_up_and_down(files: AsyncFiles, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 10_000)
    assert await files.upload(source, "/copy", mode=0o444) == 2_560_000
    assert await files.download("/copy", tmp_path / "back") == 2_560_000
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    with pytest.raises(NotFound):
        await files.download("/none", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "source"]
