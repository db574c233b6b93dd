from hutch.networking import NetworkMode
from hutch.sdk import Client, Sandbox
from tests.unit.api.conftest import Served


def test_shown_changed_and_told(served: Served) -> None:
    with Client(socket=served.path) as client:
        box = Sandbox.connect("box", client=client)
        changed = box.network.update(mode="deny", allow=["a.example.com"])
        assert changed.network.policy.mode is NetworkMode.DENY
        assert box.network.show() == changed.network
        assert [each.port for each in box.network.connections()] == [443]
        assert [each.number for each in box.network.log()] == [1, 2]
