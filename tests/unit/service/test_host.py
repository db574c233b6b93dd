"""The service put together: what entering and leaving it do, and that it is what the API needs."""

import inspect
from dataclasses import replace

import pytest

from hutch.api import operations
from hutch.errors import error
from hutch.network.absent import NoNetwork
from hutch.service import host
from hutch.service.host import open_host
from hutch.settings import Settings
from tests.unit.service.world import World, expect

PARTS = ["sandboxes", "execs", "files", "images", "kernels", "networks", "system"]


@pytest.mark.parametrize("part", PARTS)
async def test_it_has_all_operations(world: World, part: str) -> None:
    async with world.service() as service:
        protocol = getattr(operations, part.capitalize())
        for name, wanted in inspect.getmembers(protocol, inspect.isfunction):
            if not name.startswith("_"):
                method = getattr(type(getattr(service, part)), name)
                parameters = list(inspect.signature(wanted).parameters)
                assert list(inspect.signature(method).parameters) == parameters, name


async def test_the_real_one_opens_on_an_empty_home(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "host_network", lambda settings: NoNetwork())
    async with open_host(settings) as service:
        assert (await service.system.info()).sandboxes == 0
        assert await service.images.list() == []


async def test_a_store_that_does_not_open(world: World) -> None:
    class Broken:
        async def open(self) -> None:
            raise error("daemon_version", "too new")

    await expect("daemon_version", world.service(store=Broken()).__aenter__())


def test_the_network_of_a_host(settings: Settings) -> None:
    network = host.host_network(replace(settings, dns_servers=("127.0.0.1:5353",)))
    assert not network.ability.taps
    assert network._options.servers == [("127.0.0.1", 5353)]
    assert network._options.dns == {"denied": "sinkhole"}
    user = network._options.user
    assert user is not None
    assert user > settings.uid_base + settings.uid_count
    assert host.host_network(settings)._options.servers is None
