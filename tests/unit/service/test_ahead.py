"""From a request to what is made ahead of such requests."""

from dataclasses import replace

import pytest

from hutch.errors import HutchError
from hutch.images.base import no_report
from hutch.models import SandboxSpec
from hutch.service.ahead import Ahead, look_ahead
from hutch.settings import GIB, MIB
from tests.unit.service.world import IMAGE_ID, World, expect, spec


async def look(world: World, request: SandboxSpec) -> Ahead:
    async with world.service() as service:
        booter = service._lives.booter
        return await look_ahead(service._parts, booter, request, no_report)


async def test_what_such_sandboxes_have_in_common(farm: World) -> None:
    ahead = await look(farm, spec(idle=True, memory=GIB))
    assert (ahead.info.image_id, ahead.info.id) == (IMAGE_ID, "")
    assert (ahead.recipe.image_id, ahead.recipe.memory) == (IMAGE_ID, GIB)
    assert ahead.recipe == (await look(farm, spec("true", memory=GIB))).recipe


@pytest.mark.parametrize("fields", [{"memory": 300 * MIB}, {"cpus": 3}])
async def test_sizes_that_boot_cold(farm: World, fields: dict[str, int]) -> None:
    failure = await expect("bad_size", look(farm, spec(idle=True, **fields)))
    assert failure.hint is not None
    assert "128m" in failure.hint


async def test_without_templates_nothing_is_made_ahead(farm: World) -> None:
    farm.settings = replace(farm.settings, templates=False)
    await expect("bad_setting", look(farm, spec(idle=True)))


async def test_what_can_never_work_is_refused_before_an_image_is_asked_for(farm: World) -> None:
    with pytest.raises(HutchError):
        await look(farm, spec(idle=True, cpus=0))
    assert farm.images.asked == []
