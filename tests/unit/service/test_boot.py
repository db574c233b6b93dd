"""Booting one VM: under a watchdog, on one board after the other, leaving nothing behind."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from hutch.engine.base import ExitKind, MachineExit
from hutch.errors import HutchError, error
from hutch.guest.base import Guest
from hutch.guest.session import connect_guest
from hutch.images.base import no_report
from hutch.service import boot
from hutch.service.host import DATABASE
from hutch.state.base import SandboxRow
from hutch.state.sqlite import SqliteStore
from tests.unit.service.world import World, expect, spec


async def test_a_vm_that_ends_is_tried_again_on_the_next_board(world: World) -> None:
    world.silent = True
    world.engine.die_after = 0.05
    world.engine.die_as = MachineExit(ExitKind.PANIC, "oops")
    async with world.service() as service:
        info = await service.sandboxes.create(spec(), no_report)
        failure = await expect("boot_failed", service.sandboxes.start(info.id))
    assert [asked.machine.value for asked in world.engine.booted] == ["microvm", "microvm", "q35"]
    assert "panic" in failure.message
    assert world.engine.running() == []
    assert not (world.settings.runtime_dir / info.id).exists()


class _FullStore(SqliteStore):
    """Takes no note of a VM before `connected` is set, and then finds no room for it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connected = asyncio.Event()

    async def set_machine(self, sandbox_id: str, machine: Mapping[str, Any] | None) -> SandboxRow:
        if machine is not None:
            await self.connected.wait()
            raise error("disk_full", "no room")
        return await super().set_machine(sandbox_id, machine)


@pytest.mark.parametrize("late", [False, True], ids=["before the agent answers", "after"])
async def test_a_vm_that_cannot_be_put_on_record_is_ended(world: World, *, late: bool) -> None:
    store, guests = _FullStore(world.settings.home / DATABASE), []
    if not late:
        store.connected.set()

    async def connect(path: Any, *, timeout: float) -> Guest:
        guests.append(await connect_guest(path, timeout=timeout))
        store.connected.set()
        return guests[-1]

    async with world.service(store=store, connect_guest=connect) as service:
        info = await service.sandboxes.create(spec(), no_report)
        failure = await expect("disk_full", service.sandboxes.start(info.id))
        assert failure.message == "no room"  # and no other board was tried
        assert len(world.engine.booted) == 1
        assert world.engine.running() == []
        assert all(guest.closed for guest in guests)
        assert (await service.sandboxes.get(info.id)).state.value == "failed"


@pytest.mark.usefixtures("hurried")
async def test_the_console_is_quoted_when_a_boot_fails(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.silent = True
    async with world.service() as service:
        info = await service.sandboxes.create(spec(), no_report)
        console = world.settings.home / "sandboxes" / info.id / "console.log"
        console.write_bytes(b"first\r\n" + b"line\n" * 30 + b"Kernel panic\r\n")
        failure = await expect("boot_failed", service.sandboxes.start(info.id))
    assert len(failure.details["console"]) == 20
    assert failure.details["console"][-1] == "Kernel panic"


@pytest.mark.parametrize(
    ("setting", "boards"),
    [("auto", ["microvm", "microvm", "q35"]), ("q35", ["q35"] * 2), ("microvm", ["microvm"] * 2)],
)
def test_boards(setting: str, boards: list[str]) -> None:
    assert [board.value for board in boot.boards(setting)] == boards


def test_no_board() -> None:
    with pytest.raises(HutchError):
        boot.boards("pc")
