"""The service put together: what entering and leaving it do, and that it is what the API needs."""

import inspect

import pytest

from hutch.api import operations
from hutch.errors import error
from hutch.service.host import open_host
from hutch.settings import Settings
from tests.unit.service.world import World, expect


@pytest.mark.parametrize("part", ["sandboxes", "execs", "files", "images", "kernels", "system"])
async def test_it_has_all_operations(world: World, part: str) -> None:
    async with world.service() as service:
        protocol = getattr(operations, part.capitalize())
        for name, wanted in inspect.getmembers(protocol, inspect.isfunction):
            if not name.startswith("_"):
                method = getattr(type(getattr(service, part)), name)
                parameters = list(inspect.signature(wanted).parameters)
                assert list(inspect.signature(method).parameters) == parameters, name


async def test_the_real_one_opens_on_an_empty_home(settings: Settings) -> None:
    async with open_host(settings) as service:
        assert (await service.system.info()).sandboxes == 0
        assert await service.images.list() == []


async def test_a_store_that_does_not_open(world: World) -> None:
    class Broken:
        async def open(self) -> None:
            raise error("daemon_version", "too new")

    await expect("daemon_version", world.service(store=Broken()).__aenter__())
