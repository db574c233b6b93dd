"""Ports that others had, and that are published again in the next life of their sandbox."""

import socket

import pytest

from hutch.images.base import no_report
from hutch.networking import PublishedPort
from hutch.service import publishing
from tests.unit.service.test_publishing import free_port
from tests.unit.service.world import World, spec
from tests.waiting import until

WEB = 80


async def test_what_is_told_of_a_port_ends_with_the_life_in_which_it_was_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "RETRY_SECONDS", 3600.0)  # by itself nothing is tried again
    number = free_port()
    asked = spec(ports=[PublishedPort(WEB, number)], provisional=True)
    async with world.service() as service:
        info = await service.sandboxes.create(asked, no_report)
        await service.sandboxes.start(info.id)
    other = socket.create_server(("127.0.0.1", number))
    with other:
        async with world.service() as service:
            entry = service._registry.find(info.id)
            await until(lambda: entry.info.ports[0].error, what="it is told")
            [repair] = service.ports._repaired.values()
            await service.sandboxes.stop(info.id)
            await until(repair.done, what="nobody repairs what is stopped")
            other.close()
            await service.sandboxes.start(info.id)
            await until(lambda: not entry.info.ports[0].error, what="it is published")
            await until(lambda: not service.ports._repaired, what="there is nothing to repair")
