from hutch.models import Progress
from hutch.sdk import Client
from tests.unit.api.conftest import Served


def test_what_sandboxes_begin_from(served: Served) -> None:
    with Client(socket=served.path) as client:
        steps: list[Progress] = []
        assert client.images.pull("x", on_progress=steps.append).references == ["x"]
        assert {step.stage for step in steps} == {"pull"}
        assert client.kernels.list()[0].active
        assert client.pools.warm("busybox", 2, wait=False) in client.pools.list()
