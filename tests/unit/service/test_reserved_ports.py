"""Ports of the host that are published, and that no policy opens to a sandbox."""

from hutch.images.base import no_report
from hutch.networking import PublishedPort
from tests.unit.service.world import World, spec
from tests.waiting import until

WEB = 80


async def test_published_ports_are_kept_from_sandboxes_that_may_reach_the_host(
    world: World,
) -> None:
    async with world.service() as service:
        asked = spec(ports=[PublishedPort(WEB)], provisional=True)
        made = await service.sandboxes.create(asked, no_report)
        info = await service.sandboxes.start(made.id)
        port = info.ports[0].host_port
        await until(lambda: world.network.reserved == {port})
        await service.sandboxes.remove(info.id, force=True)
        await until(lambda: world.network.reserved == frozenset())
