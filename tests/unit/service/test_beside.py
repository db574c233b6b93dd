"""A VM beside a sandbox's own: looked into with its programs frozen, and gone without a trace."""

import pytest

from hutch.errors import error
from hutch.images.base import no_report
from hutch.service.beside import Beside
from tests.unit.service.world import World, expect, spec


async def test_a_moment_is_looked_into(world: World) -> None:
    async with world.service() as service:
        info = await service.sandboxes.create(spec(idle=True, name="web"), no_report)
        await service.sandboxes.start(info.id)
        taken = await service.checkpoints.create("web")
        layers, row = world.layers(), service._registry.find("web").row
        beside = Beside(service._parts, service._lives.booter)
        async with service.snapshots.opened(taken.id) as past:
            async with beside.peek(row, past) as guest:
                assert len(world.engine.running()) == 2
                assert len(world.layers()) == len(layers) + 1
                other = world.agents[world.engine.running()[-1].spec.id]
                assert other.frozen
                assert other.identity["hostname"] == info.hostname
                assert await guest.list_execs() == []
            assert (len(world.engine.running()), world.layers()) == (1, layers)
            with pytest.raises(RuntimeError):
                async with beside.peek(row, past):
                    raise RuntimeError
            world.engine.fail_clone = error("engine_failed", "told to")
            await expect("engine_failed", beside.peek(row, past).__aenter__())
        assert (len(world.engine.running()), world.layers()) == (1, layers)
        assert service._registry.find("web").row == row
        await service.sandboxes.remove("web", force=True)
    assert world.leftovers() == []
