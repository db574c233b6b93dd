"""Booting one VM: under a watchdog, on one board after the other, leaving nothing behind."""

import pytest

from hutch.engine.base import ExitKind, MachineExit
from hutch.errors import HutchError
from hutch.images.base import no_report
from hutch.service import boot
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
