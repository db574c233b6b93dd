from concurrent.futures import ThreadPoolExecutor

import pytest

from hutch.errors import DaemonError, NotFound
from hutch.sdk.sync.transport import IDLE_LIMIT, Transport
from tests.unit.api.conftest import Served


def test_connections_are_used_again_by_any_thread(served: Served) -> None:
    transport = Transport(socket=served.path)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: transport.request("GET", "/v1/daemon").json(), range(200)))
    assert 0 < len(transport._idle) <= IDLE_LIMIT
    transport.close()
    assert not transport._idle


def test_an_error_keeps_its_connection(served: Served) -> None:
    transport = Transport(socket=served.path)
    for _ in range(3):
        with pytest.raises(NotFound):
            transport.request("GET", "/v1/sandboxes/no")
    assert len(transport._idle) == 1
    transport.close()


def test_a_connection_that_died_while_idle_is_not_used(served: Served) -> None:
    transport = Transport(socket=served.path)
    transport.request("GET", "/v1/daemon").read()
    served.stop()
    with pytest.raises(DaemonError, match="no daemon answers"):
        transport.request("GET", "/v1/daemon")
    assert not transport._idle
