"""Building a template: what is done before the freeze, and by whom."""

import asyncio
from pathlib import Path

import pytest

from hutch.engine.base import Frozen
from hutch.errors import error
from hutch.guest.base import Guest
from hutch.guest.session import connect_guest
from hutch.images.base import no_report
from hutch.service import build
from tests.unit.service.world import World, expect, spec


async def test_the_machine_is_ready_and_let_go_of_when_it_is_frozen(
    farm: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}
    guests: list[Guest] = []
    freeze = farm.engine.freeze

    async def connect(path: Path, *, timeout: float) -> Guest:
        guests.append(await connect_guest(path, timeout=timeout))
        return guests[-1]

    async def look(machine: object, directory: object) -> object:
        (agent,) = farm.agents.values()
        seen.update(stage=agent.stage, programs=agent.sessions, closed=guests[0].closed)
        seen.update(read=agent.prefetched)
        return await freeze(machine, directory)  # type: ignore[arg-type]

    monkeypatch.setattr(farm.engine, "freeze", look)
    async with farm.service(connect_guest=connect) as service:
        await service.templates.build(spec(idle=True), no_report)
    # The image's command, and what is usual: below the disk, and through it.
    read = ["sleep", "sh", "env"] * 2
    assert seen == {"stage": "ready", "programs": {}, "closed": True, "read": read}
    assert farm.leftovers() == []


async def test_a_bare_one_is_captured_before_its_disk_is_mounted(
    farm: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, object]] = []
    guests: list[Guest] = []
    capture, keep = farm.engine.capture, farm.engine.keep

    async def connect(path: Path, *, timeout: float) -> Guest:
        guests.append(await connect_guest(path, timeout=timeout))
        return guests[-1]

    def note(what: str) -> None:
        (agent,) = farm.agents.values()
        seen.append({"what": what, "stage": agent.stage, "disk": agent.mounted})

    async def look(machine: object, directory: object) -> object:
        note("capture")
        assert all(guest.closed for guest in guests)
        return await capture(machine, directory)  # type: ignore[arg-type]

    async def look_again(frozen: Frozen) -> None:
        note("keep")
        await keep(frozen)

    monkeypatch.setattr(farm.engine, "capture", look)
    monkeypatch.setattr(farm.engine, "keep", look_again)
    async with farm.service(connect_guest=connect) as service:
        await service.templates.build(spec(idle=True), no_report)
    assert seen[0] == {"what": "capture", "stage": "root", "disk": {}}
    assert [each["what"] for each in seen] == ["capture", "keep"]
    assert all(guest.closed for guest in guests)
    # The first answered before the capture, the second after it.
    assert len(guests) == 2
    assert farm.leftovers() == []


async def test_a_machine_that_ends_while_it_is_captured_leaves_nothing(farm: World) -> None:
    farm.engine.fail_capture = error("sandbox_died", "told to")
    async with farm.service() as service:
        await expect("sandbox_died", service.templates.build(spec(idle=True), no_report))
    assert farm.engine.frozen == []
    assert farm.leftovers() == []
    assert farm.templates() == []


async def test_builders_have_uids_of_their_own(
    farm: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.os, "geteuid", lambda: 0)
    async with farm.service() as service:
        await service.templates.build(spec(idle=True), no_report)
        await service.templates.build(spec(idle=True, cpus=2), no_report)
    past = farm.settings.uid_base + farm.settings.uid_count
    assert all(asked.uid is not None and asked.uid > past for asked in farm.engine.booted)


@pytest.mark.usefixtures("hurried")
async def test_a_builder_that_does_not_come_up_is_told_as_such(farm: World) -> None:
    farm.silent = True
    async with farm.service() as service:
        failure = await expect("boot_failed", service.templates.build(spec(idle=True), no_report))
    assert "a template of busybox" in failure.message
    assert farm.leftovers() == []
    assert farm.templates() == []


async def test_one_that_is_cancelled_while_its_vm_is_removed_still_leaves_nothing(
    farm: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    removing, go_on = asyncio.Event(), asyncio.Event()
    discard = farm.engine.discard

    async def slow_discard(directory: Path) -> None:
        removing.set()
        await go_on.wait()
        await discard(directory)

    monkeypatch.setattr(farm.engine, "discard", slow_discard)
    async with farm.service() as service:
        async with asyncio.TaskGroup() as group:
            building = group.create_task(service.templates.build(spec(), no_report))
            await removing.wait()
            building.cancel()
            go_on.set()
        assert building.cancelled()
        assert farm.leftovers() == []
        assert farm.templates() == []
