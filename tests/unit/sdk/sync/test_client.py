from hutch.models import SandboxSpec
from hutch.sdk import Client
from tests.unit.api.conftest import Served


def test_lists_and_events(served: Served) -> None:
    with Client(socket=served.path) as client:
        client.create(SandboxSpec("busybox", "two", idle=True, labels={"a": "b"}))
        assert [info.name for info in client.list(labels={"a": "b"})] == ["two"]
        assert client.stop("two").exit is not None
        assert client.wait("two").name == "two"
        assert [event.seq for event in client.events(since=1)] == [1, 2]
        assert client.images.pull("x").references == ["x"]
