"""Building a template: what is done before the freeze, and by whom."""

from pathlib import Path

import pytest

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
        return await freeze(machine, directory)  # type: ignore[arg-type]

    monkeypatch.setattr(farm.engine, "freeze", look)
    async with farm.service(connect_guest=connect) as service:
        await service.templates.build(spec(idle=True), no_report)
    assert seen == {"stage": "ready", "programs": {}, "closed": True}
    assert farm.leftovers() == []


async def test_builders_have_uids_of_their_own(
    farm: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.os, "geteuid", lambda: 0)
    async with farm.service() as service:
        await service.templates.build(spec(idle=True), no_report)
        await service.templates.build(spec(idle=True, cpus=2), no_report)
    past = farm.settings.uid_base + farm.settings.uid_count
    assert all(asked.uid is not None and asked.uid > past for asked in farm.engine.booted)


async def test_a_builder_that_does_not_come_up_is_told_as_such(farm: World) -> None:
    farm.silent = True
    async with farm.service() as service:
        failure = await expect("boot_failed", service.templates.build(spec(idle=True), no_report))
    assert "a template of busybox" in failure.message
    assert farm.leftovers() == []
    assert farm.templates() == []
