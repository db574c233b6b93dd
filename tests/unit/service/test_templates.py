"""Templates, with a fake engine: made once, never half, within a budget, kept while needed."""

import asyncio
import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.errors import error
from hutch.images.base import no_report
from hutch.models import SandboxInfo, SandboxState, TemplateInfo, TemplatePoint
from hutch.service import recipe
from hutch.service import templates as module
from hutch.service.host import HostService
from hutch.service.spec import HostSize
from hutch.service.templatefile import MANIFEST
from hutch.settings import MIB
from tests.unit.service.world import World, expect, spec
from tests.waiting import until


async def run(service: HostService, **fields: Any) -> SandboxInfo:
    """Make a sandbox and start it."""
    info = await service.sandboxes.create(spec(**fields), no_report)
    return await service.sandboxes.start(info.id)


async def found(
    service: HostService, point: TemplatePoint = TemplatePoint.FRESH
) -> list[TemplateInfo]:
    """Return the templates of one point."""
    return [info for info in await service.templates.list() if info.point is point]


def with_disk(farm: World) -> list[Path]:
    """Return the directories of fresh templates, also of those of which only the disk is left."""
    return [path for path in farm.templates() if (path / "disk.qcow2").exists()]


def kinds(service: HostService, prefix: str = "template.") -> list[str]:
    kept = service._parts.events.kept(None)
    return [event.kind for event in kept if event.kind.startswith(prefix)]


async def test_the_first_start_makes_one_and_every_start_clones_it(farm: World) -> None:
    async with farm.service() as service:
        infos = [await run(service) for _ in range(3)]
        (template,) = await found(service)
        assert {info.template for info in infos} == {template.id}
        assert (template.sandboxes, template.running) == (3, 3)
        assert template.key.startswith(template.id[:12])
        assert template.disk_bytes > 0
        assert template.memory_bytes > 0
        (built,) = farm.engine.booted
        assert built.freezable
        assert built.id.startswith("tb_")
        assert [clone.id for clone, _ in farm.engine.cloned] == [info.id for info in infos]
        (bare,) = await found(service, TemplatePoint.BARE)
        assert (bare.sandboxes, bare.image) == (0, "busybox")
        assert [frozen.directory.name for frozen in farm.engine.captured] == [bare.id]
        assert kinds(service) == ["template.built"] * 2
        assert all(info.state is SandboxState.RUNNING for info in infos)


async def test_what_a_clone_is_given(farm: World) -> None:
    async with farm.service() as service:
        info = await run(service, hostname="mine")
        ((clone, frozen),) = farm.engine.cloned
        disk = clone.drives[1]
        assert disk.layers == (
            farm.settings.home / "templates" / str(info.template) / "disk.qcow2",
        )
        assert disk.backing == farm.settings.home / f"base-{farm.settings.disk}"
        assert frozen.directory.name == info.template
        identity = farm.agent(info).identity
        assert identity["hostname"] == "mine"
        assert identity["generation"] == 1
        other = await run(service)
        assert farm.agent(other).identity["entropy"] != identity["entropy"]
        assert farm.agent(other).identity["machine_id"] != identity["machine_id"]
        built = farm.agents[farm.engine.booted[0].id].identity
        assert built["machine_id"] == b"0" * 32


async def test_two_starts_at_once_make_one_template(farm: World) -> None:
    async with farm.service() as service:
        infos = await _together(*(run(service) for _ in range(4)))
        assert len({info.template for info in infos}) == 1
        assert len(farm.engine.booted) == 1


async def _together(*work: Any) -> list[Any]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in work]
    return [task.result() for task in tasks]


