"""One look at what all sandboxes take."""

from hutch.images.base import no_report
from hutch.models import SandboxState
from hutch.settings import GIB
from tests.unit.service.world import World, spec


async def test_a_host_without_sandboxes(world: World) -> None:
    async with world.service() as service:
        usage = await service.system.usage()
        assert (usage.sandboxes, usage.memory_promised, usage.template_memory) == ([], 0, 0)
        assert (usage.memory_total, usage.memory_available) == (64 * GIB, 60 * GIB)
        assert usage.memory_promise_limit == 4 * usage.memory_total
        assert usage.disk_free > 0


async def test_every_sandbox_is_told_whatever_its_state(world: World) -> None:
    async with world.service() as service:
        for name in ("created", "running", "paused", "stopped"):
            await service.sandboxes.create(spec(name=name), no_report)
            if name != "created":
                await service.sandboxes.start(name)
        await service.sandboxes.pause("paused")
        await service.sandboxes.stop("stopped")
        usage = await service.system.usage()
        assert [each.state.value for each in usage.sandboxes] == [
            each.name for each in usage.sandboxes
        ]
        with_machine = {SandboxState.RUNNING, SandboxState.PAUSED}
        for each in usage.sandboxes:
            assert (each.memory > 0) is (each.state in with_machine)
            assert (each.disk > 0) is (each.state is not SandboxState.CREATED)
        assert usage.memory_promised == 2 * 512 << 20
