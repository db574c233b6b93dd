"""Statistics of a guest that may say anything."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from hutch.guest.base import Guest
from hutch.images.base import no_report
from hutch.service import stats
from tests.unit.service.world import World, expect, spec


class Liar:
    """A guest that answers with nonsense."""

    async def processes(self) -> list[Mapping[str, Any]]:
        return [
            {"pid": -1, "command": 5, "started_ns": 1 << 62, "user": None, "uid": 7},
            {"pid": 1, "command": b"\xff" * 10_000, "exec_id": "ex_1", "cpu_ns": "x"},
        ]


async def test_a_lying_process_table() -> None:
    first, second = await stats.processes(cast(Guest, Liar()))
    assert (first.pid, first.command, first.user) == (0, "", "7")
    assert first.started_at.startswith("2116")
    assert len(second.command) == 4096
    assert second.exec_id == "ex_1"


async def test_a_running_sandbox(world: World) -> None:
    async with world.service() as service:
        info = await service.sandboxes.create(spec(), no_report)
        await expect("wrong_state", service.sandboxes.stats(info.id))
        await service.sandboxes.start(info.id)
        found = await service.sandboxes.stats(info.id)
        assert found.name == info.name
        assert found.memory_total == 512 << 20
        assert found.host_memory == (512 << 20) // 10
        assert 0 < found.host_disk < 1 << 20
        assert found.load == [0.0, 0.25, 0.5]
        again = await service.sandboxes.stats(info.id)
        assert again.cpu_percent == 0.0
        table = await service.sandboxes.processes(info.id)
        assert [row.exec_id for row in table] == [None, "main"]


def test_holes_take_no_space(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "full").write_bytes(b"x" * 8192)
    assert 8192 <= stats.disk_use(tmp_path) <= 65536
    assert stats.disk_use(tmp_path / "none") == 0
