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


async def test_what_is_listened_on_is_kept_from_sandboxes_and_nothing_else(world: World) -> None:
    async with world.service() as service:
        # A free port is found for one that does not start yet, but it is anybody's until then.
        made = await service.sandboxes.create(spec(ports=[PublishedPort(WEB)]), no_report)
        port = made.ports[0].host_port
        assert service.ports._ports() == frozenset()
        await until(lambda: not service.ports._telling)
        assert world.network.reserved == frozenset()
        await service.sandboxes.start(made.id)
        await until(lambda: world.network.reserved == {port})
        [more] = await service.ports.publish(made.id, [PublishedPort(81)])
        await until(lambda: world.network.reserved == {port, more.host_port})
        await service.ports.unpublish(made.id, more.host_port)
        await until(lambda: world.network.reserved == {port})
        await service.sandboxes.stop(made.id)
        await until(lambda: world.network.reserved == frozenset())


async def test_what_was_taken_for_one_that_is_not_made_is_free_again(world: World) -> None:
    async with world.service() as service:
        ports = service.ports
        with ports.reserving("web") as reserved:
            ports.take(reserved, [PublishedPort(WEB)])
            number = reserved.ports[0].host_port
            await until(lambda: world.network.reserved == {number})
        await until(lambda: world.network.reserved == frozenset())
