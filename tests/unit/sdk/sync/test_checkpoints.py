from hutch.sdk import Client, Sandbox
from tests.unit.api.conftest import Served


def test_taken_listed_undone(served: Served) -> None:
    with Client(socket=served.path) as client:
        box = Sandbox.connect("box", client=client)
        taken = box.checkpoint("before")
        assert [each.snapshot for each in client.checkpoints.list("box")] == [taken]
        assert box.undo().undone_to == taken.id
