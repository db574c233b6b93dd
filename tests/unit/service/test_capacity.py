"""Who is let in, who is refused and with which words, and that no room is given twice."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.images.base import no_report
from hutch.models import SandboxState
from hutch.service.capacity import (
    BOOT_ENGINE,
    CLONE,
    Capacity,
    Holding,
    Need,
    boot_need,
    clone_need,
    file_system_room,
)
from hutch.service.hostmemory import HostMemory
from hutch.service.values import SandboxFilter
from hutch.settings import GIB, MIB, Settings
from tests.unit.service.world import World, expect, spec


class Host:
    """A host of 8 GiB with 4 available, which a test changes as it likes."""

    def __init__(self, settings: Settings) -> None:
        limits = {"memory_reserve": GIB, "memory_overcommit": 2.0, "disk_reserve": GIB}
        self.memory = HostMemory(8 * GIB, 4 * GIB)
        self.free = 10 * GIB
        self.up: list[Holding] = []
        self.capacity = Capacity(
            replace(settings, **limits), read=lambda: self.memory, free=lambda path: self.free
        )
        self.capacity.count(lambda: self.up)

    def hold(self, name: str, memory: int, use: int = 0) -> None:
        self.up.append(Holding(name, name, memory, lambda: use))


@pytest.fixture
def host(settings: Settings) -> Host:
    return Host(settings)


def need(name: str = "one", memory: int = GIB, expected: int = 64 * MIB) -> Need:
    return Need(name, f"sandbox {name}", memory, expected)


async def refused(host: Host, wanted: Need) -> HutchError:
    before = host.capacity.room()
    with pytest.raises(HutchError) as caught:
        async with host.capacity.admit(wanted):
            pytest.fail("it was let in")
    assert caught.value.code == "no_capacity"
    assert caught.value.hint
    assert host.capacity.room() == before, "a refusal keeps nothing"
    return caught.value


async def test_room_is_kept_for_the_length_of_the_block(host: Host) -> None:
    async with host.capacity.admit(need()):
        room = host.capacity.room()
        assert (room.pending, room.promised) == (64 * MIB, GIB)
    room = host.capacity.room()
    assert (room.pending, room.promised) == (0, 0)


async def test_room_is_given_back_by_a_start_that_fails(host: Host) -> None:
    with contextlib.suppress(ValueError):
        async with host.capacity.admit(need()):
            raise ValueError
    assert host.capacity.room().pending == 0


async def test_too_little_memory(host: Host) -> None:
    host.hold("web", GIB, 700 * MIB)
    host.hold("db", GIB, 2 * GIB)
    host.hold("gone", GIB, 0)
    async with host.capacity.admit(need("first", expected=2900 * MIB)):
        failure = await refused(host, need("second", expected=173 * MIB))
    assert failure.details == {
        "resource": "memory",
        "needed": 173 * MIB,
        "available": 4 * GIB,
        "reserved": GIB,
        "pending": 2900 * MIB,
        "largest": [{"name": "db", "bytes": 2 * GIB}, {"name": "web", "bytes": 700 * MIB}],
    }
    for words in ("sandbox second", "173 MiB", "4.0 GiB are available", "1.0 GiB are kept"):
        assert words in failure.message
    assert "for starts under way" in failure.message
    assert failure.message.endswith("most is used by db (2.0 GiB), web (700 MiB)")
    async with host.capacity.admit(need("second", expected=172 * MIB)):
        pass


async def test_a_limit_of_a_control_group_is_named(host: Host) -> None:
    host.memory = HostMemory(2 * GIB, GIB, "/sys/fs/cgroup/x")
    assert "/sys/fs/cgroup/x" in (await refused(host, need())).message


async def test_more_promised_than_the_factor_allows(host: Host) -> None:
    for number in range(15):
        host.hold(f"sb{number}", GIB, MIB)
    async with host.capacity.admit(need("last")):
        failure = await refused(host, need("one more", memory=128 * MIB))
    assert failure.details["resource"] == "promise"
    assert failure.details["available"] == 0
    assert failure.details["limit"] == 16 * GIB
    assert "memory_overcommit" in (failure.hint or "")


async def test_a_disk_that_is_nearly_full(host: Host) -> None:
    host.free = GIB - 1
    failure = await refused(host, need())
    assert failure.details["resource"] == "disk"
    assert failure.details["available"] == GIB - 1
    assert "largest" not in failure.details
    host.free = GIB
    async with host.capacity.admit(need()):
        pass


async def test_two_at_once_do_not_share_the_last_room(host: Host) -> None:
    gate = asyncio.Event()
    outcomes: list[str] = []

    async def start(name: str) -> None:
        try:
            async with host.capacity.admit(need(name, expected=2 * GIB)):
                outcomes.append("in")
                await gate.wait()
        except HutchError as failure:
            outcomes.append(failure.code)
            gate.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(start("one"))
        group.create_task(start("two"))
    assert outcomes == ["in", "no_capacity"]


async def test_a_vm_that_is_up_and_still_starting_is_counted_once(host: Host) -> None:
    async with host.capacity.admit(need("one")):
        host.hold("one", GIB)
        assert host.capacity.room().promised == GIB
        async with host.capacity.admit(need("one")):
            assert host.capacity.room().pending == 64 * MIB
        assert host.capacity.room().pending == 64 * MIB
    assert host.capacity.room().promised == GIB


def test_what_starts_take() -> None:
    small, large = boot_need("a", "a", 64 * MIB), boot_need("a", "a", 16 * GIB)
    assert small.expected == 64 * MIB + BOOT_ENGINE
    assert small.expected < large.expected < GIB
    assert clone_need("a", "a", 512 * MIB).expected == CLONE
    assert clone_need("a", "a", 512 * MIB, 90 * MIB).expected == CLONE + 90 * MIB


def test_the_room_of_a_file_system(tmp_path: Path) -> None:
    assert file_system_room(tmp_path) > 0


# ---- in a service


@pytest.fixture
async def short(cloning: Settings) -> AsyncIterator[World]:
    """A world with templates whose host has room for one sandbox of 1 GiB at a time."""
    limits = {"memory_reserve": GIB, "memory_overcommit": 0.25}
    async with World(replace(cloning, **limits)) as world:
        world.memory = HostMemory(6 * GIB, 4 * GIB)
        yield world


async def test_a_refused_start_changes_nothing(short: World) -> None:
    async with short.service() as service:
        for name in ("one", "two"):
            await service.sandboxes.create(spec(name=name, idle=True, memory=GIB), no_report)
        await service.sandboxes.start("one")
        failure = await expect("no_capacity", service.sandboxes.start("two"))
        assert failure.details["resource"] == "promise"
        assert len(short.engine.running()) == 1
        assert (await service.sandboxes.get("one")).state is SandboxState.RUNNING
        await service.sandboxes.stop("one")
        assert (await service.sandboxes.start("two")).state is SandboxState.RUNNING
        await service.sandboxes.remove("two", force=True)
        await service.sandboxes.remove("one")
    assert short.leftovers() == []


async def test_a_template_that_there_is_no_room_for_is_not_given_up(short: World) -> None:
    async with short.service() as service:
        await service.sandboxes.create(spec(name="one", idle=True), no_report)
        short.memory = HostMemory(6 * GIB, GIB + 100 * MIB)
        await expect("no_capacity", service.sandboxes.start("one"))
        assert short.templates() == []
        short.memory = HostMemory(6 * GIB, 4 * GIB)
        info = await service.sandboxes.start("one")
        assert info.template is not None


async def test_machines_found_again_count(short: World) -> None:
    async with short.service() as service:
        await service.sandboxes.create(spec(name="one", idle=True, memory=GIB), no_report)
        await service.sandboxes.start("one")
    async with short.service() as service:
        await service.sandboxes.create(spec(name="two", idle=True, memory=GIB), no_report)
        await expect("no_capacity", service.sandboxes.start("two"))


async def test_members_of_pools_count_until_they_are_gone(short: World) -> None:
    async with short.service() as service:
        await service.pools.warm(spec(), 2, no_report, wait=True)
        assert (await service.system.usage()).memory_promised == GIB
        await service.sandboxes.create(spec(name="big", idle=True, memory=GIB), no_report)
        failure = await expect("no_capacity", service.sandboxes.start("big"))
        (most,) = failure.details["largest"]
        assert most["name"] == "the pool of busybox"
        assert most["bytes"] == 2 * (512 * MIB // 10)
        # One that becomes a sandbox is that, and no member any more.
        await service.sandboxes.create(spec(name="one"), no_report)
        await service.sandboxes.start("one")
        await service.pools.drain()
        assert (await service.system.usage()).memory_promised == 512 * MIB
        await service.sandboxes.start("big")
        await service.sandboxes.remove("big", force=True)
        await service.sandboxes.remove("one", force=True)


async def test_a_fork_that_there_is_no_room_for_leaves_its_source_alone(farm: World) -> None:
    async with farm.service() as service:
        await service.sandboxes.create(spec(name="one"), no_report)
        await service.sandboxes.start("one")
        there, farm.memory = farm.memory, HostMemory(64 * GIB, GIB)
        failure = await expect("no_capacity", service.forks.fork("one", ["two"]))
        assert "a copy of sandbox one" in failure.message
        assert (await service.sandboxes.get("one")).state is SandboxState.RUNNING
        left = await service.sandboxes.list(SandboxFilter(all=True))
        assert [info.name for info in left] == ["one"]
        farm.memory = there
        await service.forks.fork("one", ["two"])
        assert (await service.sandboxes.get("two")).state is SandboxState.RUNNING
        for name in ("one", "two"):
            await service.sandboxes.remove(name, force=True)
    assert farm.leftovers() == []