async def test_a_cancelled_builder_leaves_nothing_and_the_next_takes_over(farm: World) -> None:
    async with farm.service() as service:
        farm.engine.hang_freeze = True
        first = await service.sandboxes.create(spec(), no_report)
        second = await service.sandboxes.create(spec(), no_report)
        async with asyncio.TaskGroup() as group:
            one = group.create_task(service.sandboxes.start(first.id))
            await until(lambda: len(farm.engine.frozen) == 1)
            two = group.create_task(service.sandboxes.start(second.id))
            farm.engine.hang_freeze = False
            one.cancel()
        assert (await two).template is not None
        assert len(await found(service)) == 1
        assert (await service.sandboxes.get(first.id)).state is SandboxState.CREATED


@pytest.mark.parametrize("knob", ["hang_boot", "hang_freeze", "hang_clone"])
async def test_a_start_that_is_cancelled_leaves_nothing_half_made(farm: World, knob: str) -> None:
    async with farm.service() as service:
        info = await service.sandboxes.create(spec(), no_report)
        setattr(farm.engine, knob, True)
        asked = {
            "hang_boot": farm.engine.booted,
            "hang_freeze": farm.engine.frozen,
            "hang_clone": farm.engine.cloned,
        }[knob]
        async with asyncio.TaskGroup() as group:
            start = group.create_task(service.sandboxes.start(info.id))
            await until(lambda: len(asked) == 1)  # type: ignore[arg-type]
            start.cancel()
        assert farm.engine.running() == []
        complete = [path for path in farm.templates() if (path / MANIFEST).exists()]
        assert farm.templates() == complete
        assert len(complete) == (2 if knob == "hang_clone" else 0)
        setattr(farm.engine, knob, False)
        info = await service.sandboxes.start(info.id)
        assert info.template is not None
        await service.sandboxes.remove(info.id, force=True)
        assert farm.leftovers() == []


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1])
async def test_a_start_that_is_cancelled_at_any_moment(farm: World, delay: float) -> None:
    async with farm.service() as service:
        info = await service.sandboxes.create(spec(), no_report)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(service.sandboxes.start(info.id), delay)
        assert all((path / MANIFEST).exists() for path in farm.templates())
        info = await service.sandboxes.start(info.id)
        assert info.template is not None
        assert len(farm.engine.running()) == 1
        await service.sandboxes.remove(info.id, force=True)
        assert farm.leftovers() == []
        await service.templates.prune()
        assert farm.templates() == []


