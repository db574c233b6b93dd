"""Statistics of a guest that may say anything."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from hutch.guest.base import Guest
from hutch.images.base import no_report
from hutch.models import SandboxState, TemplatePoint
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
        assert found.state is SandboxState.RUNNING
        assert found.host_memory == (512 << 20) // 10
        parts = (
            found.host_memory_private,
            found.host_memory_shared,
            found.host_memory_engine,
        )
        assert sum(parts) == found.host_memory
        assert all(parts)
        assert found.host_memory_template > found.host_memory_shared
        assert 0 < found.host_disk < 1 << 20
        assert found.host_disk_shared > 0
        assert found.load == [0.0, 0.25, 0.5]
        again = await service.sandboxes.stats(info.id)
        assert again.cpu_percent == 0.0
        table = await service.sandboxes.processes(info.id)
        assert [row.exec_id for row in table] == [None, "main"]


async def test_a_paused_sandbox_is_not_woken(world: World) -> None:
    async with world.service() as service:
        info = await service.sandboxes.create(spec(), no_report)
        await service.sandboxes.start(info.id)
        await service.sandboxes.pause(info.id)
        found = await service.sandboxes.stats(info.id)
        assert (found.state, found.cpu_percent) == (SandboxState.PAUSED, 0.0)
        assert found.memory_used is found.processes is found.uptime_seconds is None
        assert found.host_memory == (512 << 20) // 10
        assert (await service.sandboxes.get(info.id)).state is SandboxState.PAUSED


async def test_a_clone_shares_what_it_began_with(farm: World) -> None:
    async with farm.service() as service:
        for name in ("one", "two"):
            await service.sandboxes.create(spec(name=name), no_report)
            await service.sandboxes.start(name)
        templates = {info.point: info for info in await service.templates.list()}
        usage = await service.system.usage()
        held = [info.memory_bytes for info in templates.values()]
        assert usage.template_memory == sum(held) > max(held) > 0
        assert usage.memory_promised == 2 * 512 << 20
        assert usage.memory_total == farm.memory.total
        assert [each.name for each in usage.sandboxes] == ["one", "two"]
        for each in usage.sandboxes:
            found = await service.sandboxes.stats(each.id)
            assert (each.memory, each.disk) == (found.host_memory, found.host_disk)
            assert found.host_disk_shared >= templates[TemplatePoint.FRESH].disk_bytes // 2
        await service.sandboxes.stop("one")
        usage = await service.system.usage()
        assert usage.memory_promised == 512 << 20
        assert [each.memory > 0 for each in usage.sandboxes] == [False, True]
        await service.sandboxes.remove("one")
        assert len((await service.system.usage()).sandboxes) == 1


def test_holes_take_no_space(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "full").write_bytes(b"x" * 8192)
    assert 8192 <= stats.disk_use(tmp_path) <= 65536
    assert stats.disk_use(tmp_path / "none") == 0
    assert 8192 <= stats.disk_use(tmp_path / "full") <= 16384


def test_what_has_names_elsewhere_is_not_its_own(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "both").write_bytes(b"x" * 8192)
    (tmp_path / "other" / "both").hardlink_to(tmp_path / "one" / "both")
    (tmp_path / "one" / "alone").write_bytes(b"x" * 4096)
    before = stats.uses_of(tmp_path / "one")
    assert 4096 <= before.own <= 8192 <= before.shared <= 16384
    assert stats.disk_use(tmp_path / "one") == sum(before)
    (tmp_path / "other" / "both").unlink()
    assert stats.uses_of(tmp_path / "one") == (sum(before), 0)
