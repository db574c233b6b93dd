from pathlib import Path

from tests.unit.api.conftest import Served
from tests.unit.api.contract import ask
from tests.unit.api.fake_operations import FakeOperations


async def test_the_daemon_itself(api: str) -> None:
    assert (await ask(api, "GET", "/v1/daemon"))["running"] == 1
    assert (await ask(api, "GET", "/v1/doctor"))[0]["status"] == "fail"
    assert await ask(api, "GET", "/v1/settings") == {"cpus": {"value": 1, "origin": "default"}}


async def test_a_stop_ends_the_server(api: str, fake: FakeOperations) -> None:
    await ask(api, "POST", "/v1/daemon/stop", json={"stop_sandboxes": True}, status=202)
    assert fake.system.stops == [True]


def test_a_stop_is_answered_before_the_end(short_tmp: Path) -> None:
    from hutch.sdk.wire import Connection

    with Served(short_tmp / "a.sock") as served, Connection.connect(served.path) as connection:
        assert connection.request("POST", "/v1/daemon/stop").status == 202
        served.stop()
    assert served.fake.system.stops == [False]
