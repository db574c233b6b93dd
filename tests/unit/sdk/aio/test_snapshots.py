from pathlib import Path

import pytest

from hutch.errors import NotFound
from hutch.sdk import AsyncClient


async def test_a_snapshot_and_its_file(api: str, tmp_path: Path) -> None:
    async with AsyncClient(socket=api) as client:
        taken = await client.snapshots.create("box", name="before")
        assert await client.snapshots.list("box") == [taken]
        assert (await client.snapshots.get("before")).id == taken.id
        assert (await client.snapshots.restore("before", "again")).name == "again"
        size = await client.snapshots.export("before", tmp_path / "file")
        assert (tmp_path / "file").stat().st_size == size
        assert (await client.snapshots.load(tmp_path / "file", name="there")).name == "there"
        assert (await client.snapshots.remove("before")).removed == [taken.id]
        with pytest.raises(NotFound):
            await client.snapshots.get("before")