@pytest.mark.parametrize("knob", ["fail_boot_once", "fail_freeze"])
async def test_what_cannot_be_built_boots_cold_and_is_not_tried_again_at_once(
    farm: World, knob: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = error("engine_failed", "told to")
    if knob == "fail_freeze":
        farm.engine.fail_freeze = failure
    else:
        boot = farm.engine.boot

        async def fail_freezable(machine: Any) -> Any:
            if machine.freezable:
                farm.engine.booted.append(machine)
                raise failure
            return await boot(machine)

        monkeypatch.setattr(farm.engine, "boot", fail_freezable)
    async with farm.service() as service:
        infos = [await run(service) for _ in range(2)]
        assert [info.template for info in infos] == [None, None]
        assert [asked.freezable for asked in farm.engine.booted] == [True, False, False]
        assert kinds(service) == ["template.failed"]
        assert farm.templates() == []
        assert not list(farm.settings.runtime_dir.glob("tb_*"))
        # Later it is tried again.
        farm.engine.fail_freeze = None
        monkeypatch.undo()
        service._lives.templates._failed.clear()
        assert (await run(service)).template is not None


async def test_a_template_that_does_not_load_is_thrown_away(farm: World) -> None:
    async with farm.service() as service:
        first = await run(service)
        (directory,) = with_disk(farm)
        (directory / "state").write_bytes(b"nonsense")
        second = await run(service)
        assert second.template is None
        assert second.state is SandboxState.RUNNING
        assert "template.dropped" in kinds(service)
        # The first one's disk is still based on its disk.
        assert [path.name for path in directory.iterdir()] == ["disk.qcow2"]
        third = await run(service)
        assert third.template not in (None, first.template)


async def test_an_engine_that_fails_otherwise_costs_no_template(farm: World) -> None:
    async with farm.service() as service:
        await run(service)
        farm.engine.fail_clone = error("engine_failed", "no reason of the template's")
        assert (await run(service)).template is None
        assert len(await found(service)) == 1


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("fault", ["deny_entropy", "deaf_clones"])
async def test_a_clone_that_does_not_take_its_identity_is_not_served(
    farm: World, fault: str
) -> None:
    async with farm.service() as service:
        setattr(farm, fault, True)
        info = await run(service)
        assert info.template is None
        ((clone, _),) = farm.engine.cloned
        assert len(farm.engine.booted) == 2  # the template, and the sandbox, cold
        (served,) = farm.engine.running()
        assert served.spec is farm.engine.booted[1]
        assert served.spec.drives[1].layers == ()
        assert clone.id == info.id
        assert await found(service) == []
        assert with_disk(farm) == []


async def test_a_later_start_is_a_clone_that_mounts_the_same_disk(farm: World) -> None:
    async with farm.service() as service:
        info = await run(service, hostname="mine")
        first = farm.engine.cloned[0][0].drives[1]
        await service.sandboxes.stop(info.id)
        again = await service.sandboxes.start(info.id)
        assert again.template == info.template
        assert len(farm.engine.booted) == 1
        (bare,) = await found(service, TemplatePoint.BARE)
        clone, frozen = farm.engine.cloned[1]
        assert frozen.directory.name == bare.id
        assert clone.drives[1] == first  # size None: it is the one that the guest expects
        agent = farm.agent(again)
        assert agent.mounted["serial"] == recipe.DISK_SERIAL
        assert agent.identity["hostname"] == "mine"
        assert agent.identity["generation"] == 2


async def test_another_size_of_disk_is_brought_to_a_bare_template(farm: World) -> None:
    async with farm.service() as service:
        info = await run(service, disk=64 * MIB)
        (bare,) = await service.templates.list()
        assert (bare.point, bare.disk, info.template) == (TemplatePoint.BARE, 64 * MIB, bare.id)
        assert (bare.sandboxes, bare.running) == (1, 1)
        assert with_disk(farm) == []
        other = await run(service, disk=65 * MIB)
        assert other.template == bare.id
        assert len(farm.engine.booted) == 1
        disks = [clone.drives[1] for clone, _ in farm.engine.cloned]
        for disk, size in zip(disks, (64, 65), strict=True):
            assert disk.layers == ()
            assert disk.backing == farm.settings.home / f"base-{size * MIB}"
            assert disk.size == (None if size == 64 else size * MIB)
        assert farm.agent(other).mounted["size"] == 65 * MIB
        # It is no template's disk that theirs are based on.
        await service.templates.remove(bare.id)
        assert farm.templates() == []


async def test_a_fresh_template_is_made_where_there_is_a_bare_one(farm: World) -> None:
    async with farm.service() as service:
        await run(service, disk=64 * MIB)
        assert farm.engine.captured == []  # its machine ended where it was frozen
        await run(service)
        assert farm.engine.captured == []
        assert [info.point for info in await service.templates.list()] == ["fresh", "bare"]


async def test_a_moment_that_cannot_be_captured_costs_only_the_bare_template(farm: World) -> None:
    farm.engine.fail_capture = error("engine_failed", "told to")
    async with farm.service() as service:
        info = await run(service)
        assert [template.id for template in await service.templates.list()] == [info.template]
        assert len(farm.templates()) == 1
        assert sorted(kinds(service)) == ["template.built", "template.failed"]
        await service.sandboxes.stop(info.id)
        again = await service.sandboxes.start(info.id)
        assert again.state is SandboxState.RUNNING
        assert not farm.engine.booted[-1].freezable  # cold: it is not tried again at once


async def test_a_memory_that_cannot_be_kept_costs_both(farm: World) -> None:
    farm.engine.fail_keep = error("disk_full", "told to")
    async with farm.service() as service:
        assert (await run(service)).template is None
        assert farm.templates() == []
        assert [
            frozen for frozen in farm.engine.captured if farm.engine.frozen_memory(frozen)
        ] == []


async def test_a_used_disk_that_does_not_mount_is_not_the_templates_fault(
    farm: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with farm.service() as service:
        info = await run(service)
        await service.sandboxes.stop(info.id)
        farm.refuse_disks = True
        failure = await expect("guest_failed", service.sandboxes.start(info.id))
        assert "told to" in failure.message
        assert not farm.engine.booted[-1].freezable  # tried cold as well
        assert len(await service.templates.list()) == 2
        farm.refuse_disks = False
        assert (await service.sandboxes.start(info.id)).state is SandboxState.RUNNING


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("fault", ["deny_entropy", "deaf_clones"])
async def test_a_later_start_whose_clone_fails_boots_cold(farm: World, fault: str) -> None:
    async with farm.service() as service:
        info = await run(service)
        layers = farm.layers()
        await service.sandboxes.stop(info.id)
        setattr(farm, fault, True)
        again = await service.sandboxes.start(info.id)
        assert again.state is SandboxState.RUNNING
        assert len(farm.engine.running()) == 1
        assert not farm.engine.booted[-1].freezable
        assert farm.layers() == layers
        assert await found(service, TemplatePoint.BARE) == []
        assert len(await found(service)) == 1


async def test_without_template(farm: World) -> None:
    async with farm.service() as service:
        assert (await run(service, template=False)).template is None
        info = await service.sandboxes.create(spec(), no_report)
        assert (await service.sandboxes.start(info.id, template=False)).template is None
        assert (await run(service, memory=300 * MIB)).template is None
        assert (await run(service, disk=64 * MIB, template=False)).template is None
        assert farm.templates() == []


async def test_the_disk_stays_as_long_as_a_sandbox_needs_it(farm: World) -> None:
    async with farm.service() as service:
        one, two = [await run(service) for _ in range(2)]
        removed = await service.templates.remove(str(one.template)[:6])
        assert removed.removed == [one.template]
        assert removed.bytes >= 0
        (directory,) = with_disk(farm)
        assert [path.name for path in directory.iterdir()] == ["disk.qcow2"]
        await service.sandboxes.remove(one.id, force=True)
        assert with_disk(farm) == [directory]
    async with farm.service() as service:
        assert with_disk(farm) == [directory]
        await service.sandboxes.stop(two.id)
        assert (await service.sandboxes.start(two.id)).template == two.template
        await service.sandboxes.remove(two.id, force=True)
        assert with_disk(farm) == []


async def test_templates_outlive_the_daemon(farm: World) -> None:
    async with farm.service() as service:
        first = await run(service)
    async with farm.service() as service:
        assert (await run(service)).template == first.template
    assert len(farm.engine.booted) == 1


async def test_half_made_and_stale_ones_are_swept_at_the_start(farm: World) -> None:
    async with farm.service() as service:
        info = await run(service)
        await service.sandboxes.remove(info.id, force=True)
    kept = farm.templates()
    assert len(kept) == 2
    half = kept[0].parent / "0123456789ab-000000"
    half.mkdir()
    (half / "memory").write_bytes(b"half")
    broken = kept[0].parent / "0123456789ab-000001"
    broken.mkdir()
    (broken / MANIFEST).write_text("{")
    runtime = farm.settings.runtime_dir / "tb_0123456789ab-000000"
    runtime.mkdir()
    async with farm.service():
        assert farm.templates() == kept
        assert not runtime.exists()
    farm.engine.program = "another build"
    async with farm.service() as service:
        assert farm.templates() == []
        assert "template.dropped" in kinds(service)


async def test_one_of_another_format_or_without_its_memory_is_swept(farm: World) -> None:
    async with farm.service() as service:
        await service.templates.build(spec(idle=True), no_report)
    (directory,) = with_disk(farm)
    manifest = json.loads((directory / MANIFEST).read_text())
    (directory / MANIFEST).write_text(json.dumps(manifest | {"format": 0}))
    async with farm.service() as service:
        assert with_disk(farm) == []
        await service.templates.build(spec(idle=True), no_report)
    for directory in farm.templates():
        (directory / "memory").unlink()
    async with farm.service():
        assert farm.templates() == []


async def test_those_least_recently_used_are_dropped_above_the_budget(farm: World) -> None:
    farm.settings = replace(farm.settings, template_disk=1)
    async with farm.service() as service:
        running = await run(service, memory=128 * MIB)
        idle = await run(service, memory=256 * MIB)
        await service.sandboxes.remove(idle.id, force=True)
        newest = await run(service, memory=512 * MIB)
        left = {info.id for info in await found(service)}
        assert left == {running.template, newest.template}


async def test_memory_that_nobody_shares_is_let_go_of_above_a_share_of_the_hosts(
    farm: World,
) -> None:
    # The fake holds a tenth of a VM's memory: room for two.
    async with farm.service(host=HostSize(8, 512 * MIB)) as service:
        for _ in range(2):
            running = await run(service, memory=512 * MIB)
        idle = await run(service, memory=512 * MIB, cpus=4)
        await service.sandboxes.remove(idle.id, force=True)
        other = await run(service, memory=512 * MIB, cpus=2)
        await service.sandboxes.remove(other.id, force=True)
        assert (await run(service, memory=512 * MIB)).template == running.template
        held = {info.id: info.memory_bytes > 0 for info in await found(service)}
        assert held[str(running.template)]
        assert list(held.values()).count(True) < len(held) == 3
        # What is not in memory is not lost.
        assert (await run(service, memory=512 * MIB, cpus=4)).template == idle.template
        assert len(farm.engine.booted) == 3


async def test_the_order_of_use_outlives_the_daemon(farm: World) -> None:
    async with farm.service() as service:
        made = [
            await service.templates.build(spec(idle=True, memory=size * MIB), no_report)
            for size in (128, 256)
        ]
    places = farm.settings.home / "templates"
    os.utime(places / made[0].id / MANIFEST, (2e9, 2e9))
    os.utime(places / made[1].id / MANIFEST, (1e9, 1e9))
    farm.settings = replace(farm.settings, template_disk=made[0].disk_bytes + 1)
    async with farm.service() as service:
        assert [info.id for info in await service.templates.list()] == [made[0].id]


async def test_build_and_prune(farm: World) -> None:
    async with farm.service() as service:
        template = await service.templates.build(spec(idle=True, cpus=2), no_report)
        assert template.cpus == 2
        assert (await service.templates.build(spec(idle=True, cpus=2), no_report)).id == template.id
        info = await run(service)
        assert info.template != template.id
        pruned = await service.templates.prune()
        assert template.id in pruned.removed
        assert info.template not in pruned.removed
        await expect("template_not_found", service.templates.remove(template.id))
        await expect("bad_size", service.templates.build(spec(idle=True, cpus=3), no_report))


async def test_a_build_that_fails_says_why(farm: World) -> None:
    farm.engine.fail_freeze = error("disk_full", "full")
    async with farm.service() as service:
        await expect("disk_full", service.templates.build(spec(idle=True), no_report))
        assert farm.templates() == []


async def test_a_manifest_that_cannot_be_written_leaves_nothing(
    farm: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(template: Any) -> None:
        raise OSError(28, "No space left on device", str(template.directory))

    monkeypatch.setattr(module, "write_manifest", refuse)
    async with farm.service() as service:
        await expect("disk_full", service.templates.build(spec(idle=True), no_report))
        assert farm.templates() == []
        assert (await run(service)).template is None


async def test_switched_off(world: World) -> None:
    async with world.service() as service:
        assert (await run(service)).template is None
        failure = await expect("bad_setting", service.templates.build(spec(idle=True), no_report))
        assert "switched off" in failure.message
