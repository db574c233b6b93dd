"""The network's log: numbered, rotated, followed, and no more of it than can be written."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.images.base import no_report
from hutch.models import SandboxInfo
from hutch.networking import NetworkLayer, NetworkRecord, Reason
from hutch.service import networklog
from hutch.service.host import HostService
from hutch.service.networklog import last_record
from hutch.tasks import Scope
from tests.unit.service.world import World, expect, spec
from tests.waiting import until


def record(sandbox_id: str, number: int = 1, **fields: object) -> NetworkRecord:
    made = NetworkRecord(
        number,
        f"2026-01-01T00:00:00.{number:03}Z",
        sandbox_id,
        NetworkLayer.TCP,
        False,
        Reason.NOT_ALLOWED,
        name=f"n{number}.example.com",
        port=443,
    )
    return replace(made, **fields)  # type: ignore[arg-type]


@pytest.fixture
async def service(world: World) -> AsyncIterator[HostService]:
    async with world.service() as service:
        yield service


async def run(service: HostService, **fields: str) -> SandboxInfo:
    info = await service.sandboxes.create(spec(idle=True, **fields), no_report)
    return await service.sandboxes.start(info.id)


async def kept(service: HostService, ref: str, **query: Any) -> list[NetworkRecord]:
    return [each async for each in service.networks.log(ref, **query)]


async def names(service: HostService, ref: str, **query: Any) -> list[str | None]:
    return [each.name for each in await kept(service, ref, **query)]


def denials(service: HostService) -> list[dict[str, object]]:
    events = service._parts.events.kept(None)
    return [dict(each.fields) for each in events if each.kind == "network.denied"]


async def logged(world: World, service: HostService, info: SandboxInfo, *numbers: int) -> None:
    """Have records decided, and wait until the last of them is in the log."""
    for number in numbers:
        world.network.decide(record(info.id, number))
    last = f"n{numbers[-1]}.example.com"

    async def written() -> bool:
        return last in await names(service, info.id)

    await until(written)


async def test_kept_in_order_and_asked_for_in_part(world: World, service: HostService) -> None:
    info = await run(service, name="web")
    assert await kept(service, "web") == []
    await logged(world, service, info, 3, 4, 5)
    found = await kept(service, "web")
    assert [(each.number, each.name, each.sandbox_id) for each in found] == [
        (1, "n3.example.com", info.id),
        (2, "n4.example.com", info.id),
        (3, "n5.example.com", info.id),
    ]
    assert [each.number for each in await kept(service, "web", since=2)] == [2, 3]
    assert [each.number for each in await kept(service, "web", tail=1)] == [3]
    assert await kept(service, "web", tail=0) == []
    with pytest.raises(Exception, match="no sandbox db"):
        service.networks.log("db")


async def test_followed_until_the_sandbox_is_gone(world: World, service: HostService) -> None:
    info = await run(service, name="web")
    seen: list[str | None] = []

    async def follow() -> None:
        async for each in service.networks.log("web", follow=True):
            seen.append(each.name)

    async with Scope("test") as scope:
        task = scope.start("follow", follow())
        world.network.decide(record(info.id, 1))
        await until(lambda: len(seen) == 1)
        world.network.decide(record(info.id, 2))
        await until(lambda: len(seen) == 2)
        await service.sandboxes.remove("web", force=True)
        await until(task.done)
    assert seen == ["n1.example.com", "n2.example.com"]


async def test_rotated_by_size_and_followed_over_that(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = await run(service, name="web")
    settings = replace(service._parts.settings, log_size=1000, log_files=2)
    monkeypatch.setattr(service.networks.logs, "_parts", replace(service._parts, settings=settings))
    seen: list[int] = []

    async def follow() -> None:
        async for each in service.networks.log("web", follow=True):
            seen.append(each.number)

    async with Scope("test") as scope:
        scope.start("follow", follow())
        for number in range(1, 31):
            world.network.decide(record(info.id, number))
            await until(lambda wanted=number: seen[-1:] == [wanted])  # type: ignore[misc]
    assert seen == list(range(1, 31))
    left = [each.number for each in await kept(service, "web")]
    assert left == list(range(left[0], 31))
    assert 3 <= len(left) < 30
    path = service._parts.places.network_log(info.id)
    assert sorted(each.name for each in path.parent.glob("network.jsonl*")) == [
        "network.jsonl",
        "network.jsonl.1",
        "network.jsonl.2",
    ]


async def test_it_goes_on_after_a_restart_of_the_daemon(world: World) -> None:
    async with world.service() as service:
        info = await run(service, name="web")
        await logged(world, service, info, 1, 2)
    path = service._parts.places.network_log(info.id)
    path.write_bytes(path.read_bytes() + b'{"number": 3, "cut')
    async with world.service() as service:
        # What is told again of what is on record is not written twice.
        await logged(world, service, info, 1, 2, 3)
        assert [(each.number, each.name) for each in await kept(service, "web")] == [
            (1, "n1.example.com"),
            (2, "n2.example.com"),
            (3, "n3.example.com"),
        ]


async def test_denials_are_events_a_few_of_them(
    world: World, service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networklog, "EVENT_SECONDS", 3600.0)
    info = await run(service, name="web")
    await logged(world, service, info, *range(1, 11))
    world.network.decide(record(info.id, 11, allowed=True, reason=Reason.ALLOWED))
    await logged(world, service, info, 12)
    assert len(denials(service)) == 1
    assert denials(service)[0] == {
        "count": 1,
        "layer": "tcp",
        "reason": "not_allowed",
        "target": "n1.example.com",
        "port": 443,
        "text": "",
    }
    monkeypatch.setattr(networklog, "EVENT_SECONDS", 0.0)
    await logged(world, service, info, 13)
    assert [each["count"] for each in denials(service)] == [1, 11]


async def test_what_is_decided_for_nobody_is_dropped(world: World, service: HostService) -> None:
    info = await run(service, name="web")
    world.network.decide(record("sb_000000000000", 1))
    await logged(world, service, info, 2)
    assert denials(service)[0]["target"] == "n2.example.com"


async def test_a_flood_is_cut_off(world: World, service: HostService) -> None:
    info = await run(service, name="web")
    feed = service.networks.logs._feed(info.id)
    for number in range(networklog.PENDING_MAX + 100):
        feed.take(record(info.id, number % 1000))
    assert len(feed.pending) == networklog.PENDING_MAX
    assert len(await kept(service, "web")) == networklog.PENDING_MAX


async def test_a_log_that_cannot_be_written(
    world: World, service: HostService, caplog: pytest.LogCaptureFixture
) -> None:
    info = await run(service, name="web")
    path = service._parts.places.network_log(info.id)
    path.mkdir()
    world.network.decide(record(info.id, 1))
    await until(lambda: "has a hole" in caplog.text)
    path.rmdir()
    await logged(world, service, info, 2)
    assert await names(service, "web") == ["n2.example.com"]


def test_the_last_record(tmp_path: Path) -> None:
    path = tmp_path / "network.jsonl"
    assert last_record(path) is None
    path.write_bytes(b"no json\n")
    assert last_record(path) is None


async def test_removed_ones_have_no_log(service: HostService) -> None:
    await run(service, name="web")
    await service.sandboxes.remove("web", force=True)

    async def ask() -> object:
        return service.networks.log("web")

    await expect("sandbox_not_found", ask())
