import asyncio

import pytest

from hutch.sdk.aio.transport import Transport
from tests.unit.api.conftest import given_up
from tests.unit.api.contract import ask, refused
from tests.unit.api.fake_operations import FakeOperations
from tests.waiting import until

BASE = "/v1/sandboxes"


async def test_a_life(api: str) -> None:
    spec = {"image": "busybox", "name": "two", "idle": True, "labels": {"a": "b"}}
    made = await ask(api, "POST", BASE, json=spec, status=201)
    assert (made["name"], made["state"], made["labels"]) == ("two", "created", {"a": "b"})
    assert (await ask(api, "POST", f"{BASE}/two/start"))["state"] == "running"
    assert (await ask(api, "GET", f"{BASE}/{made['id']}"))["started_at"]
    assert (await ask(api, "GET", f"{BASE}/two/stats"))["cpu_seconds"] == 1.5
    assert (await ask(api, "GET", f"{BASE}/two/processes"))[0]["pid"] == 1
    assert (await ask(api, "POST", f"{BASE}/two/rename", json={"name": "three"}))["name"] == "three"
    body = {"timeout": 1, "signal": None}
    assert (await ask(api, "POST", f"{BASE}/three/restart", json=body))["state"] == "running"
    stopped = await ask(api, "POST", f"{BASE}/three/stop", json=body)
    assert stopped["exit"] == {"reason": "stopped", "code": 143, "message": None}
    assert (await ask(api, "GET", f"{BASE}/three/wait"))["state"] == "stopped"
    assert (await ask(api, "DELETE", f"{BASE}/three"))["removed"] == [made["id"]]


async def test_rest(api: str) -> None:
    assert (await ask(api, "POST", f"{BASE}/box/pause"))["state"] == "paused"
    assert (await ask(api, "POST", f"{BASE}/box/resume"))["state"] == "running"
    assert (await ask(api, "POST", f"{BASE}/box/park"))["state"] == "parked"
    assert (await refused(api, "POST", f"{BASE}/box/pause")).code == "wrong_state"
    assert (await ask(api, "POST", f"{BASE}/box/resume"))["state"] == "running"


async def test_what_is_optional_may_be_left_out(api: str) -> None:
    assert (await ask(api, "POST", f"{BASE}/box/stop"))["state"] == "stopped"
    await ask(api, "POST", f"{BASE}/box/restart")
    assert (await ask(api, "POST", f"{BASE}/box/kill"))["exit"]["reason"] == "killed"


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({}, {"box", "made"}),
        ({"all": True}, {"box", "made", "ended"}),
        ({"label": ["a=b"]}, {"made"}),
        ({"state": ["stopped", "created"]}, {"made", "ended"}),
        ({"name": "bo"}, {"box"}),
    ],
)
async def test_lists(
    api: str, fake: FakeOperations, query: dict[str, object], names: set[str]
) -> None:
    spec = {"image": "busybox", "name": "made", "labels": {"a": "b"}}
    await ask(api, "POST", BASE, json=spec, status=201)
    await ask(api, "POST", BASE, json={"image": "busybox", "name": "ended"}, status=201)
    await ask(api, "POST", f"{BASE}/ended/start")
    await ask(api, "POST", f"{BASE}/ended/stop")
    found = await ask(api, "GET", BASE, query)
    assert {item["name"] for item in found} == names


async def test_refusals(api: str) -> None:
    assert (await refused(api, "GET", f"{BASE}/no")).code == "sandbox_not_found"
    assert (await refused(api, "DELETE", f"{BASE}/box")).code == "wrong_state"
    failure = await refused(api, "POST", BASE, json={"image": "busybox", "name": "box"})
    assert (failure.code, failure.status) == ("name_taken", 409)
    failure = await refused(api, "GET", f"{BASE}/box/wait", {"timeout": 0.01})
    assert (failure.code, failure.status) == ("guest_timeout", 504)
    assert (await refused(api, "GET", BASE, {"state": "odd"})).code == "bad_request"


async def test_a_wait_ends_with_its_client(transport: Transport, fake: FakeOperations) -> None:
    await given_up(transport.request("GET", f"{BASE}/box/wait"), fake.sandboxes.waiting)
    await until(fake.sandboxes.cancelled.is_set)


async def test_a_create_is_undone_with_its_client(
    transport: Transport, fake: FakeOperations
) -> None:
    fake.sandboxes.create_gate = asyncio.Event()
    request = transport.request("POST", BASE, json={"image": "busybox"})
    await given_up(request, fake.sandboxes.waiting)
    await until(fake.sandboxes.cancelled.is_set)
