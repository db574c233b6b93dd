import pytest

from hutch.errors import NotFound
from hutch.sdk import AsyncClient, AsyncSandbox


async def test_taken_listed_undone(api: str) -> None:
    async with AsyncClient(socket=api) as client:
        box = await AsyncSandbox.connect("box", client=client)
        first = await box.checkpoint("before")
        second = await client.checkpoints.create("box")
        assert (first.message, second.checkpoint) == ("before", True)
        found = await client.checkpoints.list("box")
        assert [(each.number, each.snapshot) for each in found] == [(1, second), (2, first)]
        assert await client.snapshots.list("box") == []
        assert await client.snapshots.list("box", checkpoints=True) == [first, second]
        assert (await box.undo()).undone_to == second.id
        assert (await box.undo(2)).undone_to == first.id
        assert (await box.undo(to=second.id)).undone_to == second.id
        assert box.info.undone_to == second.id
        with pytest.raises(NotFound):
            await client.checkpoints.undo("box", 7)


async def test_a_command_may_take_one_before(api: str) -> None:
    async with AsyncClient(socket=api) as client:
        box = await AsyncSandbox.connect("box", client=client)
        assert (await box.commands.run(["true"], checkpoint=True)).exit_code == 0


async def test_two_moments(api: str) -> None:
    async with AsyncClient(socket=api) as client:
        found = await client.checkpoints.diff("a@2", "a@1")
        assert [each.change for each in found.files] == ["added", "removed"]
        assert not found.empty
        assert (await client.checkpoints.diff("a", "a")).empty
