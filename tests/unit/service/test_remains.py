"""What a VM leaves is removed as a whole, and twice as well as once."""

from hutch.service.plugs import Plug
from hutch.service.remains import clear_away
from tests.unit.service.world import World


async def test_network_sockets_and_directory(world: World) -> None:
    async with world.service() as service:
        parts = service._parts
        directory = parts.places.machine("sb_1")
        directory.mkdir()
        (directory / "qmp.sock").touch()
        async with parts.plugs.attached("sb_1", Plug("sb_1", "web")):
            assert "sb_1" in world.network.attached
        await clear_away(parts, directory)
        assert not directory.exists()
        assert world.network.attached == {}
        await clear_away(parts, directory)
